"""PPDG-MI: the set distances, the projection and the tuning; and the attack through a toy StyleGAN."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from toys import STYLE, KilledError, LinearTarget, equal, smooth_images

from lib import attacks
from lib.attacks import ppa, ppdg, tuning
from lib.attacks.access import Access
from lib.attacks.knowledge import Knowledge
from lib.attacks.ppa import PpaBudget
from lib.attacks.ppdg import PpdgBudget
from lib.erasing import ErasingLaw
from lib.errors import UserError
from lib.priors import Eigenfaces, StylePrior
from lib.priors.stylegan import build_networks
from lib.runtime import generator
from lib.store import Checkpoint

SMALL = PpdgBudget(
    pool=12, candidates=3, keep=2, steps=4, views=3, chunk=2, learning_rate=0.05,
    private=2, pivot_steps=6, tune_steps=5, tune_rate=0.01,
)  # fmt: skip


@pytest.fixture(scope="module")
def prior() -> StylePrior:
    return StylePrior(*build_networks(STYLE, seed=0))


@pytest.fixture
def target() -> LinearTarget:
    return LinearTarget()


def cloud(count: int, seed: int) -> Tensor:
    return torch.randn(count, 5, generator=generator(seed, "cloud"), dtype=torch.float64)


def test_pointwise_is_the_mean_squared_distance() -> None:
    made, wanted = cloud(3, 0), cloud(3, 1)
    by_hand = sum(float(((a - b) ** 2).sum()) for a, b in zip(made, wanted, strict=True)) / 3
    assert tuning.pointwise(made, wanted).item() == pytest.approx(by_hand)


def test_transport_by_hand() -> None:
    made, wanted = cloud(3, 0), cloud(4, 1)
    inner = [[float(t @ s) for s in made] for t in wanted]
    cost = [[1 - float(t @ s / (t.norm() * s.norm())) for s in made] for t in wanted]
    e = torch.tensor(inner, dtype=torch.float64).exp()
    c = torch.tensor(cost, dtype=torch.float64)
    there = sum((c[:, j] * e[:, j] / e[:, j].sum()).sum() for j in range(3)) / 3
    back = sum((c[i] * e[i] / e[i].sum()).sum() for i in range(4)) / 4
    assert tuning.transport(made, wanted).item() == pytest.approx(float(there + back) / 2)
    one = torch.tensor([[2.0, 0.0]])
    assert tuning.transport(one, 3 * one).item() == pytest.approx(0, abs=1e-7), (
        "the same direction costs nothing"
    )
    assert tuning.transport(one, torch.tensor([[0.0, 1.0]])).item() == pytest.approx(1)


def test_discrepancy_by_hand_and_zero_for_equal_sets() -> None:
    made, wanted = cloud(3, 0), cloud(4, 1)
    both = torch.cat([made, wanted])
    d = torch.stack([((a - b) ** 2).sum() for a in both for b in both]).view(7, 7)
    b = d.sum() / 42
    k = sum(torch.exp(-d / (b * scale)) for scale in (0.25, 0.5, 1, 2, 4))
    by_hand = k[:3, :3].mean() + k[3:, 3:].mean() - 2 * k[:3, 3:].mean()
    assert tuning.discrepancy(made, wanted).item() == pytest.approx(by_hand.item())
    assert tuning.discrepancy(made, made).item() == pytest.approx(0, abs=1e-12)
    assert tuning.discrepancy(made, made + 5).item() > 1


def test_the_projection_rate_rises_and_falls() -> None:
    rates = [tuning.ramp(step, steps=100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == rates[60] == 1
    assert rates[-1] < 0.01 and all(a >= b for a, b in zip(rates[74:], rates[75:], strict=False))


@pytest.mark.parametrize("mode", list(ppdg.DISTANCES))
def test_tuning_makes_the_images_of_the_pivots(prior: StylePrior, target: LinearTarget, mode: str) -> None:
    distance, access = ppdg.DISTANCES[mode], Access(target, prior, fast=False)
    before = {name: tensor.clone() for name, tensor in prior.state().items()}
    wanted = torch.rand(4, 3, 32, 32, generator=generator(0, "wanted"))
    own = tuning.tunable(access)
    pivots = tuning.project(
        own, wanted, distance, steps=5, learning_rate=0.01, noise=generator(0, "projection")
    )

    def left(seen: Access) -> float:
        with torch.no_grad():
            return distance(tuning.describe(seen, seen.images(pivots)), tuning.describe(seen, wanted)).item()

    start = left(access)
    tuning.tune(own, pivots, wanted, distance, steps=25, learning_rate=0.01)
    assert left(own) < 0.8 * start and left(access) == start
    assert all(torch.equal(tensor, before[name]) for name, tensor in prior.state().items()), (
        "a copy was tuned"
    )
    assert not any(weight.requires_grad for block in own.prior.blocks() for weight in block.parameters())
    assert own.counts is access.counts and access.counts["target_backward"] >= 25 * 4


def test_the_projection_comes_nearer_than_the_mean(prior: StylePrior, target: LinearTarget) -> None:
    access = Access(target, prior, fast=False)
    latents = prior.sample(3, generator=generator(1, "latents"))
    wanted = access.images(latents)

    def left(found: Tensor) -> float:
        with torch.no_grad():
            return tuning.pointwise(
                tuning.describe(access, access.images(found)), tuning.describe(access, wanted)
            ).item()

    mean = prior.sample(3, generator=generator(1, "mean"), truncation=0.0)
    pivots = tuning.project(
        access, wanted, tuning.pointwise, steps=60, learning_rate=0.05, noise=generator(0, "p")
    )
    assert left(pivots) < 0.5 * left(mean)
    assert not torch.allclose(pivots, latents), "from the mean, not from the latents that are known"


def test_one_round_is_ppa(prior: StylePrior, target: LinearTarget) -> None:
    single = dataclasses.replace(SMALL, rounds=1)
    shared = {f.name: getattr(single, f.name) for f in dataclasses.fields(PpaBudget)}
    found = ppdg.invert(target, prior, [0, 2], budget=single, seed=0)
    plain = ppa.invert(target, prior, [0, 2], budget=PpaBudget(**shared), seed=0)
    assert torch.equal(found.latents, plain.latents) and torch.equal(found.initial, plain.initial)
    assert found.history == plain.history and found.attack == "ppdg"
    assert torch.equal(found.selected, plain.selected)
    passes = ("target_forward", "target_backward", "synthesis")
    assert [found.cost[name] for name in passes] == [plain.cost[name] for name in passes]
    images = prior.synthesise(plain.latents.flatten(0, 1)).unflatten(0, (2, 3))
    assert (found.images.float() / 255 - images).abs().max() <= 0.5 / 255 + 1e-6


def test_every_identity_starts_from_the_given_generator(prior: StylePrior, target: LinearTarget) -> None:
    before = {name: tensor.clone() for name, tensor in prior.state().items()}
    together = ppdg.invert(target, prior, [2, 0, 1], budget=SMALL, seed=0)
    alone = ppdg.invert(target, prior, [1], budget=SMALL, seed=0)
    torch.testing.assert_close(together.latents[2:], alone.latents, atol=2e-3, rtol=0)
    apart = (together.images[2:].int() - alone.images.int()).abs()
    assert apart.float().mean() < 0.5, "neither the company nor the order matters, up to rounding"
    assert all(torch.equal(tensor, before[name]) for name, tensor in prior.state().items())
    assert len(together.history) == 2 * SMALL.steps and together.images.shape == (3, 3, 3, 32, 32)


def test_the_tuned_generators_images_are_kept_and_judged(prior: StylePrior, target: LinearTarget) -> None:
    found = ppdg.invert(target, prior, [0, 1], budget=SMALL, seed=0)
    of_the_given = prior.synthesise(found.latents.flatten(0, 1)).unflatten(0, (2, 3))
    assert (found.images.float() / 255 - of_the_given).abs().mean() > 2 / 255
    logits = target(found.images.flatten(0, 1).float() / 255).view(2, 3, -1)
    loss = torch.stack([ppa.poincare(logits[i], torch.full((3,), i)) for i in range(2)])
    torch.testing.assert_close(found.loss, loss, atol=1e-3, rtol=1e-3)
    again = ppdg.invert(target, prior, [0, 1], budget=SMALL, seed=0)
    assert equal(found, again)


def test_an_interrupted_attack_has_the_bits_of_the_whole(
    prior: StylePrior, target: LinearTarget, tmp_path
) -> None:
    budget = dataclasses.replace(SMALL, chunk=1)
    whole = ppdg.invert(target, prior, [0, 1], budget=budget, seed=0)

    def kill(row: dict) -> None:
        if row["stage"] == "ppdg":
            raise KilledError

    checkpoint = Checkpoint(tmp_path / "ppdg.checkpoint", every=0.0)
    with pytest.raises(KilledError):
        ppdg.invert(target, prior, [0, 1], budget=budget, seed=0, checkpoint=checkpoint, callback=kill)
    assert equal(ppdg.invert(target, prior, [0, 1], budget=budget, seed=0, checkpoint=checkpoint), whole)


def test_all_passes_are_counted(prior: StylePrior, target: LinearTarget) -> None:
    one = ppdg.invert(target, prior, [0], budget=dataclasses.replace(SMALL, rounds=1), seed=0).cost
    two = ppdg.invert(target, prior, [0], budget=SMALL, seed=0).cost
    b = SMALL
    projected, tuned = b.private * (b.pivot_steps + 1), b.private * (b.tune_steps + 1)
    attack = 2 * b.pool + b.candidates * (b.steps + b.views + 1)
    assert two["target_forward"] - one["target_forward"] == projected + tuned + attack
    backward = b.private * (b.pivot_steps + b.tune_steps) + b.candidates * b.steps
    assert two["target_backward"] - one["target_backward"] == backward


def test_what_cannot_be_tuned_is_refused(target: LinearTarget) -> None:
    faces = Eigenfaces.fit(smooth_images(20, 32), components=4)
    with pytest.raises(UserError, match="synthesis can be trained, got eigenfaces"):
        ppdg.invert(target, faces, [0], budget=SMALL, seed=0)
    for wrong in ({"mode": "lpips"}, {"rounds": 0}, {"private": 4}, {"tune_rate": 0.0}, {"pivot_steps": 0}):
        with pytest.raises(UserError, match=f"budget {next(iter(wrong))}"):
            dataclasses.replace(SMALL, **wrong)


def test_a_mode_brings_its_published_constants() -> None:
    assert (PpdgBudget().private, PpdgBudget().pivot_steps, PpdgBudget().tune_steps) == (5, 300, 150)
    other = PpdgBudget(mode="transport")
    assert (other.private, other.pivot_steps, other.tune_steps) == (10, 150, 25)
    assert PpdgBudget(candidates=4, keep=4).private == 4 and SMALL.short().tune_steps == 1
    assert SMALL.work > 2 * dataclasses.replace(SMALL, rounds=1).work


def test_an_adapted_targets_draws_do_not_depend_on_the_company(
    prior: StylePrior, target: LinearTarget
) -> None:
    method = attacks.get("ppdg+eot2")
    budget = dataclasses.replace(SMALL, chunk=3)
    alone, together = (
        method.invert(target, prior, labels, budget=budget, seed=0, knowledge=Knowledge(law=ErasingLaw()))
        for labels in ([2], [0, 1, 2])
    )
    torch.testing.assert_close(alone.latents[0], together.latents[2], atol=2e-3, rtol=0)
    torch.testing.assert_close(alone.confidence[0], together.confidence[2], atol=2e-3, rtol=0)


def test_the_pseudo_private_may_be_more_than_are_kept(
    prior: StylePrior, target: LinearTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(access: Access, images: Tensor, *rest: object, **options: object) -> Tensor:
        seen.append(images)
        return tuning.project(access, images, *rest, **options)

    monkeypatch.setattr(ppdg, "project", watched)
    few = dataclasses.replace(SMALL, keep=1, private=2)
    ppdg.invert(target, prior, [0], budget=few, seed=0)
    single = ppdg.invert(target, prior, [0], budget=dataclasses.replace(few, rounds=1), seed=0)
    best = single.confidence[0].argsort(descending=True)[:2]
    assert len(seen) == 1 and torch.equal(seen[0], single.images[0, best].float() / 255)
