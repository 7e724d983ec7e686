"""Losses, crops and the momentum step against closed forms and library functions."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import functional as reference
from toys import ToyPrior, ToyTarget

from lib.attacks.access import Access
from lib.attacks.gmi import descend
from lib.attacks.losses import cross_entropy, poincare
from lib.attacks.optimise import refine
from lib.attacks.transforms import apply_crops, draw_crops
from lib.errors import UserError
from lib.runtime import generator

ACCESS = Access(ToyTarget(ToyPrior()), ToyPrior(), fast=False)


def by_definition(logits: list[float], label: int) -> float:
    """The Poincare loss in Python floats, from the formula of the paper."""
    total = sum(abs(value) for value in logits)
    u = [value / total for value in logits]
    v = [1 - 1e-4 if index == label else 0.0 for index in range(len(logits))]
    squared = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
    gaps = (1 - sum(a * a for a in u)) * (1 - sum(b * b for b in v))
    return math.acosh(1 + 2 * squared / gaps)


@pytest.mark.parametrize("logits", [[3.0, -1.0, 0.5], [-2.0, 7.0, 0.1], [5.0, 0.01, -0.01], [1.0, 1.0, 1.0]])
def test_poincare_equals_its_definition(logits: list[float]) -> None:
    for label in range(3):
        computed = poincare(torch.tensor([logits]), torch.tensor([label])).item()
        assert computed == pytest.approx(by_definition(logits, label), rel=1e-4)


def test_poincare_of_equal_logits_in_closed_form() -> None:
    # u = (1/2, 1/2): ||u - v||^2 = (1/2 - .9999)^2 + 1/4, 1 - ||u||^2 = 1/2
    excess = 2 * ((0.5 - 0.9999) ** 2 + 0.25) / (0.5 * (1 - 0.9999**2))
    computed = poincare(torch.ones(1, 2), torch.tensor([0])).item()
    assert computed == pytest.approx(math.acosh(1 + excess), rel=1e-5)


def test_poincare_ignores_the_scale_but_not_a_shift() -> None:
    logits = torch.randn(6, 10, generator=generator(0, "logits"))
    labels = torch.arange(6)
    torch.testing.assert_close(poincare(logits, labels), poincare(logits * 37.0, labels))
    assert not torch.allclose(poincare(logits, labels), poincare(logits + 5.0, labels), atol=1e-3)


def test_poincare_of_random_logits_over_530_classes() -> None:
    logits = torch.randn(200, 530, generator=generator(0, "logits"))
    assert poincare(logits, torch.arange(200)).mean().item() == pytest.approx(math.acosh(1 + 1e4), abs=0.03)


@pytest.mark.parametrize(
    "logits", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, -4.0, 0.0], [1e30, 0.0, 0.0], [1e-30, 0.0, 0.0]]
)
def test_poincare_is_finite_where_the_definition_is_not(logits: list[float]) -> None:
    tensor = torch.tensor([logits], requires_grad=True)
    for label in range(3):
        value = poincare(tensor, torch.tensor([label])).sum()
        (gradient,) = torch.autograd.grad(value, tensor)
        assert value.isfinite() and gradient.isfinite().all()


def test_poincare_gradient_raises_the_target_share() -> None:
    logits = torch.randn(4, 5, generator=generator(1, "logits"), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3])
    before = poincare(logits, labels)
    (gradient,) = torch.autograd.grad(before.sum(), logits)
    assert (poincare(logits - 0.01 * gradient, labels) < before).all()


def test_losses_are_fp32_and_per_sample() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    labels = torch.tensor([0, 1])
    expected = torch.tensor([math.log1p(math.exp(-2)), math.log(2)])
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    assert poincare(logits, labels).dtype == torch.float32 and poincare(logits, labels).shape == (2,)


def test_momentum_step_equals_the_published_formula() -> None:
    matrix = torch.randn(6, 6, generator=generator(0, "matrix"))
    start = torch.randn(3, 6, generator=generator(0, "start"))

    def objective(latents: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss = (latents @ matrix - 2.0).square().sum(1)
        return loss, loss.detach()

    for clip in (None, 0.7):
        z, velocity = start.clone(), torch.zeros_like(start)
        for _ in range(20):
            gradient = 2 * (z @ matrix - 2.0) @ matrix.T
            new = 0.9 * velocity - 0.01 * gradient
            z = z - 0.9 * velocity + 1.9 * new
            z = z if clip is None else z.clamp(-clip, clip)
            velocity = new
        found, _ = descend(ACCESS, start, objective, steps=20, learning_rate=0.01, momentum=0.9, clip=clip)
        torch.testing.assert_close(found, z, atol=1e-4, rtol=1e-4)
        if clip is not None:
            assert found.abs().max() <= clip
            assert (found.abs() == clip).any(), "the box must bind for this test to say anything"


def test_a_sample_moves_alike_alone_and_in_company() -> None:
    start = torch.randn(5, 4, generator=generator(0, "start"))

    def objective(latents: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss = (latents - 3.0).pow(4).sum(1)
        return loss, loss.detach()

    def run(part: torch.Tensor) -> torch.Tensor:
        return descend(ACCESS, part, objective, steps=10, learning_rate=1e-3, momentum=0.9, clip=None)[0]

    torch.testing.assert_close(run(start)[2:3], run(start[2:3]), atol=0, rtol=0)


def test_adam_with_small_betas_never_moves_further_than_the_learning_rate() -> None:
    start = torch.randn(8, 5, generator=generator(0, "start"))
    labels = torch.arange(8) % 5

    def objective(latents: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return poincare(latents, labels), labels.float()

    found, history = refine(
        ACCESS,
        start,
        objective,
        steps=30,
        optimiser=lambda p: torch.optim.Adam(p, lr=0.005, betas=(0.1, 0.1)),
    )
    assert (found - start).abs().max() <= 30 * 0.005 * 1.001
    assert history[-1, 0] < history[0, 0]


def test_the_whole_image_as_crop_returns_the_image() -> None:
    images = torch.rand(3, 3, 8, 8, generator=generator(0, "images"))
    crops = draw_crops(3, scale=(1.0, 1.0), generator=generator(0, "crops"))
    torch.testing.assert_close(apply_crops(images, crops), images, atol=1e-6, rtol=0)
    mirrored = draw_crops(3, scale=(1.0, 1.0), mirror=1.0, generator=generator(0, "crops"))
    torch.testing.assert_close(apply_crops(images, mirrored), images.flip(-1), atol=1e-6, rtol=0)


def test_whole_pixel_crops_equal_torchvision() -> None:
    size = 16
    images = torch.rand(40, 3, size, size, generator=generator(0, "images"))
    crops = draw_crops(
        40,
        scale=(0.3, 0.9),
        ratio=(0.6, 1.7),
        mirror=0.5,
        generator=generator(0, "crops"),
        whole_pixels=size,
    )
    found = apply_crops(images, crops)
    for image, crop, ours in zip(images, crops, found, strict=True):
        top, left, height, width = (round(value * size) for value in crop[:4].tolist())
        for antialias in (True, False):
            theirs = reference.resized_crop(
                image, top, left, height, width, [size, size], antialias=antialias
            )
            theirs = theirs.flip(-1) if crop[4] else theirs
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_crops_follow_their_law() -> None:
    crops = draw_crops(4000, scale=(0.5, 0.9), ratio=(0.8, 1.2), mirror=0.25, generator=generator(0, "crops"))
    top, left, height, width, mirrored = crops.unbind(-1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 1 + 1e-6).all() and (left + width <= 1 + 1e-6).all()
    area, aspect = height * width, width / height
    assert area.min() >= 0.5 - 1e-4 and area.max() <= 0.9 + 1e-4
    assert aspect.min() >= 0.8 - 1e-4 and aspect.max() <= 1.2 + 1e-4
    assert area.mean().item() == pytest.approx(0.7, abs=0.01)
    assert mirrored.mean().item() == pytest.approx(0.25, abs=0.03)
    share = (left / (1 - width))[width < 0.95]
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_crop_that_cannot_fit_is_the_whole_image() -> None:
    crops = draw_crops(5, scale=(1.0, 1.0), ratio=(2.0, 2.0), generator=generator(0, "crops"))
    torch.testing.assert_close(crops[:, :4], torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(5, 4))


def test_one_draw_per_sample_or_shared_by_the_batch() -> None:
    images = torch.rand(1, 3, 12, 12, generator=generator(0, "image")).expand(6, -1, -1, -1)
    own, shared = (
        apply_crops(
            images, draw_crops(count, scale=(0.5, 0.9), generator=generator(0, "crops"), whole_pixels=size)
        )
        for count, size in ((6, None), (1, 12))
    )
    assert (own - own[:1]).abs().flatten(1).max(1).values[1:].min() > 1e-3
    torch.testing.assert_close(shared, shared[:1].expand_as(shared), atol=0, rtol=0)


def test_gradients_flow_through_crops() -> None:
    images = torch.rand(2, 1, 5, 5, generator=generator(0, "i"), dtype=torch.float64, requires_grad=True)
    crops = draw_crops(2, scale=(0.4, 0.9), mirror=0.5, generator=generator(0, "crops"))
    assert torch.autograd.gradcheck(lambda x: apply_crops(x, crops), [images])


@pytest.mark.parametrize("scale", [(0.0, 0.5), (0.9, 0.5), (0.5, 1.2)])
def test_impossible_crops_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="crop scale"):
        draw_crops(2, scale=scale, generator=generator(0, "crops"))
