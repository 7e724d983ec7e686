"""Erasing: exposure against the reference table, law against torchvision, fills, fixed masks, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision import transforms

from lib.erasing import (
    LOCATIONS,
    REFERENCE_GREY,
    SHAPES,
    VALUES,
    ErasingLaw,
    draw_mask,
    draw_view,
    erase,
    expected_exposure,
    exposure,
    mean_area,
)
from lib.errors import UserError

S = 64
POSITIONS = {"centre": (32, 32), "quarter": (16, 16), "mid_edge": (0, 32), "corner": (0, 0)}
# Range of the area; mean area, centre, (S/4, S/4), mid-edge, corner at S = 64, with the decimals published.
TABLE = [
    ((0.1, 0.1), (".098", ".20", ".14", ".01", ".0005")),
    ((0.25, 0.25), (".25", ".94", ".26", ".03", ".001")),
    ((0.1, 0.4), (".25", ".76", ".28", ".03", ".001")),
    ((0.4, 0.4), (".39", "1.00", ".46", ".04", ".002")),
    ((0.5, 0.5), (".49", "1.00", ".72", ".05", ".003")),
    ((0.1, 0.8), (".45", ".90", ".62", ".05", ".004")),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images_of(batch, size=16, seed=0):
    return torch.rand(batch, 3, size, size, generator=seeded(seed))


def source_for(law, seed=0):
    return {"seed": seed} if law.location in ("per_image", "fixed") else {"generator": seeded(seed)}


def masks_of(law, batch, size=16, seed=0):
    return draw_mask(law, torch.arange(batch), size, **source_for(law, seed))


def extents(mask):
    """Height, width, top and left of the one rectangle in each mask (B, S, S)."""
    rows, columns = mask.any(2), mask.any(1)
    return rows.sum(1), columns.sum(1), rows.int().argmax(1), columns.int().argmax(1)


# --- exposure ---------------------------------------------------------------------------------------------


def near(value, published, slack=0.0):
    """Within the rounding of the published decimals (a twentieth more: .2654 is printed as .26)."""
    unit = 10.0 ** -len(published.split(".")[1])
    return abs(value - float(published)) <= 0.55 * unit + slack


@pytest.mark.parametrize(("scale", "published"), TABLE)
def test_exact_exposure_is_the_published_table(scale, published):
    exact = expected_exposure(ErasingLaw(scale=scale), S)
    values = [exact.mean().item()] + [exact[place].item() for place in POSITIONS.values()]
    assert all(near(value, text) for value, text in zip(values, published, strict=True)), values


@pytest.mark.parametrize(("scale", "published"), TABLE)
def test_drawn_exposure_is_the_published_table(scale, published):
    draws = 6000
    drawn = exposure(ErasingLaw(scale=scale), S, draws=draws, generator=seeded())
    for place, text in zip(POSITIONS.values(), published[1:], strict=True):
        q = float(text)
        slack = 4 * math.sqrt(max(q * (1 - q), 1 / draws) / draws)
        assert near(drawn[place].item(), text, slack), (place, drawn[place].item(), text)
    # The drawn area has at most the spread of a uniform one.
    slack = 4 * (scale[1] - scale[0]) / math.sqrt(12 * draws)
    assert near(drawn.mean().item(), published[0], slack)


@pytest.mark.parametrize("scale", [(0.1, 0.4), (0.3, 0.95)])
def test_drawn_exposure_agrees_with_the_exact_one_everywhere(scale):
    law, size, draws = ErasingLaw(scale=scale, p=0.7), 16, 20000
    exact = expected_exposure(law, size)
    error = (exposure(law, size, draws=draws, generator=seeded()) - exact).abs()
    assert (error <= 5 * (exact * (1 - exact) / draws).sqrt() + 1e-3).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_toroidal_exposure_is_uniform(shape):
    law = ErasingLaw(scale=(0.1, 0.4), location="toroidal", shape=shape, count=3 if shape == "squares" else 1)
    size, draws = 16, 8000
    drawn = exposure(law, size, draws=draws, generator=seeded())
    mean = drawn.mean().item()
    assert abs(mean - 0.25) < 0.01
    standard_error = math.sqrt(mean * (1 - mean) / draws)
    assert (drawn - mean).abs().max() < 5 * standard_error
    bounded = ErasingLaw(scale=(0.1, 0.4), shape=law.shape, count=law.count)
    if shape != "pixels":
        assert (exposure(bounded, size, draws=500, generator=seeded()) - mean).abs().max() > 0.2


def test_toroidal_corners_are_uniform_over_the_whole_image():
    mask = masks_of(ErasingLaw(scale=(0.3, 0.3), location="toroidal"), 8000)
    rows, columns = mask.any(2), mask.any(1)
    top, left = ((band & ~band.roll(1, 1)).int().argmax(1) for band in (rows, columns))
    assert (rows.sum(1) == 9).all() and (columns.sum(1) == 9).all()
    assert stats.chisquare(torch.bincount(top * 16 + left, minlength=256).numpy()).pvalue > 1e-4


def test_toroidal_exact_exposure_is_the_mean_area():
    exact = expected_exposure(ErasingLaw(scale=(0.5, 0.5), location="toroidal"), S)
    assert torch.allclose(exact, torch.full_like(exact, 45**2 / 64**2))
    assert mean_area(ErasingLaw(scale=(0.5, 0.5)), S) == pytest.approx(45**2 / 64**2)
    assert mean_area(ErasingLaw(scale=(0.3, 0.3), shape="pixels"), 16) == pytest.approx(77 / 256)


def test_half_area_in_bounds_never_shows_the_centre():
    mask = masks_of(ErasingLaw(scale=(0.5, 0.5)), 500, S)
    hidden = mask.all(0)
    assert hidden[19:45, 19:45].all() and hidden.sum() == 26**2


# --- one image, against torchvision -------------------------------------------------------------------------


def torchvision_masks(count, seed=0, **options):
    torch.manual_seed(seed)
    transform = transforms.RandomErasing(value=1, **options)
    blank = torch.zeros(1, 16, 16)
    return torch.stack([transform(blank)[0] > 0 for _ in range(count)])


def same_distribution(first, second):
    """p value of a chi-square test that two samples of small integers have one distribution."""
    levels = int(max(first.max(), second.max())) + 1
    counts = torch.stack([torch.bincount(sample, minlength=levels) for sample in (first, second)])
    counts = counts[:, counts.sum(0) > 0]
    rare = counts.sum(0) < 20
    if rare.any():
        counts = torch.cat([counts[:, ~rare], counts[:, rare].sum(1, keepdim=True)], 1)
    return 1.0 if counts.shape[1] == 1 else stats.chi2_contingency(counts.numpy()).pvalue


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"scale": (0.1, 0.4)}, {"p": 1, "scale": (0.1, 0.4), "ratio": (1, 1)}),
        ({"scale": (0.1, 0.99), "p": 0.6}, {"p": 0.6, "scale": (0.1, 0.99), "ratio": (1, 1)}),
        (
            {"scale": (0.05, 0.8), "ratio": (0.3, 3.3), "shape": "rectangle"},
            {"p": 1, "scale": (0.05, 0.8), "ratio": (0.3, 3.3)},
        ),
    ],
)
def test_single_images_follow_the_law_of_torchvision(ours, theirs):
    count = 4000
    mine = extents(masks_of(ErasingLaw(**ours), count))
    reference = extents(torchvision_masks(count, **theirs))
    for name, first, second in zip(("height", "width", "top", "left"), mine, reference, strict=True):
        assert same_distribution(first, second) > 1e-4, name
    # Size and place together: the lower right corner, and the joint table of height and width.
    assert same_distribution(mine[0] + mine[2], reference[0] + reference[2]) > 1e-4
    assert same_distribution(mine[0] * 17 + mine[1], reference[0] * 17 + reference[1]) > 1e-4


def test_corners_reach_both_ends_uniformly():
    height, width, top, left = extents(masks_of(ErasingLaw(scale=(0.25, 0.25)), 4000))
    assert (height == 8).all() and (width == 8).all()
    for corner in (top, left):
        assert stats.chisquare(torch.bincount(corner, minlength=9).numpy()).pvalue > 1e-4
    assert abs(torch.corrcoef(torch.stack([top, left]).float())[0, 1]) < 0.06


def test_a_square_that_never_fits_leaves_the_image_intact():
    assert not masks_of(ErasingLaw(scale=(0.98, 0.99)), 50, 8).any()


def test_batch_draws_differ_between_images():
    assert masks_of(ErasingLaw(), 64).flatten(1).unique(dim=0).shape[0] > 55


# --- fixed masks --------------------------------------------------------------------------------------------


def test_per_image_masks_depend_on_seed_and_index_only():
    law = ErasingLaw(location="per_image")
    everyone = masks_of(law, 300, S, seed=7)
    some = torch.tensor([250, 3, 3, 17])
    assert torch.equal(draw_mask(law, some, S, seed=7), everyone[some])
    assert everyone.flatten(1).unique(dim=0).shape[0] > 290
    other = masks_of(law, 300, S, seed=7 + 2**40)
    assert (everyone != other).flatten(1).any(1).float().mean() > 0.97


def test_per_image_masks_have_the_law_of_random_ones():
    fixed = extents(masks_of(ErasingLaw(location="per_image"), 6000, seed=3))
    fresh = extents(masks_of(ErasingLaw(), 6000))
    for first, second in zip(fixed, fresh, strict=True):
        assert same_distribution(first, second) > 1e-4
    # Neighbouring indices are unrelated.
    top = fixed[2].float()
    assert abs(torch.corrcoef(torch.stack([top[:-1], top[1:]]))[0, 1]) < 0.05


def test_fixed_masks_are_one_for_all_and_change_with_the_seed():
    law = ErasingLaw(location="fixed", scale=(0.2, 0.2))
    mask = masks_of(law, 5, seed=1)
    assert (mask == mask[0]).all() and mask[0].any()
    assert len({tuple(masks_of(law, 1, seed=seed).flatten().tolist()) for seed in range(20)}) > 10
    assert set(exposure(law, 16, draws=10, seed=1).unique().tolist()) == {0.0, 1.0}


def test_per_image_noise_is_the_same_at_every_visit():
    law = ErasingLaw(location="per_image", value="noise")
    images, index = images_of(4), torch.arange(4)
    first, mask = erase(images, law, index=index, seed=1)
    again, _ = erase(torch.zeros_like(images), law, index=index, seed=1)
    inside = mask[:, None].expand_as(images)
    assert torch.equal(first[inside], again[inside])


# --- fills --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "colour"),
    [
        ("grey", (0.7425, 0.728, 0.703)),
        ("mean", (0.485, 0.456, 0.406)),
        ("black", (0.0, 0.0, 0.0)),
        (0.5, (0.5, 0.5, 0.5)),
        ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3)),
    ],
)
def test_constant_fills(value, colour):
    erased, mask = erase(images_of(4), ErasingLaw(value=value), generator=seeded())
    inside = erased.permute(0, 2, 3, 1)[mask]
    assert torch.allclose(inside, torch.tensor(colour).expand_as(inside))


def test_mean_fill_takes_the_mean_of_a_data_set():
    erased, mask = erase(images_of(2), ErasingLaw(value="mean", mean=(0.2, 0.3, 0.4)), generator=seeded())
    assert torch.allclose(erased.permute(0, 2, 3, 1)[mask].mean(0), torch.tensor([0.2, 0.3, 0.4]))


def test_reference_grey_is_the_imagenet_mean_on_the_other_scale():
    assert [round(255 * entry) for entry in REFERENCE_GREY] == [189, 186, 179]


@pytest.mark.parametrize(("value", "deviation"), [("noise", 0.36), ("uniform_noise", 12**-0.5)])
def test_noise_fills(value, deviation):
    """The Gaussian, mean and deviation .5 clipped to [0, 1], has a deviation of about .36."""
    erased, mask = erase(torch.zeros(64, 3, 16, 16), ErasingLaw(value=value), generator=seeded())
    inside = erased.permute(0, 2, 3, 1)[mask]
    assert 0 <= inside.min() and inside.max() <= 1
    assert abs(inside.mean() - 0.5) < 0.02 and abs(inside.std() - deviation) < 0.01
    assert inside[:, 0].unique().numel() > 1000


def test_image_fill_takes_the_same_place_of_another_image():
    batch = 6
    images = torch.arange(batch).float()[:, None, None, None].expand(-1, 3, 16, 16) / batch
    images = images + torch.linspace(0, 0.1, 256).reshape(16, 16)
    erased, mask = erase(images, ErasingLaw(value="image"), generator=seeded())
    for one in range(batch):
        partner = [n for n in range(batch) if torch.equal(erased[one][:, mask[one]], images[n][:, mask[one]])]
        assert len(partner) == 1 and partner[0] != one


# --- views --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES)
def test_a_view_is_frozen_and_blocks_gradients_inside_the_mask(value):
    images = images_of(3).requires_grad_()
    view = draw_view(ErasingLaw(value=value), images.shape, generator=seeded())
    assert torch.equal(view(images), view(images))
    other = images_of(3, seed=1)
    outside = ~view.mask[:, None].expand_as(other)
    assert torch.equal(view(other)[outside], other[outside])
    if value != "image":
        view(images).sum().backward()
        assert torch.equal(images.grad != 0, outside)


def test_same_generator_same_masks_and_batch_independent_sources():
    law = ErasingLaw(value="noise")
    images = images_of(4)
    first, again = (erase(images, law, generator=seeded(5))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, erase(images, law, generator=seeded(6))[0])


def test_images_are_not_changed_in_place():
    images = images_of(4)
    copy = images.clone()
    erase(images, ErasingLaw(), generator=seeded())
    assert torch.equal(images, copy)


# --- properties ---------------------------------------------------------------------------------------------


@st.composite
def laws(draw):
    shape, location = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(LOCATIONS))
    ceiling = 0.75 if shape == "disc" else 0.95
    scale = sorted(draw(st.lists(st.floats(0.01, ceiling), min_size=2, max_size=2)))
    ratio = (1.0, 1.0)
    if shape == "rectangle":
        widest = max(1.0, min(4.0, 0.9 / scale[0]))
        ratio = tuple(sorted(draw(st.lists(st.floats(1 / widest, widest), min_size=2, max_size=2))))
    count = draw(st.integers(1, 6)) if shape == "squares" else 1
    value, p = draw(st.sampled_from(VALUES)), draw(st.sampled_from([0.0, 0.5, 1.0]))
    return ErasingLaw(p, tuple(scale), ratio, value, location, shape, count)


def area_bounds(law, size):
    """Fewest and most pixels a mask of the law may have when it is not empty."""
    low, high = (bound * size**2 for bound in law.scale)
    if law.shape == "pixels":
        return low - 0.5, high + 0.5
    if law.shape == "disc":
        # A circle of radius r holds between pi (r - d)^2 and pi (r + d)^2 pixel middles, d = sqrt(1/2).
        least, most = (math.sqrt(bound / math.pi) for bound in (low, high))
        return math.pi * max(0, least - 0.5**0.5) ** 2, math.pi * (most + 0.5**0.5) ** 2
    if law.shape == "squares":
        # One step of the common side adds at most 2 s + 1 pixels a square; the nearer of two is kept.
        step = law.count * (2 * size - 1)
        return low - step, min(high + step, (size - 1) ** 2 * law.count)
    # Each side rounds by half a pixel.
    heights = [math.sqrt(area * ratio) for area in (low, high) for ratio in law.ratio]
    widths = [math.sqrt(area / ratio) for area in (low, high) for ratio in law.ratio]
    slack = 0.5 * (max(heights) + max(widths)) + 0.25
    return low - slack, high + slack


@settings(max_examples=60, deadline=None)
@given(laws(), st.integers(5, 20), st.integers(2, 6), st.integers(0, 2**63 - 1))
def test_masks_keep_to_the_law_and_leave_the_rest_alone(law, size, batch, seed):
    images = images_of(batch, size, seed % 1000)
    index = torch.arange(batch)
    erased, mask = erase(images, law, index=index, **source_for(law, seed % 2**32))
    assert erased.shape == images.shape and mask.shape == (batch, size, size) and mask.dtype == torch.bool
    outside = ~mask[:, None].expand_as(images)
    assert torch.equal(erased[outside], images[outside])
    assert 0 <= erased.min() and erased.max() <= 1
    area = mask.sum((1, 2))
    least, most = area_bounds(law, size)
    assert ((area == 0) | ((area >= least - 1e-3) & (area <= most + 1e-3))).all()
    if law.p == 0:
        assert not mask.any()
    if law.p == 1 and law.shape in ("pixels", "squares") and least > 0:
        assert (area > 0).all()


def test_squares_match_the_drawn_area_without_bias():
    law = ErasingLaw(scale=(0.3, 0.3), shape="squares", count=4)
    area = masks_of(law, 2000, 32).float().mean((1, 2))
    assert abs(area.mean() - 0.3) < 0.005 and (area - 0.3).abs().max() < 0.06


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": (0.0, 0.4)},
        {"scale": (0.1, 1.0)},
        {"scale": (-0.1, 0.4)},
        {"scale": (0.4, 0.1)},
        {"scale": (0.4,)},
        {"scale": 0.4},
        {"scale": (float("nan"), 0.4)},
        {"scale": ("0.1", "0.4")},
        {"p": -0.1},
        {"p": 1.1},
        {"p": True},
        {"location": "centre"},
        {"shape": "star"},
        {"value": "white"},
        {"value": 1.5},
        {"value": (0.1, 0.2)},
        {"mean": (124, 116, 104)},
        {"ratio": (0.5, 2.0)},
        {"ratio": (2.0, 0.5), "shape": "rectangle"},
        {"ratio": (0.0, 2.0), "shape": "rectangle"},
        {"ratio": (20.0, 30.0), "shape": "rectangle"},
        {"scale": (0.8, 0.9), "shape": "disc"},
        {"count": 4},
        {"count": 0, "shape": "squares"},
        {"count": 2.0, "shape": "squares"},
    ],
)
def test_bad_laws_are_one_clear_error(fields):
    with pytest.raises(UserError, match=r"^erasing .*expected.*got[^\n]*$"):
        ErasingLaw(**fields)


@pytest.mark.parametrize(
    ("law", "given"),
    [
        (ErasingLaw(), {}),
        (ErasingLaw(location="toroidal"), {"seed": 1}),
        (ErasingLaw(location="fixed"), {"generator": seeded()}),
        (ErasingLaw(location="per_image"), {"seed": 1}),
        (ErasingLaw(location="per_image"), {"seed": 1, "index": torch.arange(3)}),
        (ErasingLaw(location="per_image"), {"index": torch.arange(2)}),
        (ErasingLaw(location="per_image"), {"seed": 1, "index": torch.rand(2)}),
    ],
)
def test_a_missing_source_of_randomness_is_one_clear_error(law, given):
    with pytest.raises(UserError, match=r"^erasing location=.*expected.*got[^\n]*$"):
        erase(images_of(2), law, **given)


@pytest.mark.parametrize(
    ("images", "law"),
    [
        (torch.zeros(2, 3, 8, 9), ErasingLaw()),
        (torch.zeros(3, 8, 8), ErasingLaw()),
        (torch.zeros(2, 1, 8, 8), ErasingLaw()),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ErasingLaw()),
        (torch.zeros(1, 3, 8, 8), ErasingLaw(value="image")),
        (torch.zeros(2, 3, 1, 1), ErasingLaw()),
    ],
)
def test_bad_images_are_one_clear_error(images, law):
    with pytest.raises(UserError, match=r"^erasing.*expected.*got[^\n]*$"):
        erase(images, law, generator=seeded())


def test_exposure_refuses_what_it_cannot_compute():
    with pytest.raises(UserError, match="square or pixels"):
        expected_exposure(ErasingLaw(shape="disc"), 16)
    with pytest.raises(UserError, match="positive"):
        exposure(ErasingLaw(), 16, draws=0, generator=seeded())
