"""The referee: it must tell a broken attack, a masked gradient and a leak apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, SIZE, ToyPrior, ToyTarget

from lib.attacks.referee import Chosen, Diagnostic, Entry, Evidence, Member, combine, judge, run_members
from lib.attacks.referee import flags as checks
from lib.errors import UserError
from lib.runtime import generator

WHITE = Member("ppa", "toy", "full", 0)
ADAPTIVE = Member("gmi", "toy", "full", 0)
BLACK = Member("mirror_genetic", "toy", "full", 0)
LABELS = torch.arange(CLASSES)
FULL = {
    "pool": 300,
    "candidates": 6,
    "keep": 3,
    "steps": 80,
    "views": 5,
    "learning_rate": 0.1,
    "truncation": 1.0,
}
BROKEN = FULL | {"pool": 1, "candidates": 1, "keep": 1, "steps": 1, "learning_rate": 1e-6}
GENETIC = {
    "pool": 300, "population": 40, "candidates": 6, "keep": 3, "steps": 40, "views": 5, "learning_rate": 1.0,
    "mutation_rate": 0.4, "width": 2.5, "truncation": 1.0, "stop_at": 1.0,
}  # fmt: skip
NAMES = [
    "loss still falling at the end",
    "target confidence not reached",
    "defence diagnostic inactive",
    "black-box beats white-box",
    "evaluator and target disagree on real photos",
    "evaluators disagree with each other",
    "candidates collapsed to duplicates",
    "budget curve not saturated",
    "verifier not above prior samples",
]


class Masked(nn.Module):
    """The same scores, but all gradients are zero: the input is rounded to 64 levels first."""

    num_classes, image_size = CLASSES, SIZE

    def __init__(self, target: ToyTarget) -> None:
        super().__init__()
        self.target = target

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.target.both((images * 64).round() / 64)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


@pytest.fixture(scope="module")
def prior() -> ToyPrior:
    return ToyPrior()


@pytest.fixture(scope="module")
def leaking(prior: ToyPrior) -> ToyTarget:
    target = ToyTarget(prior).eval()
    with torch.no_grad():
        target.head.weight.mul_(4.0)
    return target


def evidence(target: nn.Module, entries: dict[Member, Entry], judge_net: nn.Module, **more) -> Evidence:
    """All that the toy world can give: the judge sees the images whole, the verifier its runner-up margin."""
    chosen = combine(target, entries, LABELS)

    def hits(images: Tensor) -> Tensor:
        return judge_net(images.flatten(0, 1)).argmax(1).view(images.shape[:2]) == LABELS[:, None]

    with torch.no_grad():
        found = {member: hits(entry.images) for member, entry in entries.items()}
    photos = torch.arange(CLASSES).repeat_interleave(20)
    right = torch.ones(len(photos), dtype=torch.bool)
    given = {
        "hits": {"main": found, "panel": found},
        "verifier": found,
        "prior_verifier": {member: torch.zeros_like(h) for member, h in found.items()},
        "target_right": right,
        "evaluator_right": right,
        "photo_labels": photos,
        "curve": [(10.0, np.ones(CLASSES)), (20.0, np.ones(CLASSES))],
        "diagnostic": Diagnostic("erased share", 0.25, True),
    }
    return Evidence(entries, chosen, **(given | more))


def run(target: nn.Module, prior: ToyPrior, white: dict, black: dict | None = GENETIC) -> dict[Member, Entry]:
    members = {WHITE: white} | ({BLACK: black} if black else {})
    return run_members(target, {"toy": prior}, LABELS, members)


def states(verdict) -> dict[str, str]:
    return {flag.name: flag.state for flag in verdict.flags}


def test_a_leaking_model_is_established(leaking: ToyTarget, prior: ToyPrior) -> None:
    verdict = judge(evidence(leaking, run(leaking, prior, FULL), leaking))
    assert [flag.name for flag in verdict.flags] == NAMES
    assert set(states(verdict).values()) == {"clear"}, states(verdict)
    assert verdict.established and verdict.accuracy.value == 1.0 and verdict.accuracy.n == CLASSES
    assert verdict.sentence().startswith("AttAcc 100.0 %")
    assert verdict.members["chosen"].sum() == CLASSES


def test_a_broken_attack_is_not_taken_for_a_defence(leaking: ToyTarget, prior: ToyPrior) -> None:
    entries = run(leaking, prior, BROKEN, None)
    small = [(1.0, np.zeros(CLASSES)), (2.0, np.ones(CLASSES))]
    verdict = judge(evidence(leaking, entries, leaking, curve=small))
    found = states(verdict)
    assert not verdict.established and verdict.sentence().startswith("not established")
    assert found["loss still falling at the end"] == "raised"
    assert found["target confidence not reached"] == "raised"
    assert found["budget curve not saturated"] == "raised"
    assert found["black-box beats white-box"] == "not checked"


def test_masked_gradients_are_seen_by_the_black_box(leaking: ToyTarget, prior: ToyPrior) -> None:
    masked = Masked(leaking)
    found = states(judge(evidence(masked, run(masked, prior, FULL | {"pool": 6}), leaking)))
    assert found["black-box beats white-box"] == "raised"
    found = states(judge(evidence(leaking, run(leaking, prior, FULL | {"pool": 6}), leaking)))
    assert found["black-box beats white-box"] == "clear"


def test_what_nobody_checked_is_not_established(leaking: ToyTarget, prior: ToyPrior) -> None:
    entries = run(leaking, prior, FULL)
    for name, missing in (
        ("budget curve not saturated", {"curve": None}),
        ("verifier not above prior samples", {"verifier": None}),
        ("defence diagnostic inactive", {"diagnostic": None}),
        ("evaluator and target disagree on real photos", {"target_right": None}),
    ):
        verdict = judge(evidence(leaking, entries, leaking, **missing))
        assert states(verdict)[name] == "not checked" and not verdict.established
        assert f"{name} (not checked)" in verdict.sentence()


def entry(seed: int, *, m: int = 3, loss: list[float] | None = None) -> Entry:
    images = torch.rand(CLASSES, m, 3, SIZE, SIZE, generator=generator(seed, "images"))
    losses = loss or [5.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    return Entry(images, [{"step": i, "loss": x, "confidence": 0.5} for i, x in enumerate(losses)])


def chosen_of(confidence: list[list[float]], members: tuple[Member, ...] = (BLACK, WHITE)) -> Chosen:
    values = torch.tensor(confidence)
    return Chosen(members, values, torch.zeros(values.shape, dtype=torch.long))


def test_the_target_chooses_and_no_evaluator(leaking: ToyTarget, prior: ToyPrior) -> None:
    entries = {WHITE: entry(0), ADAPTIVE: entry(1), BLACK: entry(2)}
    chosen = combine(leaking, entries, LABELS)
    assert chosen.members == tuple(sorted(entries, key=lambda m: m.label))
    assert torch.equal(chosen.member, chosen.confidence.argmax(0))
    values = {member: torch.full((CLASSES, 3), float(i)) for i, member in enumerate(chosen.members)}
    assert torch.equal(chosen.pick(values).long(), chosen.member)
    places = {member: torch.arange(3).expand(CLASSES, 3) for member in chosen.members}
    wanted = chosen.image.gather(0, chosen.member[None])[0]
    assert torch.equal(chosen.pick(places), wanted)
    backwards = combine(leaking, dict(reversed(entries.items())), LABELS)
    assert torch.equal(backwards.confidence, chosen.confidence) and backwards.members == chosen.members


def test_a_members_own_confidence_does_not_count(leaking: ToyTarget) -> None:
    boasting = dataclasses.replace(entry(0), history=[{"step": 0, "loss": 0.0, "confidence": 1.0}] * 10)
    once, twice = (combine(leaking, {WHITE: e, BLACK: entry(1)}, LABELS) for e in (entry(0), boasting))
    assert torch.equal(once.confidence, twice.confidence)


def test_still_falling() -> None:
    flat, falling = entry(0), entry(0, loss=[10.0 - i for i in range(10)])
    chosen = chosen_of([[0.9] * CLASSES] * 2)
    assert checks.still_falling({WHITE: flat, BLACK: falling}, chosen).raised is False, (
        "white-box members only"
    )
    assert checks.still_falling({WHITE: falling, BLACK: flat}, chosen).raised is True
    assert checks.still_falling({WHITE: entry(0, loss=[3.0]), BLACK: flat}, chosen).raised is True
    alone = chosen_of([[0.9] * CLASSES], (BLACK,))
    assert checks.still_falling({BLACK: flat}, alone).raised is None


def test_confidence_not_reached() -> None:
    assert checks.confidence_not_reached(chosen_of([[0.1] * 6, [0.9] * 6])).raised is False
    low = checks.confidence_not_reached(chosen_of([[0.1] * 6, [0.2] * 6]))
    assert low.raised is True and low.value == pytest.approx(0.2)
    mixed = checks.confidence_not_reached(chosen_of([[0.1] * 6, [0.0, 1.0, 0.0, 1.0, 0.3, 0.5]]))
    assert mixed.raised is False, "an interval that reaches the limit is no proof of failure"


def test_black_box_beats_white_box_by_an_interval_only() -> None:
    noise = torch.rand(60, generator=generator(0, "noise"))
    noisy = chosen_of([noise.tolist(), noise.roll(1).tolist()])
    assert checks.black_box_beats_white_box(noisy).raised is False
    better = chosen_of([(0.5 + noise / 2).tolist(), (noise / 2).tolist()])
    assert checks.black_box_beats_white_box(better).raised is True
    worse = chosen_of([(noise / 2).tolist(), (0.5 + noise / 2).tolist()])
    assert checks.black_box_beats_white_box(worse).raised is False


def test_inactive_diagnostic() -> None:
    assert checks.diagnostic_inactive(Diagnostic("KL", 0.0, False)).raised is True
    assert checks.diagnostic_inactive(Diagnostic("KL", 2.0, True)).raised is False
    assert checks.diagnostic_inactive(None).raised is None


def test_a_judge_that_fails_on_photos() -> None:
    labels, right = torch.arange(20).repeat_interleave(10), torch.ones(200, dtype=torch.bool)
    poor, good = right.clone(), right.clone()
    poor[::2], good[::20] = False, False
    assert checks.judge_disagrees_on_photos(right, poor, labels).raised is True
    assert checks.judge_disagrees_on_photos(right, good, labels).raised is False
    blind = checks.judge_disagrees_on_photos(~poor, ~poor, labels)
    assert blind.raised is False and blind.value == 1.0, "only photos that the target gets right count"


def test_evaluators_that_disagree() -> None:
    all_right, half = torch.ones(60, dtype=torch.bool), torch.arange(60) % 2 == 0
    few = torch.arange(60) > 2
    assert checks.evaluators_disagree({"main": all_right, "panel": half}).raised is True
    assert checks.evaluators_disagree({"main": all_right, "panel": few}).raised is False
    assert checks.evaluators_disagree({"main": all_right}).raised is None


def test_copies_of_one_image() -> None:
    chosen = chosen_of([[0.9] * CLASSES], (WHITE,))
    copied = Entry(entry(0).images[:, :1].expand(-1, 3, -1, -1, -1), entry(0).history)
    assert checks.collapsed({WHITE: entry(0)}, chosen).raised is False
    assert checks.collapsed({WHITE: copied}, chosen).raised is True
    assert checks.collapsed({WHITE: entry(0, m=1)}, chosen).raised is None


def test_a_growing_curve() -> None:
    low, high = np.zeros(40), np.ones(40)
    assert checks.not_saturated([(1, low), (2, high)]).raised is True
    assert checks.not_saturated([(2, high), (1, low)]).raised is True, (
        "the order of the budgets is their passes'"
    )
    assert checks.not_saturated([(1, low), (2, high), (3, high)]).raised is False
    assert checks.not_saturated([(1, low)]).raised is None


def test_a_verifier_that_sees_nothing() -> None:
    yes, no = torch.ones(30, dtype=torch.bool), torch.zeros(30, dtype=torch.bool)
    assert checks.verifier_not_above_prior(yes, no).raised is False
    assert checks.verifier_not_above_prior(no, no).raised is True
    assert checks.verifier_not_above_prior(no, None).raised is None


def test_bad_input(leaking: ToyTarget, prior: ToyPrior) -> None:
    with pytest.raises(UserError, match="at least one member"):
        combine(leaking, {}, LABELS)
    with pytest.raises(UserError, match="attack the same ones"):
        combine(leaking, {WHITE: entry(0)}, [0, 1])
    with pytest.raises(UserError, match="expected a prior 'toy'"):
        run_members(leaking, {"other": prior}, LABELS, {WHITE: FULL})
    with pytest.raises(UserError, match="at least one evaluator"):
        judge(dataclasses.replace(evidence(leaking, {WHITE: entry(0)}, leaking), hits={}))
