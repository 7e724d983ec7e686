"""What Trap-MID uses: trap labels that stay balanced, the augmentation read off a map of coordinates, its
discriminator."""

import math

import pytest
import torch
from toys import bars

from lib.defences._trapdoors import Deck, Discriminator, draw_geometry

A = {"chance": 0.5, "area": 0.8, "degrees": 30}  # as published
IMAGES = bars().float(torch.arange(0, 36, 3))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- trap labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5, 62])
def test_no_class_is_ever_two_ahead_of_another(classes):
    deck, generator = Deck(classes), seeded()
    dealt = torch.empty(0, dtype=torch.int64)
    for count in (3, 12, 12, 1, 64):
        dealt = torch.cat([dealt, deck.deal(count, generator)])
        counts = dealt.bincount(minlength=classes)
        assert counts.max() - counts.min() <= 1
    assert len(dealt) == 92 and not torch.equal(dealt[:classes], dealt[classes : 2 * classes])


def test_every_order_is_equally_likely_and_an_epoch_begins_with_a_full_deck():
    deck, generator = Deck(3), seeded()
    first = torch.zeros(3, 3)
    for _ in range(3000):
        first[torch.arange(3), deck.deal(3, generator)] += 1 / 3000
    torch.testing.assert_close(first, torch.full((3, 3), 1 / 3), atol=0.04, rtol=0)
    deck.deal(1, generator)
    deck.restart()
    assert sorted(deck.deal(3, generator).tolist()) == [0, 1, 2]


# --- the augmentation ---------------------------------------------------------------------------------------


def test_the_augmentation_crops_mirrors_and_turns_half_of_the_images_each():
    """On an image of its own coordinates the map can be read off: x' = centre + side turn mirror x."""
    count, size = 4000, 17
    line = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    image = torch.stack([line.expand(size, -1), line[:, None].expand(-1, size), torch.ones(size, size)])
    seen = draw_geometry(count, seeded(), **A)(image.expand(count, -1, -1, -1))
    middle = size // 2
    centre = seen[:, :2, middle, middle]
    across = (seen[:, :2, middle, middle + 2] - centre) / (2 * 2 / size)
    down = (seen[:, :2, middle + 2, middle] - centre) / (2 * 2 / size)
    area = across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]
    mirrored, area = area < 0, area.abs()
    side, angle = area.sqrt(), torch.rad2deg(torch.atan2(-down[:, 0], down[:, 1]))
    angle = torch.where(mirrored, -angle, angle)
    cropped, turned = area < 1 - 1e-4, angle.abs() > 1e-2
    for happens in (mirrored, cropped, turned):
        assert happens.float().mean().item() == pytest.approx(0.5, abs=0.03)
    both = (mirrored & cropped & turned).float().mean().item()
    assert both == pytest.approx(1 / 8, abs=0.02), "independently"
    assert area.min() >= 0.8 - 1e-4 and area[cropped].mean().item() == pytest.approx(0.9, abs=0.01)
    assert angle.abs().max() <= 30.01 and angle[turned].mean().abs() < 1.5
    assert angle[turned].std().item() == pytest.approx(60 / math.sqrt(12), rel=0.05)
    assert (centre.abs() <= 1 - side[:, None] + 1e-4).all(), "the crop lies within the image"
    assert (seen[:, 2] - 1).abs().max() < 1e-5, "no black corners"


def test_an_augmentation_stays_as_drawn_and_gradients_pass():
    view = draw_geometry(12, seeded(), **A)
    assert torch.equal(view(IMAGES), view(IMAGES))
    assert not torch.equal(view(IMAGES), draw_geometry(12, seeded(1), **A)(IMAGES))
    x = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(view(x).sum(), x)
    assert (gradient != 0).float().mean() > 0.8


# --- the discriminator --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_the_discriminator_judges_photos_one_by_one(size):
    images = torch.rand(5, 3, size, size, generator=seeded())
    network = Discriminator().train()
    assert network(images).shape == (5,)
    torch.testing.assert_close(network(images)[3:4], network(images[3:4]))
