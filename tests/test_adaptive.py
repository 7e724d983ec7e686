"""Adaptive ingredients: what each does to the target, and that they go with any white-box attack."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from toys import CLASSES, SIZE, STYLE, SizedTarget, ToyPrior, ToyTarget

from lib import attacks
from lib.attacks import Knowledge, Reconstructions
from lib.attacks.access import Access
from lib.attacks.adaptive import adapt, parse
from lib.attacks.adaptive.eot import ErasedViews
from lib.attacks.adaptive.feature_shift import Shifted, feature_means
from lib.attacks.gmi import GmiBudget
from lib.attacks.oracle import Oracle
from lib.attacks.ppa import PpaBudget
from lib.attacks.search import score_pool
from lib.erasing import ErasingLaw, draw_view
from lib.errors import UserError
from lib.priors import (
    ConditionalGan,
    ConditionalSpec,
    DcganSpec,
    InversionGan,
    Prior,
    StylePrior,
)
from lib.priors.conditional_gan import build_conditional_networks
from lib.priors.inversion_gan import build_inversion_networks
from lib.priors.stylegan import build_networks
from lib.runtime import generator
from lib.store import Checkpoint

LAW = ErasingLaw(scale=(0.2, 0.5))
PPA = PpaBudget(pool=20, candidates=3, keep=2, steps=5, views=3, chunk=2, learning_rate=0.05, truncation=1.0)
GMI = GmiBudget(candidates=3, keep=1, steps=5, views=3, chunk=2)


@pytest.fixture
def prior() -> ToyPrior:
    return ToyPrior()


@pytest.fixture
def target(prior: ToyPrior) -> ToyTarget:
    return ToyTarget(prior).eval()


@pytest.fixture
def public() -> torch.Tensor:
    return torch.randint(0, 256, (60, 3, SIZE, SIZE), generator=generator(0, "public"), dtype=torch.uint8)


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=generator(0, "images"))


def test_logits_are_the_mean_over_the_erased_views(target: ToyTarget) -> None:
    stream = generator(3, "attack", "erasing")
    views = [draw_view(LAW, (1, 3, SIZE, SIZE), generator=stream) for _ in range(5)]
    wanted = torch.stack([target(view(images())) for view in views]).mean(0)
    found = ErasedViews(target, LAW, masks=5, seed=3)(images())
    torch.testing.assert_close(found, wanted)
    assert (found - target(images())).abs().max() > 1e-3, (
        "the views must matter for this test to say anything"
    )


@pytest.mark.parametrize("shifted", [False, True])
def test_students_are_asked_about_the_views_that_the_target_saw(target: ToyTarget, shifted: bool) -> None:
    student, masks = SizedTarget(SIZE).eval(), 5
    seen: nn.Module = ErasedViews(target, LAW, masks=masks, seed=3)
    if shifted:
        size = target.features(images()).shape[1]
        seen = Shifted(seen, torch.zeros(size), torch.ones(size))
    access = Access(seen, ToyPrior(), fast=False)
    access.both(images())
    stream = generator(3, "attack", "erasing")
    views = [draw_view(LAW, (1, 3, SIZE, SIZE), generator=stream) for _ in range(masks)]
    wanted = torch.stack([student(view(images())) for view in views]).mean(0)
    torch.testing.assert_close(access.also(student, images(), counter="student"), wanted)
    assert access.counts["student"] == masks * len(images()) and access.counts["target_forward"] >= masks * 4
    assert (wanted - student(images())).abs().max() > 1e-3
    plain = Access(target, ToyPrior(), fast=False)
    assert torch.equal(plain.also(student, images(), counter="student"), student(images()))
    assert plain.counts["student"] == len(images())


def test_each_pass_draws_new_views_and_a_restart_the_same(target: ToyTarget) -> None:
    seen = ErasedViews(target, LAW, masks=2, seed=0)
    first, second = seen(images()), seen(images())
    assert not torch.allclose(first, second)
    seen.restart()
    assert torch.equal(seen(images()), first)


def test_a_restart_reaches_a_target_that_draws_noise(target: ToyTarget) -> None:
    class Noisy(nn.Module):
        num_classes, image_size = CLASSES, SIZE
        drawn = 0

        def restart(self) -> None:
            self.drawn = 0

        def both(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.drawn += 1
            features, logits = target.both(x)
            return features, logits + self.drawn

    seen = ErasedViews(Noisy(), LAW, masks=2, seed=0)
    first = seen(images())
    assert not torch.allclose(seen(images()), first)
    seen.restart()
    assert torch.equal(seen(images()), first)


def test_views_are_shared_by_the_batch(target: ToyTarget) -> None:
    one = images(1).expand(3, -1, -1, -1)
    seen = ErasedViews(target, LAW, masks=3, seed=0)(one)
    torch.testing.assert_close(seen, seen[:1].expand_as(seen))


def test_recomputing_views_changes_no_gradient(target: ToyTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient() -> torch.Tensor:
        x = images().requires_grad_(True)
        ErasedViews(target, LAW, masks=6, seed=0)(x).square().sum().backward()
        return x.grad

    whole = gradient()
    monkeypatch.setattr("lib.attacks.adaptive.eot.ROOM", 8)
    torch.testing.assert_close(gradient(), whole)
    assert (whole != 0).any()


def test_the_whole_pool_is_compared_under_the_same_views(target: ToyTarget, prior: ToyPrior) -> None:
    latents, labels = prior.sample(1, generator=generator(0, "pool")).expand(7, -1), torch.tensor([0, 3])
    access = Access(ErasedViews(target, LAW, masks=1, seed=0), prior, fast=False)
    scores = score_pool(access, latents, labels, batch=2)
    torch.testing.assert_close(scores, scores[:1].expand_as(scores))


def test_the_order_in_the_name_changes_nothing(target: ToyTarget, public: torch.Tensor) -> None:
    known = Knowledge(public=public, law=LAW)
    one, other = (
        adapt(target, tuple(map(parse, names)), known, 0)
        for names in (("eot3", "feature_shift"), ("feature_shift", "eot3"))
    )
    x = images().requires_grad_(True)
    assert torch.equal(one(x), other(x)) and torch.equal(one.terms(), other.terms())


def test_an_oracle_is_refused_whatever_the_ingredients(target: ToyTarget, prior: ToyPrior) -> None:
    oracle = Oracle(target, reveals="scores")
    with pytest.raises(UserError, match="expected a network that passes gradients, got an oracle"):
        attacks.get("ppa+eot4").invert(oracle, prior, [0], budget=PPA, seed=0, knowledge=Knowledge(law=LAW))
    assert oracle.queries == 0


def test_passes_are_counted_with_the_masks(target: ToyTarget, prior: ToyPrior) -> None:
    access = Access(ErasedViews(target, LAW, masks=4, seed=0), prior, fast=False)
    access.logits(images().requires_grad_(True))
    assert access.counts["target_forward"] == access.counts["target_backward"] == 16


def test_what_the_attacker_cannot_know_is_random() -> None:
    hidden = Knowledge(law=ErasingLaw(location="fixed", value="image")).blind_law
    assert (hidden.location, hidden.value) == ("random", "noise")
    open_law = ErasingLaw(location="toroidal", value="black")
    assert Knowledge(law=open_law).blind_law == open_law


def test_the_shift_is_zero_at_the_clean_mean_and_its_weight_at_the_erased_one(target: ToyTarget) -> None:
    size = 3 * SIZE * SIZE
    erased, clean = torch.zeros(size), torch.full((size,), 0.3)
    seen = Shifted(target, erased, clean, weight=2.0)
    positions = seen.position(torch.stack([erased, clean, 0.5 * clean, 2 * clean]))
    torch.testing.assert_close(positions, torch.tensor([0.0, 1.0, 0.5, 2.0]))
    x = images().requires_grad_(True)
    seen(x)
    wanted = 2.0 * (seen.position(target.features(x)) - 1).square()
    torch.testing.assert_close(seen.terms(), wanted)
    assert isinstance(seen.terms(), (int, float)) and seen.terms() == 0, "terms are handed over once"
    with torch.no_grad():
        seen(x)
    assert seen.terms() == 0, "a search adds nothing"


def test_feature_means_are_those_of_public_people(target: ToyTarget, public: torch.Tensor) -> None:
    erased, clean = feature_means(target, public, LAW, seed=0)
    torch.testing.assert_close(clean, target.features(public.float() / 255).mean(0), atol=1e-5, rtol=0)
    assert (erased - clean).abs().max() > 0.05  # grey instead of noise


def test_the_shift_looks_at_the_whole_image_through_erased_views(target: ToyTarget) -> None:
    size = 3 * SIZE * SIZE
    seen = Shifted(ErasedViews(target, LAW, masks=3, seed=0), torch.zeros(size), torch.ones(size))
    assert (seen.passes, seen.gradient_passes) == (3, 1) and seen.base is target
    x = images().requires_grad_(True)
    seen(x)
    torch.testing.assert_close(seen.terms(), (seen.position(target.features(x)) - 1).square())


def test_an_optimisation_pays_for_the_shift(target: ToyTarget, prior: ToyPrior, public: torch.Tensor) -> None:
    def distance(name: str) -> float:
        method = attacks.get(name)
        budget = dataclasses.replace(PPA, steps=40)
        known = Knowledge(public=public, law=LAW)
        found = method.invert(target, prior, [0, 1], budget=budget, seed=0, knowledge=known)
        shifted = adapt(target, (parse("feature_shift"),), known, 0)
        with torch.no_grad():
            made = prior.synthesise(found.latents.flatten(0, 1))
            return float((shifted.position(target.features(made)) - 1).abs().mean())

    assert distance("ppa+feature_shift") < distance("ppa")


@pytest.mark.parametrize(("base", "budget"), [("ppa", PPA), ("gmi", GMI)])
def test_ingredients_go_with_any_white_box_attack(
    target: ToyTarget, prior: ToyPrior, public: torch.Tensor, base: str, budget
) -> None:
    known = Knowledge(public=public, law=LAW)

    def run(name: str) -> Reconstructions:
        return attacks.get(name).invert(target, prior, range(CLASSES), budget=budget, seed=0, knowledge=known)

    plain, erased, both = (run(base + more) for more in ("", "+eot3", "+eot3+re_prior+feature_shift"))
    assert erased.attack == f"{base}+eot3" and plain.attack == base
    assert erased.cost["target_backward"] == 3 * plain.cost["target_backward"]
    assert both.cost["target_backward"] == 4 * plain.cost["target_backward"]
    assert not torch.equal(plain.latents, erased.latents) and not torch.equal(erased.latents, both.latents)
    assert all(not p.requires_grad or p.grad is None for p in target.parameters())


WHITE_BOX = [name for name in attacks.names() if attacks.get(name).sees == "gradients"]


def small_prior(name: str) -> Prior:
    """A little untrained one of the kind that the attack works with, of 32 px."""
    if attacks.get(name).prior == "inversion_gan":
        return InversionGan(*build_inversion_networks(DcganSpec(32, latent_dim=6, width=4), CLASSES, seed=0))
    if attacks.get(name).prior == "conditional_gan":
        spec = ConditionalSpec(CLASSES, image_size=32, latent_dim=6, width=4)
        return ConditionalGan(build_conditional_networks(spec, seed=0)[0])
    return StylePrior(*build_networks(STYLE, seed=0))


@pytest.mark.parametrize("name", WHITE_BOX)
def test_ingredients_go_with_every_attack_that_sees_gradients(name: str) -> None:
    method = attacks.get(name)
    sizes = {"candidates": 2, "keep": 1, "steps": 4, "views": 2, "chunk": 2, "pool": 6}
    sizes |= {"private": 2, "pivot_steps": 2, "tune_steps": 2, "feature_steps": (1, 1)}
    fields = {field.name for field in dataclasses.fields(method.Budget)}
    budget = method.budget(**{key: value for key, value in sizes.items() if key in fields})
    photos = torch.randint(0, 256, (60, 3, 32, 32), generator=generator(0, "public"), dtype=torch.uint8)
    students = (SizedTarget(32).eval(),) if "students" in method.needs else ()
    known = Knowledge(public=photos, law=LAW, students=students)

    def run(text: str) -> Reconstructions:
        target = SizedTarget(32).eval()
        return attacks.get(text).invert(
            target, small_prior(name), [0, 2], budget=budget, seed=0, knowledge=known
        )

    plain, erased, pulled = (run(name + more) for more in ("", "+eot2", "+feature_shift100"))
    assert erased.cost["target_backward"] == 2 * plain.cost["target_backward"]
    assert pulled.cost["target_backward"] == plain.cost["target_backward"]
    assert not torch.equal(plain.latents, erased.latents) and not torch.equal(plain.latents, pulled.latents)


def test_what_an_ingredient_prepares_waits_for_the_checks(target: ToyTarget, public: torch.Tensor) -> None:
    asked: list[int] = []
    target.features = lambda images: asked.append(len(images))  # type: ignore[method-assign]
    small, known = ToyPrior(), Knowledge(public=public, law=LAW)
    small.image_size = SIZE // 2
    with pytest.raises(UserError, match=f"expected images of {SIZE} px"):
        attacks.get("ppa+feature_shift").invert(target, small, [0], budget=PPA, seed=0, knowledge=known)
    with pytest.raises(UserError, match="label"):
        attacks.get("ppa+feature_shift").invert(target, ToyPrior(), [99], budget=PPA, seed=0, knowledge=known)
    assert asked == [], "thousands of public images pass the target for the means"


def test_an_interrupted_adaptive_attack_has_the_bits_of_the_whole(
    target: ToyTarget, prior: ToyPrior, public: torch.Tensor, tmp_path
) -> None:
    method, known = attacks.get("ppa+eot2+feature_shift"), Knowledge(public=public, law=LAW)
    whole = method.invert(target, prior, range(CLASSES), budget=PPA, seed=0, knowledge=known)
    path = tmp_path / "half.pt"

    def stop(row: dict) -> None:
        if row["stage"] == "ppa" and row["done"] >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.invert(
            target, prior, range(CLASSES), budget=PPA, seed=0, knowledge=known,
            checkpoint=Checkpoint(path, every=0.0), callback=stop,
        )  # fmt: skip
    again = method.invert(
        target, prior, range(CLASSES), budget=PPA, seed=0, knowledge=known, checkpoint=Checkpoint(path)
    )
    assert torch.equal(again.latents, whole.latents) and torch.equal(again.confidence, whole.confidence)


def test_names_are_read() -> None:
    method = attacks.get("ppa+eot16+re_prior")
    assert method.base == "ppa" and method.needs == {"law"} and method.erases == {"prior"}
    assert method.passes == 16 and method.Budget is PpaBudget
    assert attacks.get("lomma_gmi+re_students").erases == {"students"}
    assert attacks.get("ppa+feature_shift").images() == 4000 and method.images() == 0
    lomma = attacks.get("lomma_kedmi+feature_shift0.1")
    assert lomma.images() == 9000 and lomma.images(100) == 300
    assert attacks.get("lomma_gmi+eot4").images() == 20_000, "every view of a photo passes the target"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ppa+eot0", "1 to 256 masks"),
        ("ppa+eots", "one like"),
        ("ppa+eot4+eot16", "each ingredient once"),
        ("ppb+eot4", "expected one of"),
        ("ppa+", "one like"),
        ("gmi+re_students", "attack with students"),
    ],
)
def test_bad_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attacks.get(name)


def test_missing_knowledge_is_named_before_work_starts(target: ToyTarget, prior: ToyPrior) -> None:
    for name, need in (("ppa+eot4", "law"), ("ppa+feature_shift", "law")):
        with pytest.raises(UserError, match=f"expected knowledge of {need}"):
            attacks.get(name).invert(target, prior, [0], budget=PPA, seed=0)


def test_a_shift_without_a_gap_is_refused(target: ToyTarget) -> None:
    mean = torch.zeros(3 * SIZE * SIZE)
    with pytest.raises(UserError, match="nothing to move"):
        Shifted(target, mean, mean)
