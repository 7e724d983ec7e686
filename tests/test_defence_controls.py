"""The augmentations that serve as controls: torchvision's laws, drawn from the run's own streams."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from toys import SMALL, assert_resumes, train_bars

from lib.defences import build
from lib.defences._transforms import drawing_from
from lib.defences.crop import resized_crop
from lib.errors import UserError
from lib.models import build_classifier
from lib.training import Defence

CONTROLS = ["cutout(0.5)", "mixup(1)", "cutmix(1)", "crop(0.5)", "noise(0.1)"]
IMAGES = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def view_of(text, images=IMAGES, seed=0):
    (defence,) = build(text)
    return defence.input(images, torch.arange(len(images)), seeded(seed)), defence


# --- cutout -------------------------------------------------------------------------------------------------


def test_cutout_hides_half_side_squares_clipped_at_the_borders():
    images = torch.rand(4000, 3, 16, 16, generator=seeded())
    view, defence = view_of("cutout(1)", images)
    mask, seen = view.mask, view(images)
    inside = mask[:, None].expand_as(images)
    assert not seen[inside].any() and torch.equal(seen[~inside], images[~inside])
    rows, columns = mask.any(2), mask.any(1)
    assert torch.equal(mask, rows[:, :, None] & columns[:, None, :]), "rectangles"
    for sides in (rows.sum(1), columns.sum(1)):
        assert sides.unique().tolist() == [4, 5, 6, 7, 8], "at a border down to half of it"
    # rows c-4 ... c+3 of a uniform centre c, those within the image: 7 + 8 * 9 + 5 + ... of 16 centres
    expected = sum(min(c + 4, 16) - max(c - 4, 0) for c in range(16)) / 16
    assert rows.sum(1).float().mean().item() == pytest.approx(expected, abs=0.1)
    assert defence.diagnostics() == {"area": pytest.approx((expected / 16) ** 2, abs=0.01)}
    centre, corner = mask[:, 8, 8].float().mean().item(), mask[:, 0, 0].float().mean().item()
    assert centre == pytest.approx(0.25, abs=0.03) and corner == pytest.approx((5 / 16) ** 2, abs=0.02)


def test_cutout_leaves_the_rest_of_the_batch_alone():
    images = torch.rand(4000, 3, 16, 16, generator=seeded())
    view, _ = view_of("cutout(0.5,value=1)", images)
    hit = view.mask.flatten(1).any(1)
    assert hit.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(view(images)[~hit], images[~hit]) and (view(images)[hit] == 1).flatten(1).any(1).all()
    assert view_of("cutout(1,side=0.25)", images)[0].mask.any(2).sum(1).max() == 4


# --- crop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["crop(0.2)", "crop(0.4,ratio=1.5)", "crop(1)"])
def test_a_crop_is_torchvisions_of_the_same_box(text):
    (defence,) = build(text)
    boxes = defence.boxes(12, 16, seeded())
    view = defence.input(IMAGES, LABELS, seeded())
    for found, image, box in zip(view(IMAGES), IMAGES, boxes.tolist(), strict=True):
        expected = v2.functional.resized_crop(image, *box, size=[16, 16], antialias=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(resized_crop(IMAGES, torch.tensor([[0, 0, 16, 16]] * 12)), IMAGES)


@pytest.mark.parametrize(("scale", "ratio"), [(0.2, 1.0), (0.6, 1.4)])
def test_boxes_follow_torchvisions_law(scale, ratio):
    (defence,) = build(f"crop({scale},ratio={ratio})")
    ours = defence.boxes(4000, 64, seeded()).double()
    law = v2.RandomResizedCrop(64, scale=(scale, 1), ratio=(1 / ratio, ratio))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [law.make_params([torch.zeros(3, 64, 64)]) for _ in range(4000)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in theirs]).double()
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=1.0, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.6, rtol=0)
    area = (ours[:, 2] * ours[:, 3] / 64**2).mean().item()
    defence.input(torch.zeros(4000, 3, 64, 64), None, seeded())
    assert defence.diagnostics()["area"] == pytest.approx(area)
    assert (ours[:, :2] + ours[:, 2:]).max() == 64 and ours[:, :2].min() == 0


# --- noise --------------------------------------------------------------------------------------------------


def test_noise_has_its_size_and_stays_within_a_step():
    grey = torch.full((40, 3, 16, 16), 0.5)
    view, defence = view_of("noise(0.1)", grey)
    assert torch.equal(view(grey), view(grey)) and not torch.equal(view(grey)[0], view(grey)[1])
    assert (view(grey) - 0.5).std().item() == pytest.approx(0.1, rel=0.03)
    assert defence.diagnostics() == {"rms": pytest.approx(0.1, rel=0.03)}
    dark, clipped = view_of("noise(0.3)", torch.zeros(40, 3, 16, 16))
    assert dark(torch.zeros(40, 3, 16, 16)).min() == 0
    assert clipped.diagnostics()["rms"] == pytest.approx(0.3 / 2**0.5, rel=0.03)


def test_noise_is_torchvisions():
    noise = torch.randn(IMAGES.shape, generator=seeded())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = v2.functional.gaussian_noise(IMAGES, sigma=0.2)
        torch.manual_seed(0)
        assert torch.equal(torch.randn_like(IMAGES), noise), "the same draws"
    torch.testing.assert_close(view_of("noise(0.2)")[0](IMAGES), expected)


# --- mixup and cutmix ---------------------------------------------------------------------------------------


def mixed_by(text, labels=LABELS, seed=0):
    (defence,) = build(text)
    defence.build(build_classifier({"kind": "residual", "widths": [4, 4, 4, 4]}, 3, 16))
    extras = defence.before(None, None, IMAGES, labels, seeded(seed))
    images, q, weights = defence.batch(IMAGES, labels, extras)
    assert torch.equal(weights, torch.ones(12))
    return images, q, defence


@pytest.mark.parametrize("seed", range(4))
def test_mixup_blends_photos_and_labels_by_one_share(seed):
    images, q, defence = mixed_by("mixup(0.4)", seed=seed)
    share = q[0, LABELS[0]].item()  # its neighbour is another person
    torch.testing.assert_close(images, share * IMAGES + (1 - share) * IMAGES.roll(1, 0))
    one_hot = F.one_hot(LABELS, 3).float()
    torch.testing.assert_close(q, share * one_hot + (1 - share) * one_hot.roll(1, 0))
    assert defence.diagnostics() == {"moved": pytest.approx(1 - share, abs=1e-6)}


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_pastes_a_rectangle_and_shares_the_label_by_its_area(seed):
    images, q, defence = mixed_by("cutmix(1)", seed=seed)
    pasted = (images != IMAGES).all(1)
    assert all(torch.equal(mask, pasted[0]) for mask in pasted)
    mask = pasted[0]
    assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0)[None, :])
    assert torch.equal(images[:, :, mask], IMAGES.roll(1, 0)[:, :, mask])
    area = mask.float().mean().item()
    torch.testing.assert_close(q[torch.arange(12), LABELS], torch.full((12,), 1 - area))
    torch.testing.assert_close(q.sum(1), torch.ones(12))
    assert defence.diagnostics() == {"moved": pytest.approx(area, abs=1e-6)}


def test_labels_that_are_mixed_already_are_mixed_again():
    _, q, _ = mixed_by("cutmix(1)")
    _, again, _ = mixed_by("mixup(1)", labels=q)
    torch.testing.assert_close(again.sum(1), torch.ones(12))
    assert (again > 0).sum() >= (q > 0).sum()


@pytest.mark.parametrize("text", ["mixup(1)", "cutmix(1)"])
def test_a_photo_mixed_with_the_same_person_keeps_its_label(text):
    images, q, defence = mixed_by(text, labels=torch.zeros(12, dtype=torch.int64))
    assert not torch.equal(images, IMAGES) and torch.equal(
        q, F.one_hot(torch.zeros(12, dtype=torch.int64), 3).float()
    )
    assert defence.diagnostics()["moved"] == 0


def test_torchvisions_draws_come_from_the_stream_and_leave_the_global_one():
    before = torch.get_rng_state()
    draws = []
    for seed in (0, 0, 1):
        with drawing_from(seeded(seed)):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    stream = seeded()
    with drawing_from(stream):
        first = torch.rand(3)
    with drawing_from(stream):
        assert not torch.equal(first, torch.rand(3))
    assert torch.equal(torch.get_rng_state(), before)


# --- in training --------------------------------------------------------------------------------------------


class Shown(Defence):
    def __init__(self):
        self.seen = []

    def penalty(self, images, labels, taps):
        self.seen.append((images.clone(), labels.clone()))
        return 0.0


@pytest.mark.parametrize("text", CONTROLS)
def test_the_network_is_shown_other_photos_and_the_diagnostics_say_so(text):
    def shown(*defences):
        watch = Shown()
        return train_bars([*defences, watch], dataclasses.replace(SMALL, steps=2)), watch.seen

    (result, seen), (_, plain) = shown(*build(text)), shown()
    assert len(seen) == 2 and not any(torch.equal(a[0], b[0]) for a, b in zip(seen, plain, strict=True))
    assert all(x.min() >= 0 and x.max() <= 1 and x.shape == (12, 3, 16, 16) for x, _ in seen)
    assert [y.ndim for _, y in seen] == [2 if "mix" in text else 1] * 2
    (value,) = result.diagnostics.values()
    assert 0 < value < 1 and result.history[-1]["loss"] > 0


@pytest.mark.parametrize("text", CONTROLS)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, text):
    recipe = dataclasses.replace(SMALL, steps=6)
    assert_resumes(lambda: build(text), recipe, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "cutout",
        "cutout(0)",
        "cutout(1.1)",
        "cutout(0.5,side=0)",
        "cutout(0.5,value=2)",
        "mixup(0)",
        "mixup(true)",
    ]
    + [
        "cutmix(-1)",
        "cutmix",
        "crop(0)",
        "crop(1.5)",
        "crop(0.5,ratio=0.5)",
        "noise(0)",
        "noise(2)",
        "noise(a)",
    ],
)
def test_values_out_of_range_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)
