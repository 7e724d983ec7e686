"""IF-GMI: the l1 projection, opening the generator, the balls; and the attack through a toy StyleGAN."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from toys import STYLE, LinearTarget, ToyPrior, ToyTarget

from lib.attacks import Reconstructions, ifgmi
from lib.attacks.access import Access
from lib.attacks.ifgmi import IfgmiBudget, State, project_l1
from lib.errors import UserError
from lib.priors import StylePrior
from lib.priors.stylegan import build_networks
from lib.runtime import generator

SMALL = IfgmiBudget(
    pool=12, candidates=3, keep=2, steps=4, feature_steps=(3, 3), views=3, chunk=1, learning_rate=0.05
)


@pytest.fixture(scope="module")
def prior() -> StylePrior:
    return StylePrior(build_networks(STYLE, seed=0)[0])


def simplex_projection(values: Tensor, radius: float) -> Tensor:
    """The textbook algorithm, with a sort, for one vector."""
    if values.abs().sum() <= radius:
        return values
    size = values.abs().sort(descending=True).values
    total = size.cumsum(0)
    place = torch.arange(1, len(size) + 1)
    last = int(torch.nonzero(place * size > total - radius).max())
    theta = (total[last] - radius) / (last + 1)
    return values.sign() * (values.abs() - theta).clamp_min(0)


@pytest.mark.parametrize("radius", [0.05, 1.0, 7.0, 1000.0])
def test_l1_projection_equals_the_simplex_algorithm(radius: float) -> None:
    values = torch.randn(6, 40, generator=generator(0, "values"), dtype=torch.float64)
    values[0] *= 1e-3
    values[1, 5] = 100.0
    wanted = torch.stack([simplex_projection(row, radius) for row in values])
    found = project_l1(values, radius)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    assert (found.abs().sum(1) <= radius + 1e-9).all()


def test_a_point_in_the_ball_is_left_alone_bit_for_bit() -> None:
    values = torch.randn(3, 10, generator=generator(0, "values"))
    assert torch.equal(project_l1(values, 1000.0), values)
    assert torch.equal(project_l1(torch.zeros(2, 4), 1.0), torch.zeros(2, 4))


def test_opening_the_generator_changes_nothing(prior: StylePrior) -> None:
    access = Access(LinearTarget(), prior, fast=False)
    latents = prior.sample(2, generator=generator(0, "latents"))
    blocks, at = prior.blocks(), State(latents)
    for stage in range(3):
        again = at.unpack(at.pack())
        torch.testing.assert_close(ifgmi._render(access, blocks[stage:], again), prior.synthesise(latents))
        features, rgb = blocks[stage](at.features, at.rgb, latents)
        at = State(latents, features, rgb)


def run(prior: StylePrior, budget: IfgmiBudget = SMALL, labels: tuple[int, ...] = (2, 0)) -> Reconstructions:
    return ifgmi.invert(LinearTarget(), prior, list(labels), budget=budget, seed=0)


def test_the_result_carries_its_images_and_they_beat_the_starts(prior: StylePrior) -> None:
    found = run(prior, dataclasses.replace(SMALL, learning_rate=0.2, crop_scale=(1.0, 1.0)))
    assert found.images.shape == (2, 3, 3, 32, 32) and found.images.dtype == torch.uint8
    assert len(found.history) == 4 + 3 + 3
    with torch.no_grad():
        wanted = found.labels.repeat_interleave(3)[:, None]
        start = LinearTarget()(prior.synthesise(found.initial.flatten(0, 1))).softmax(1).gather(1, wanted)
        end = LinearTarget()(found.render(torch.arange(6), prior.synthesise)).softmax(1).gather(1, wanted)
    assert end.mean() > start.mean() + 0.02
    again = Reconstructions.from_tensors(found.to_tensors(), found.meta())
    assert torch.equal(again.images, found.images) and again.images.dtype == torch.uint8


def test_features_reach_images_that_latents_do_not(prior: StylePrior) -> None:
    found = run(prior)
    with torch.no_grad():
        by_latents = prior.synthesise(found.latents.flatten(0, 1))
    gap = (found.images.flatten(0, 1).float() / 255 - by_latents).abs().mean()
    assert gap > 0.01


def test_a_tight_ball_binds_and_a_wide_one_does_not(
    prior: StylePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[float, float]] = []

    def watched(values: Tensor, radius: float) -> Tensor:
        moved.append((float(values.abs().sum(1).max()), radius))
        return project_l1(values, radius)

    monkeypatch.setattr(ifgmi, "project_l1", watched)
    run(prior, dataclasses.replace(SMALL, radius=(1.0,)), (1,))
    assert moved and all(length <= radius * 1.001 for length, radius in moved)
    moved.clear()
    run(prior, dataclasses.replace(SMALL, radius=(0.02,)), (1,))
    assert any(length > radius for length, radius in moved)


def test_the_reference_starts_a_stage_from_an_empty_image(prior: StylePrior) -> None:
    fixed, jumping = (run(prior, dataclasses.replace(SMALL, reference=r)) for r in (False, True))

    def jump(found: Reconstructions) -> float:
        losses = [row["loss"] for row in found.history]
        return abs(losses[4] - losses[3])

    assert jump(jumping) > 1.5 * jump(fixed)


def test_an_identity_does_not_depend_on_its_company(prior: StylePrior) -> None:
    alone, together = run(prior, labels=(0,)), run(prior, labels=(2, 0))
    torch.testing.assert_close(alone.latents[0], together.latents[1])


def test_a_prior_without_blocks_is_refused() -> None:
    toy = ToyPrior()
    toy.blocks = list
    with pytest.raises(UserError, match="at least 3 blocks"):
        ifgmi.invert(ToyTarget(toy), toy, [0], budget=SMALL, seed=0)


@pytest.mark.parametrize(
    "values",
    [{"feature_steps": ()}, {"feature_steps": (0,)}, {"radius": (0.0,)}, {"latent_radius": 0}],
)
def test_bad_budgets_are_refused(values: dict) -> None:
    with pytest.raises(UserError, match="budget"):
        IfgmiBudget(**values)
