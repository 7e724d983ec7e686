"""Label smoothing of either sign: closed forms of the loss, its gradient and its schedule, as applied."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from toys import SMALL, train_bars

from lib.defences import build
from lib.defences._smoothing import margin, ramp, smoothed
from lib.errors import UserError

LOGITS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 4
LABELS = torch.arange(7) % 5


@pytest.mark.parametrize("name", ["negls", "ls"])
def test_without_smoothing_it_is_cross_entropy(name):
    (defence,) = build(f"{name}(0)")
    defence.phase(9, 10)
    expected = F.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(defence.criterion(LOGITS, LABELS), expected)


@pytest.mark.parametrize("alpha", [-0.2, -0.05, 0.0, 0.3])
def test_the_gradient_is_p_minus_q_and_sums_to_zero(alpha):
    logits = LOGITS.double().requires_grad_()
    # in fp32 inside: the gradient arrives in the kind of the logits
    (found,) = torch.autograd.grad(smoothed(logits, LABELS, alpha).sum(), logits)
    q = torch.full((7, 5), alpha / 5, dtype=torch.float64)
    q[torch.arange(7), LABELS] += 1 - alpha
    torch.testing.assert_close(found, logits.detach().softmax(1) - q, atol=1e-6, rtol=0)
    assert found.sum(1).abs().max() < 1e-6


def test_positive_smoothing_is_that_of_torch():
    expected = F.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(smoothed(LOGITS, LABELS, 0.3), expected)


def test_smoothing_adds_a_multiple_of_the_margin():
    """loss = CE + alpha (C-1)/C M: unbounded below where alpha is negative."""
    expected = F.cross_entropy(LOGITS, LABELS, reduction="none") - 0.05 * 4 / 5 * margin(LOGITS, LABELS)
    torch.testing.assert_close(smoothed(LOGITS, LABELS, -0.05), expected)
    sure = 1000 * F.one_hot(LABELS, 5).float()
    torch.testing.assert_close(smoothed(sure, LABELS, -0.05), torch.full((7,), -0.05 * 4 / 5 * 1000))


def test_it_is_computed_in_fp32_whatever_comes():
    coarse = LOGITS.bfloat16()
    assert torch.equal(smoothed(coarse, LABELS, -0.05), smoothed(coarse.float(), LABELS, -0.05))


def test_mixed_labels_are_means_of_the_losses_of_their_parts():
    mixed = 0.25 * F.one_hot(LABELS, 5) + 0.75 * F.one_hot(LABELS.flip(0), 5)
    parts = [smoothed(LOGITS, labels, -0.05) for labels in (LABELS, LABELS.flip(0))]
    torch.testing.assert_close(smoothed(LOGITS, mixed, -0.05), 0.25 * parts[0] + 0.75 * parts[1])


published_ramp = partial(ramp, start=0.5, full=0.75)


def test_the_schedule_is_the_published_one_at_a_hundred_epochs_and_scales():
    for epoch in range(100):
        published = 0 if epoch < 50 else (epoch - 49) / 50 if epoch < 75 else 1
        assert published_ramp(epoch, 100) == pytest.approx(published)
    assert published_ramp(74, 100) == pytest.approx(0.5) and published_ramp(75, 100) == 1, (
        "half of it, then the jump"
    )
    assert [round(published_ramp(epoch, 12), 3) for epoch in range(12)] == [0] * 6 + [0.167, 0.333, 0.5] + [
        1
    ] * 3
    assert published_ramp(0, 1) == 0 and published_ramp(1, 2) == 1
    assert [round(ramp(epoch, 10, start=0.2, full=0.6), 3) for epoch in range(8)] == [
        0, 0, 0.125, 0.25, 0.375, 0.5, 1, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("negls(-0.1)", [0, 0, -0.05, -0.1]),
        ("negls(-0.1,schedule=constant)", [-0.1] * 4),
        ("ls(0.1)", [0.1] * 4),
        ("ls(0.1,schedule=ramp)", [0, 0, 0.05, 0.1]),
    ],
)
def test_the_schedule_is_really_applied_in_a_training(text, expected):
    (defence,) = build(text)
    seen, plain = [], type(defence).criterion

    def watched(logits, labels):
        losses = plain(defence, logits, labels)
        gap = losses - F.cross_entropy(logits, labels, reduction="none")
        seen.append((gap / margin(logits, labels) * 3 / 2).mean().item())  # (C-1)/C of three classes
        return losses

    defence.criterion = watched
    result = train_bars([defence], dataclasses.replace(SMALL, steps=12))  # four epochs of three steps
    assert seen == pytest.approx([alpha for alpha in expected for _ in range(3)], abs=1e-4)
    assert result.diagnostics[f"{defence.name}.alpha"] == pytest.approx(expected[-1])
    assert math.isfinite(result.diagnostics[f"{defence.name}.margin"])


def test_negative_smoothing_widens_the_margin_and_positive_narrows_it():
    recipe = dataclasses.replace(SMALL, steps=60)  # after fewer the order depends on rounding
    texts = ("negls(-0.9,schedule=constant)", "negls(-0.9)", "ls(0)", "ls(0.5)")
    margins = [train_bars(build(text), recipe).diagnostics[f"{text}.margin"] for text in texts]
    assert margins[0] > margins[1] > margins[2] > margins[3] > 0


@pytest.mark.parametrize(
    "text", ["negls", "negls(0.05)", "negls(-1.5)", "negls(true)", "negls(-0.05,schedule=late)"]
    + ["ls", "ls(-0.05)", "ls(1)", "ls(much)"],
)  # fmt: skip
def test_strengths_out_of_range_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)


def test_two_losses_are_refused_with_the_reason():
    with pytest.raises(UserError, match=r"ls\(0.1\) and negls\(-0.05\); two losses cannot"):
        build("ls(0.1)+negls(-0.05)")


def test_negative_smoothing_acted_if_the_target_logit_came_to_stand_out():
    (defence,) = build("negls(-0.05)")
    for alpha, first, last, acted in (
        (-0.05, 1.0, 5.0, True),
        (-0.05, 5.0, 4.0, False),  # collapsed
        (0.0, 1.0, 5.0, False),  # a schedule that never came to it
    ):
        rows = [{"alpha": -0.0, "margin": first}, {"alpha": alpha, "margin": last}]
        assert defence.acted(rows) is acted
    assert build("ls(0.1)")[0].acted([{"alpha": 0.1, "margin": 5.0}, {"alpha": 0.1, "margin": 4.0}])
