"""MIRROR: the P-space box, the learning-rate ramp, the best step; and the attack on a toy world."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toys import CLASSES, DIM, ToyPrior, ToyTarget

from lib import attacks
from lib.attacks import mirror
from lib.attacks.interface import storable
from lib.attacks.knowledge import Knowledge
from lib.attacks.mirror import Best, MirrorBudget, coins, ramp
from lib.attacks.pspace import Box, from_p, to_p
from lib.erasing import ErasingLaw
from lib.errors import UserError
from lib.priors import StylePrior
from lib.priors.stylegan import SLOPE
from lib.runtime import generator

SMALL = MirrorBudget(pool=40, candidates=4, keep=2, steps=30, views=3, chunk=2, learning_rate=0.2)


@pytest.fixture
def prior() -> ToyPrior:
    return ToyPrior()


@pytest.fixture
def target(prior: ToyPrior) -> ToyTarget:
    return ToyTarget(prior)


def test_p_space_is_before_the_leaky_relu() -> None:
    w = torch.tensor([-1.0, 0.0, 2.0])
    assert to_p(w, 0.2).tolist() == [-5.0, 0.0, 2.0], "slope .2 is undone by slope 5"
    torch.testing.assert_close(from_p(to_p(w, 0.2), 0.2), w)
    assert torch.equal(to_p(w, 1.0), w)
    assert StylePrior.slope == SLOPE


def test_the_box_is_mean_and_population_deviation_in_p_mapped_back() -> None:
    p = torch.tensor([[-2.0, 1.0], [0.0, 3.0]])
    box = Box.of(from_p(p, 0.2), slope=0.2, width=1.0)  # P: mean (-1, 2), population sd (1, 1)
    torch.testing.assert_close(box.spread, torch.ones(2))
    torch.testing.assert_close(box.low, torch.tensor([-0.4, 1.0]))  # -2 x .2
    torch.testing.assert_close(box.high, torch.tensor([0.0, 3.0]))
    latents = torch.tensor([[-9.0, 9.0], [-0.2, 2.0]])
    box.clamp_(latents)
    torch.testing.assert_close(latents, torch.tensor([[-0.4, 3.0], [-0.2, 2.0]]))
    with pytest.raises(UserError, match="at least 2 samples"):
        Box.of(p[:1], slope=0.2, width=1.0)


def test_the_ramp_rises_for_a_twentieth_and_falls_over_the_last_quarter() -> None:
    rates = [ramp(step, steps=200) for step in range(200)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0  # 10 steps up, never a step of zero
    assert all(rate == 1.0 for rate in rates[9:150])
    assert rates[175] == pytest.approx(0.5) and rates[-1] < 1e-3
    assert all(a >= b for a, b in zip(rates[150:], rates[151:], strict=False))


def test_the_best_step_is_kept_per_sample_or_per_group() -> None:
    first, second = torch.zeros(4, 1), torch.ones(4, 1)
    losses = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([0.0, 3.0, 2.0, -2.0])
    alone, grouped = Best(first, group=1), Best(first, group=2)
    for best in (alone, grouped):
        best.see(first, losses[0])
        best.see(second, losses[1])
    assert alone.latents[:, 0].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert grouped.latents[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]  # means 1.5 and 0 against 1


@pytest.mark.parametrize("ingredient", ["", "+feature_shift100"])
def test_what_is_kept_is_what_had_the_lowest_loss(
    target: ToyTarget, prior: ToyPrior, monkeypatch: pytest.MonkeyPatch, ingredient: str
) -> None:
    """Of all that was optimised: an ingredient's terms are part of the loss."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    see = Best.see
    monkeypatch.setattr(Best, "see", lambda best, *row: (seen.append(row), see(best, *row)))
    # steps so large that the end is not best
    budget = dataclasses.replace(SMALL, truncation=1.0, learning_rate=3.0)
    public = torch.randint(0, 256, (40, 3, *[target.image_size] * 2), dtype=torch.uint8)
    known = Knowledge(public=public, law=ErasingLaw())
    found = attacks.get(f"mirror{ingredient}").invert(
        target, prior, [0, 1], budget=budget, seed=0, knowledge=known
    )
    latents, losses = (torch.stack(rows) for rows in zip(*seen, strict=True))
    steps = losses.argmin(0)
    assert torch.equal(found.latents.flatten(0, 1), storable(latents[steps, torch.arange(8)]))
    assert (steps < budget.steps - 1).any() and (steps > 0).any(), "neither the first nor the last step"
    means = torch.tensor([row["loss"] for row in found.history])
    assert torch.allclose(losses.mean(1), means, atol=1e-4), "what is compared is the whole loss"


def test_latents_stay_in_the_box(target: ToyTarget, prior: ToyPrior) -> None:
    budget = dataclasses.replace(SMALL, truncation=1.0, width=0.5, steps=40)
    found = mirror.invert(target, prior, [0, 1, 2], budget=budget, seed=0)
    pool = prior.sample(budget.pool, generator=generator(0, "attack", "pool"))
    box = Box.of(pool, slope=1.0, width=0.5)
    moved = (found.latents != found.initial).any(-1)
    inside = (found.latents >= box.low - 1e-3) & (found.latents <= box.high + 1e-3)
    assert moved.any() and inside[moved].all()
    at_edge = ((found.latents - box.low).abs() < 1e-3) | ((found.latents - box.high).abs() < 1e-3)
    assert at_edge.any(), "the box must bind for this test to say anything"


def test_coins_belong_to_the_identity_or_to_the_step(target: ToyTarget) -> None:
    one, both = coins([3], budget=SMALL, seed=0), coins([1, 3], budget=SMALL, seed=0)
    assert torch.equal(one, both[:, 4:]) and not torch.equal(both[:, :4], both[:, 4:])
    shared = coins([1, 3], budget=dataclasses.replace(SMALL, reference=True), seed=0)
    assert (shared == shared[:, :1]).all() and 0.2 < shared[:, 0].float().mean() < 0.8


@pytest.mark.parametrize("reference", [False, True])
def test_mirror_beats_its_starts(target: ToyTarget, prior: ToyPrior, reference: bool) -> None:
    budget = dataclasses.replace(SMALL, reference=reference, truncation=0.9, width=2.0)
    found = mirror.invert(target, prior, torch.arange(CLASSES), budget=budget, seed=0)
    assert found.latents.shape == (CLASSES, 4, DIM) and len(found.history) == 30
    with torch.no_grad():
        wanted = found.labels.repeat_interleave(4)[:, None]
        p = [
            target.eval()(prior.synthesise(x.flatten(0, 1))).softmax(1).gather(1, wanted).mean()
            for x in (found.latents, found.initial)
        ]
    assert p[0] > p[1] + 0.05


def test_bad_budgets_are_refused() -> None:
    for values in ({"pool": 3, "candidates": 4}, {"width": 0.0}, {"truncation": 0.0}, {"steps": 0}):
        with pytest.raises(UserError, match="budget"):
            MirrorBudget(**values)
