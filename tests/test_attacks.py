"""Attacks on a toy world: a linear prior of Gaussian latents, a linear softmax target."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, DIM, SIZE, KilledError, ToyPrior, ToyTarget, confidence, equal, smooth_images

from lib import attacks
from lib.attacks import Knowledge, gmi, ppa
from lib.attacks.access import Access
from lib.attacks.gmi import GmiBudget
from lib.attacks.interface import Reconstructions
from lib.attacks.losses import poincare
from lib.attacks.ppa import PpaBudget, step_crops
from lib.attacks.search import best_candidates, score_pool, search
from lib.attacks.selection import keep_best, select
from lib.erasing import ErasingLaw
from lib.errors import UserError
from lib.runtime import generator
from lib.store import Checkpoint

SMALL = PpaBudget(
    pool=30, candidates=4, keep=2, steps=6, views=3, chunk=2, learning_rate=0.05, truncation=1.0
)
SMALL_GMI = GmiBudget(candidates=3, keep=1, steps=6, views=3, chunk=2)


@pytest.fixture
def prior() -> ToyPrior:
    return ToyPrior()


@pytest.fixture
def target(prior: ToyPrior) -> ToyTarget:
    return ToyTarget(prior)


def run(name: str, *args: Any, **kwargs: Any) -> Reconstructions:
    return {"ppa": ppa.invert, "gmi": gmi.invert}[name](
        *args, **{"budget": {"ppa": SMALL, "gmi": SMALL_GMI}[name], "seed": 3, **kwargs}
    )


def test_the_search_equals_brute_force(target: ToyTarget, prior: ToyPrior) -> None:
    target.eval()
    access = Access(target, prior, fast=False)
    labels = torch.tensor([1, 4])
    latents = prior.sample(23, generator=generator(0, "pool"))
    with torch.no_grad():
        scores = score_pool(access, latents, labels, batch=5)
    chosen = best_candidates(scores, 7)
    for column, label in enumerate(labels.tolist()):
        ranking = []
        for index in range(23):
            with torch.no_grad():
                image = prior.synthesise(latents[index : index + 1])
                p = [target(x).softmax(1)[0, label].item() for x in (image, image.flip(-1))]
            ranking.append((sum(p) / 2, index))
        expected = [index for _, index in sorted(ranking, reverse=True)[:7]]
        assert chosen[column].tolist() == expected
    assert access.counts == {
        "target_forward": 46,
        "target_backward": 0,
        "synthesis": 23,
        "critic": 0,
    }


def test_the_pool_does_not_depend_on_the_labels(target: ToyTarget, prior: ToyPrior) -> None:
    target.eval()
    options = dict(pool=20, candidates=3, truncation=1.0, seed=0, batch=8)
    access = Access(target, prior, fast=False)
    both = search(access, torch.tensor([0, 3]), **options)
    alone = search(access, torch.tensor([3]), **options)
    (latents, best), (fewer, alone) = both, alone
    assert torch.equal(latents[best[1:]], fewer[alone])
    assert len(latents) <= 6 and len(fewer) == 3, "of the pool what serves somebody"


def test_selection_keeps_the_best_in_order() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    assert keep_best(scores, 3).tolist() == [[1, 3, 2], [0, 1, 2]]


@pytest.mark.parametrize("rank_by", ["confidence", "logit"])
def test_selection_asks_the_target_and_ranks_by_what_it_says(
    target: ToyTarget, prior: ToyPrior, rank_by: str
) -> None:
    target.eval()
    access = Access(target, prior, fast=False)
    labels = torch.tensor([2, 0])
    latents = prior.sample(10, generator=generator(0, "latents")).view(2, 5, DIM)
    budget = dataclasses.replace(
        SMALL, view_scale=(1.0, 1.0), view_ratio=(1.0, 1.0), views=40, candidates=5, keep=3
    )
    judged = select(access, latents, labels, budget=budget, loss=poincare, seed=0, rank_by=rank_by)
    with torch.no_grad():
        images = prior.synthesise(latents.flatten(0, 1))
        wanted = labels.repeat_interleave(5)[:, None]
        plain, mirrored = target(images), target(images.flip(-1))
        p, q = (x.softmax(1).gather(1, wanted).view(2, 5) for x in (plain, mirrored))
    low, high = torch.minimum(p, q), torch.maximum(p, q)
    assert (judged["confidence"] >= low - 1e-5).all() and (judged["confidence"] <= high + 1e-5).all()
    score = judged["confidence"] if rank_by == "confidence" else plain.gather(1, wanted).view(2, 5)
    assert torch.equal(judged["selected"], score.argsort(1, descending=True)[:, :3])
    torch.testing.assert_close(judged["loss"], poincare(plain, wanted[:, 0]).view(2, 5))
    assert access.counts["synthesis"] == 10 and access.counts["target_forward"] == 10 * 41


def test_all_candidates_of_an_identity_see_the_same_views(target: ToyTarget, prior: ToyPrior) -> None:
    target.eval()
    latents = prior.sample(1, generator=generator(0, "latents")).expand(1, 4, DIM)
    judged = select(
        Access(target, prior, fast=False), latents, torch.tensor([1]), budget=SMALL, loss=poincare, seed=0
    )
    torch.testing.assert_close(judged["confidence"], judged["confidence"][:, :1].expand(1, 4))


@pytest.mark.parametrize("name", ["ppa", "gmi"])
def test_an_attack_beats_its_starts_and_prior_samples(target: ToyTarget, prior: ToyPrior, name: str) -> None:
    labels = torch.arange(CLASSES)
    budget = {
        "ppa": dataclasses.replace(SMALL, steps=30),
        "gmi": dataclasses.replace(SMALL_GMI, steps=60, clip=2.0),
    }[name]
    found = run(name, target, prior, labels, budget=budget)
    samples = prior.sample(200, generator=generator(9, "samples")).expand(CLASSES, -1, -1)
    reached = confidence(target, prior, found.kept(), labels)
    assert (reached.mean(1) > confidence(target, prior, samples, labels).mean(1) + 0.3).all()
    assert (reached.mean(1) > confidence(target, prior, found.initial, labels).mean(1)).all()
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert found.history[-1]["confidence"] > found.history[0]["confidence"]


@pytest.mark.parametrize("change", [{"steps": (1, 8, 40)}, {"pool": (4, 40, 400)}])
def test_strength_grows_with_the_budget(
    target: ToyTarget, prior: ToyPrior, change: dict[str, tuple[int, ...]]
) -> None:
    labels = torch.arange(CLASSES)
    ((field, values),) = change.items()
    weak = dataclasses.replace(SMALL, learning_rate=0.02)
    reached = []
    for value in values:
        found = ppa.invert(target, prior, labels, budget=dataclasses.replace(weak, **{field: value}), seed=0)
        reached.append(confidence(target, prior, found.latents, labels).mean().item())
    assert reached[0] < reached[1] < reached[2]


def test_the_density_term_keeps_latents_likely(target: ToyTarget, prior: ToyPrior) -> None:
    free, held = (
        ppa.invert(
            target,
            prior,
            [0, 1],
            budget=dataclasses.replace(SMALL, steps=40, prior_weight=weight),
            seed=0,
        )
        for weight in (0.0, 10.0)
    )
    assert held.latents.square().sum(-1).mean() < 0.5 * free.latents.square().sum(-1).mean()


@pytest.mark.parametrize("name", ["ppa", "gmi"])
def test_shapes_costs_and_the_way_through_the_store(target: ToyTarget, prior: ToyPrior, name: str) -> None:
    found = run(name, target, prior, [4, 0, 2])
    budget = {"ppa": SMALL, "gmi": SMALL_GMI}[name]
    n, m = budget.candidates, budget.keep
    assert found.attack == name and found.labels.tolist() == [4, 0, 2]
    assert found.latents.shape == found.initial.shape == (3, n, DIM)
    assert found.selected.shape == (3, m) and found.confidence.shape == found.loss.shape == (3, n)
    assert found.kept().shape == (3, m, DIM)
    assert torch.equal(found.kept()[1, 0], found.latents[1, found.selected[1, 0]])
    assert [row["step"] for row in found.history] == list(range(budget.steps))
    pool = 30 if name == "ppa" else 0
    assert found.cost["target_backward"] == n * budget.steps
    assert found.cost["synthesis"] == pytest.approx(pool / 3 + n * budget.steps + n)
    assert found.cost["target_forward"] == pytest.approx(
        2 * pool / 3 + n * budget.steps + n * (budget.views + 1)
    )
    assert found.cost["seconds"] > 0
    tensors = found.to_tensors()
    assert tensors["latents"].dtype == torch.float16
    back = Reconstructions.from_tensors(tensors, found.meta())
    assert torch.equal(back.latents, found.latents) and torch.equal(back.initial, found.initial)
    assert back.history == found.history and back.cost == found.cost


@pytest.mark.parametrize("name", ["ppa", "gmi"])
def test_equal_seeds_equal_bits_and_the_order_of_labels_changes_nothing(
    target: ToyTarget, prior: ToyPrior, name: str
) -> None:
    first = run(name, target, prior, [0, 1, 2, 3, 4])
    assert equal(first, run(name, target, prior, torch.arange(5)))
    shuffled = run(name, target, prior, [3, 0, 4, 1, 2])
    back = shuffled.labels.argsort()
    assert torch.equal(shuffled.latents[back], first.latents)
    assert torch.equal(shuffled.selected[back], first.selected)
    assert not torch.equal(run(name, target, prior, [0, 1, 2, 3, 4], seed=4).latents, first.latents)


@pytest.mark.parametrize("name", ["ppa", "gmi"])
def test_an_identity_does_not_depend_on_its_company(target: ToyTarget, prior: ToyPrior, name: str) -> None:
    together = run(name, target, prior, [0, 1, 2, 3, 4])
    alone = run(name, target, prior, [3])
    torch.testing.assert_close(alone.initial[0], together.initial[3])
    assert not torch.allclose(together.initial[3], together.initial[4]), "identities share their noise"
    # the same noise; only the rounding of kernels for another batch size may differ
    torch.testing.assert_close(alone.latents[0], together.latents[3], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(alone.confidence[0], together.confidence[3], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["ppa", "gmi"])
@pytest.mark.parametrize("done", [2, 4])
def test_killed_and_resumed_equals_uninterrupted(
    target: ToyTarget, prior: ToyPrior, tmp_path: Path, name: str, done: int
) -> None:
    labels = [4, 1, 0, 3, 2]
    whole = run(name, target, prior, labels)

    def kill(event: dict[str, Any]) -> None:
        if event["stage"] == name and event["done"] == done:
            raise KilledError

    checkpoint = Checkpoint(tmp_path / "attack.checkpoint", every=0)
    with pytest.raises(KilledError):
        run(name, target, prior, labels, callback=kill, checkpoint=checkpoint)
    seen: list[int] = []
    resumed = run(
        name,
        target,
        prior,
        labels,
        checkpoint=checkpoint,
        callback=lambda event: seen.append(event["done"]),
    )
    assert seen == [d for d in (2, 4, 5) if d > done]
    assert equal(whole, resumed)
    timeless = {"seconds", "memory_mb"}
    assert {k: v for k, v in whole.cost.items() if k not in timeless} == {
        k: v for k, v in resumed.cost.items() if k not in timeless
    }


def test_a_checkpoint_of_another_attack_is_refused(
    target: ToyTarget, prior: ToyPrior, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tmp_path / "attack.checkpoint", every=0)
    run("ppa", target, prior, [0, 1], checkpoint=checkpoint)
    other, faces = ToyTarget(prior), ToyPrior()
    faces.matrix = -faces.matrix
    with torch.no_grad():
        other.head.weight.neg_()
    run("ppa", target, prior, [0, 1], checkpoint=checkpoint)  # its own goes on
    refused = pytest.raises(
        UserError, match="checkpoint: .* remove it with `python -m lib.run cache rm attack`"
    )
    with refused:
        run("ppa", target, prior, [0, 1], checkpoint=checkpoint, seed=8)
    with refused:
        run("ppa", other, prior, [0, 1], checkpoint=checkpoint)
    with refused:
        run("ppa", target, faces, [0, 1], checkpoint=checkpoint)
    with refused:
        attacks.get("ppa+eot2").invert(
            target,
            prior,
            [0, 1],
            budget=SMALL,
            seed=3,
            knowledge=Knowledge(law=ErasingLaw()),
            checkpoint=checkpoint,
        )


def test_a_prior_whose_latents_carry_a_class_is_for_the_attack_that_knows_it(
    target: ToyTarget, prior: ToyPrior
) -> None:
    prior.name, prior.classes = "conditional_gan", target.num_classes
    with pytest.raises(
        UserError, match="expected a prior whose latents say nothing of the class, got a conditional_gan"
    ):
        run("ppa", target, prior, [0])


@pytest.mark.parametrize("name", ["ppa", "gmi"])
def test_the_target_comes_back_as_it_was(target: ToyTarget, prior: ToyPrior, name: str) -> None:
    target.train()
    target.norm.eval()
    target.head.bias.requires_grad_(False)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    run(name, target, prior, [0, 1])
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert target.training and target.dropout.training and not target.norm.training
    assert target.head.weight.requires_grad and not target.head.bias.requires_grad
    assert all(parameter.grad is None for parameter in target.parameters())


def test_the_target_is_attacked_in_evaluation_mode(target: ToyTarget, prior: ToyPrior) -> None:
    trained = run("ppa", target.train(), prior, [0, 1])
    assert equal(trained, run("ppa", target.eval(), prior, [0, 1]))


def test_crops_differ_between_samples_unless_reference() -> None:
    own = step_crops([0, 1], budget=SMALL, seed=0, size=SIZE)
    assert own.shape == (6, 8, 5)
    assert len(own[0].unique(dim=0)) == 8
    assert torch.equal(own[:, 4:], step_crops([1], budget=SMALL, seed=0, size=SIZE))
    shared = step_crops([0, 1], budget=dataclasses.replace(SMALL, reference=True), seed=0, size=SIZE)
    assert shared.shape == (6, 1, 5)
    sides = shared[..., :4] * SIZE
    torch.testing.assert_close(sides, sides.round(), atol=1e-5, rtol=0)


def test_the_reference_crop_runs(target: ToyTarget, prior: ToyPrior) -> None:
    shared = ppa.invert(target, prior, [0, 1], budget=dataclasses.replace(SMALL, reference=True), seed=3)
    assert not torch.equal(shared.latents, run("ppa", target, prior, [0, 1]).latents)


def test_the_learning_rate_falls_at_the_milestones(target: ToyTarget, prior: ToyPrior) -> None:
    full, falling = (
        ppa.invert(target, prior, [0, 1], budget=dataclasses.replace(SMALL, **change), seed=0)
        for change in ({"milestones": ()}, {"milestones": (0.5,), "decay": 1e-6})
    )
    limit = SMALL.steps * SMALL.learning_rate  # Adam(.1, .1): at most the learning rate per step
    moved = [(found.latents - found.initial).abs().max().item() for found in (full, falling)]
    assert limit / 2 + 0.02 < moved[0] < limit + 0.02
    assert moved[1] < limit / 2 + 0.01


def test_selection_looks_through_views_of_the_budgets_size(target: ToyTarget, prior: ToyPrior) -> None:
    target.eval()
    latents = prior.sample(4, generator=generator(0, "latents"))[None]
    access = Access(target, prior, fast=False)
    near, far = (
        select(
            access,
            latents,
            torch.tensor([1]),
            budget=dataclasses.replace(SMALL, view_scale=(scale, scale), view_ratio=(1.0, 1.0)),
            loss=poincare,
            seed=0,
        )
        for scale in (0.3, 1.0)
    )
    assert (near["confidence"] - far["confidence"]).abs().max() > 1e-3
    torch.testing.assert_close(near["loss"], far["loss"], atol=0, rtol=0)


def test_logits_are_fp32_whatever_the_network_computes_in(target: ToyTarget, prior: ToyPrior) -> None:
    class Half(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).bfloat16()

    images = prior.synthesise(prior.sample(2, generator=generator(0, "latents")))
    assert Access(Half(prior), prior, fast=True).logits(images).dtype == torch.float32


def test_gmi_stays_in_its_box_of_prior_deviations(target: ToyTarget, prior: ToyPrior) -> None:
    wide = ToyPrior()
    wide.sample = lambda n, *, generator, truncation=1.0: (  # type: ignore[method-assign]
        5.0 + 3.0 * torch.randn(n, DIM, generator=generator) * truncation
    )
    budget = dataclasses.replace(SMALL_GMI, steps=10)
    found = gmi.invert(target, wide, [0, 1, 2], budget=budget, seed=0)
    offset = (found.latents - 5.0).abs()
    assert offset.max() == pytest.approx(3.0, abs=0.3), "the box binds at one standard deviation"
    assert (found.initial - 5.0).abs().max() > 3.3, "starts are not clipped"


def test_gmi_steps_as_in_a_batch_of_sixty(target: ToyTarget, prior: ToyPrior) -> None:
    """One step from the start is the published one: lr / 60 x gradient of the summed loss x (1 + m)."""
    budget = dataclasses.replace(SMALL_GMI, steps=1, clip=None, candidates=2)
    found = gmi.invert(target, prior, [1], budget=budget, seed=0)
    start = found.initial[0].clone().requires_grad_(True)
    target.eval()
    ce = nn.functional.cross_entropy(target(prior.synthesise(start)), torch.tensor([1, 1]), reduction="sum")
    (gradient,) = torch.autograd.grad(100 * ce - prior.log_density(start).sum(), start)
    expected = start.detach() - 0.02 / 60 * 1.9 * gradient
    # the latent scale is estimated from samples, hence a tolerance of a few per cent of the step
    step, wanted = found.latents[0] - found.initial[0], expected - start.detach()
    torch.testing.assert_close(step, wanted, atol=3e-3, rtol=0.1)
    assert wanted.abs().max() > 1e-2


def test_gmi_uses_the_critic_if_there_is_one(target: ToyTarget, prior: ToyPrior) -> None:
    bright = ToyPrior()
    bright.critic = lambda images: 500.0 * images.mean((1, 2, 3))  # type: ignore[assignment]
    found = gmi.invert(target, bright, [0, 1], budget=SMALL_GMI, seed=0)
    without = gmi.invert(
        target, bright, [0, 1], budget=dataclasses.replace(SMALL_GMI, realism="density"), seed=0
    )
    assert found.cost["critic"] == SMALL_GMI.candidates * SMALL_GMI.steps and without.cost["critic"] == 0

    def brightness(r: Reconstructions) -> float:
        return bright.synthesise(r.latents.flatten(0, 1)).mean().item()

    assert brightness(found) > brightness(without)
    with pytest.raises(UserError, match="critic"):
        gmi.invert(target, prior, [0], budget=dataclasses.replace(SMALL_GMI, realism="critic"), seed=0)


def test_memory_does_not_grow_with_the_identities(prior: ToyPrior) -> None:
    """The largest batch any network sees is one chunk's, however many identities there are."""
    batches = []

    class Watched(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            batches.append(len(images))
            return super().forward(images)

    for labels in ([0, 1], [0, 1, 2, 3, 4]):
        batches.clear()
        run("ppa", Watched(prior), prior, labels)
        assert max(batches) == 2 * SMALL.chunk * SMALL.candidates  # the search adds the mirror images


def test_a_nan_loss_is_a_clear_error(prior: ToyPrior) -> None:
    class Breaks(ToyTarget):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(images) * (math.nan if self.calls > 9 else 1.0)

    with pytest.raises(UserError, match="finite loss.*learning_rate"):
        run("ppa", Breaks(prior), prior, [0, 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least one"),
        ([0, CLASSES], f"classes 0 to {CLASSES - 1}, got {CLASSES}"),
        ([-1], "got -1"),
        ([1, 1], "repeated"),
        ([0.5], "whole numbers"),
    ],
)
def test_bad_labels_are_refused(target: ToyTarget, prior: ToyPrior, labels: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("ppa", target, prior, labels)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ppa", {"steps": 0}, "steps"),
        ("ppa", {"pool": 0}, "pool"),
        ("ppa", {"views": 2.5}, "views"),
        ("ppa", {"chunk": True}, "chunk"),
        ("ppa", {"keep": 17}, "keep"),
        ("ppa", {"candidates": 20, "pool": 10}, "candidates"),
        ("ppa", {"learning_rate": -1.0}, "learning_rate"),
        ("ppa", {"learning_rate": math.nan}, "learning_rate"),
        ("ppa", {"crop_scale": [0.9, 1.1]}, "crop scale"),
        ("ppa", {"milestones": [30, 40]}, "milestones"),
        ("ppa", {"prior_weight": -0.1}, "prior_weight"),
        ("ppa", {"restarts": 3}, "unknown key 'restarts'"),
        ("ifgmi", {"pool": 49}, "candidates: expected at most the pool of 49, got 50"),
        ("mirror", {"pool": 7}, "candidates: expected at most the pool of 7, got 8"),
        ("mirror", {"pool": 1, "candidates": 1}, "pool: expected at least 2, got 1"),
        ("gmi", {"candidates": 0}, "candidates"),
        ("gmi", {"keep": 6}, "keep"),
        ("gmi", {"momentum": 1.0}, "momentum"),
        ("gmi", {"clip": 0.0}, "clip"),
        ("gmi", {"realism": "vibes"}, "realism"),
        ("ppa", {"milestones": 0.5}, "ppa budget: expected values of the kinds .*milestones: 0.5"),
        ("ppa", {"crop_scale": 0.9}, "crop_scale: 0.9"),
        ("ppa", {"prior_weight": "1e-3"}, "YAML reads 1e-3 as text"),
        ("ifgmi", {"feature_steps": 5}, "feature_steps: 5"),
        ("ppa", {"fast": "no"}, "fast: expected true or false, got 'no'"),
    ],
)
def test_bad_budgets_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attacks.get(name).budget(**values)


def test_unfit_networks_are_refused(target: ToyTarget, prior: ToyPrior) -> None:
    with pytest.raises(UserError, match="8 px like the target's, got 16 px"):
        run("ppa", target, ToyPrior(16), [0])

    class Oracle(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.detach())

    with pytest.raises(UserError, match="target: .*gradients"):
        run("ppa", Oracle(prior), prior, [0])
    blind = ToyPrior()
    blind.matrix = blind.matrix.double()
    blind.synthesise = lambda latents: torch.full((len(latents), 3, SIZE, SIZE), 0.5)  # type: ignore
    with pytest.raises(UserError, match="prior: .*gradients"):
        run("gmi", target, blind, [0])
    with torch.no_grad():
        target.head.bias[0] = math.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        run("gmi", target, prior, [0])
    target.num_classes = 7
    with pytest.raises(UserError, match=r"shape \(1, 7\)"):
        run("gmi", target, prior, [0])


@pytest.mark.parametrize("name", [name for name in attacks.names() if attacks.get(name).prior])
def test_an_attack_on_one_kind_of_prior_refuses_others_before_any_work(prior: ToyPrior, name: str) -> None:
    class Silent(ToyTarget):
        def features(self, images: Tensor) -> Tensor:
            raise AssertionError("the target was asked")

    method, able = attacks.get(name), ToyPrior()
    able.name, able.critic, able.classes = "stylegan", lambda images: images.mean((1, 2, 3)), CLASSES
    known = Knowledge(public=smooth_images(9, SIZE), students=(ToyTarget(prior),))
    for given, found in ((prior, "got toy"), (able, f"a prior of kind {method.prior}, got stylegan")):
        with pytest.raises(UserError, match=f"^{name}: expected .*{found}.*; train {method.prior} against"):
            method.invert(Silent(prior), given, [0], budget=method.budget(), seed=0, knowledge=known)


def test_attacks_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"ppa", "gmi"} <= set(attacks.names())
    assert attacks.get("ppa").Budget is PpaBudget and attacks.get("gmi").invert.__wrapped__ is gmi.invert
    assert attacks.get("ppa").revision == 1 and attacks.get("ppa+eot4").revision == 2
    both = attacks.get("ppa+eot4+feature_shift")
    assert dataclasses.replace(both, own_revision=2).revision == both.revision + 1
    for place, part in enumerate(both.ingredients):
        changed = list(both.ingredients)
        changed[place] = dataclasses.replace(part, revision=part.revision + 1)
        assert dataclasses.replace(both, ingredients=tuple(changed)).revision == both.revision + 1, part.name
    assert attacks.get("ppa").budget(crop_scale=[0.8, 1.0], keep=4).crop_scale == (0.8, 1.0)
    with pytest.raises(UserError, match="expected one of .*gmi.*ppa.*got 'pppa'"):
        attacks.get("pppa")
    (tmp_path / "dropped_in.py").write_text("NAME = 'dropped_in'\nclass Budget: pass\ndef invert(): pass\n")
    from lib.attacks import registry

    monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(tmp_path)])
    registry._attacks.cache_clear()
    try:
        assert "dropped_in" in attacks.names()
        for name in ("ppa", "MyAttack"):
            (tmp_path / "dropped_too.py").write_text(
                f"NAME = {name!r}\nclass Budget: pass\ndef invert(): pass\n"
            )
            sys.modules.pop("lib.attacks.dropped_too", None)
            registry._attacks.cache_clear()
            with pytest.raises(TypeError, match=f"dropped_too: expected a NAME of its own .* got '{name}'"):
                attacks.names()
    finally:
        registry._attacks.cache_clear()


def test_published_defaults_are_the_defaults() -> None:
    budget = PpaBudget()
    assert (budget.pool, budget.candidates, budget.keep, budget.steps) == (2000, 16, 8, 50)
    assert budget.learning_rate == 0.005 and budget.views == 100 and budget.prior_weight == 0
    assert [round(m * budget.steps) for m in budget.milestones] == [30, 40]
    assert (GmiBudget().steps, GmiBudget().candidates, GmiBudget().identity_weight) == (1500, 5, 100.0)
    assert (GmiBudget().learning_rate, GmiBudget().momentum, GmiBudget().clip) == (0.02, 0.9, 1.0)
