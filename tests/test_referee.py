"""The referee: it must tell a broken attack, a masked gradient and a leak apart."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import DIM, SIZE, ToyPrior, ToyTarget

from lib.attacks import Knowledge
from lib.attacks.access import Access
from lib.attacks.adaptive.eot import ErasedViews
from lib.attacks.ifgmi import IfgmiBudget
from lib.attacks.interface import Budget
from lib.attacks.losses import cross_entropy
from lib.attacks.oracle import Oracle
from lib.attacks.ppa import PpaBudget
from lib.attacks.referee import (
    Chosen,
    Diagnostic,
    Entry,
    Evidence,
    Member,
    combine,
    descent,
    judge,
    run_members,
)
from lib.attacks.referee import flags as checks
from lib.attacks.referee import judges as judging
from lib.attacks.selection import rank
from lib.erasing import ErasingLaw
from lib.errors import UserError
from lib.runtime import generator, seed_for

PEOPLE = 10
LABELS = torch.arange(PEOPLE)
WHITE, ADAPTIVE, LABEL_ONLY, SCORES = (
    Member(attack, "toy", "full", 0) for attack in ("ppa", "ppa+eot4", "brep", "mirror_genetic")
)
FULL = {
    "pool": 300,
    "candidates": 4,
    "keep": 3,
    "steps": 80,
    "views": 5,
    "learning_rate": 0.1,
    "truncation": 1.0,
}
MASKED_EOT = FULL | {"pool": 100, "candidates": 3, "steps": 40}
BOUNDARY = {
    "pool": 500, "candidates": 2, "keep": 2, "steps": 60, "views": 5, "clamp": 3.0, "radius": 0.5,
}  # fmt: skip
GENETIC = {
    "pool": 300, "population": 40, "candidates": 4, "keep": 3, "steps": 40, "views": 5, "learning_rate": 1.0,
    "mutation_rate": 0.4, "width": 2.5, "truncation": 1.0, "stop_at": 1.0,
}  # fmt: skip
BROKEN = FULL | {"pool": 1, "candidates": 1, "keep": 1, "steps": 1, "learning_rate": 1e-6}
NAMES = [
    "ensemble incomplete",
    "loss still falling at the end",
    "target confidence not reached",
    "defence diagnostic inactive",
    "black-box beats white-box",
    "a member alone leaks more",
    "evaluator and target disagree on real photos",
    "evaluators disagree with each other",
    "candidates collapsed to duplicates",
    "budget curve not saturated",
    "verifier not above prior samples",
]


class Leaking(ToyTarget):
    """Sure of ten people, whose pictures the prior makes from plus or minus each of five directions."""

    num_classes = PEOPLE

    def __init__(self, prior: ToyPrior) -> None:
        super().__init__(prior)
        corners = 1.5 * torch.eye(DIM)[: PEOPLE // 2]
        means = prior.synthesise(torch.cat([corners, -corners])) - 0.5
        self.head = nn.Linear(3 * SIZE * SIZE, PEOPLE)
        with torch.no_grad():
            self.head.weight.copy_(means.flatten(1) * 1.6)
            self.head.bias.zero_()


class Masked(nn.Module):
    """The same scores, but all gradients are zero: the input is rounded to 64 levels first."""

    num_classes, image_size = PEOPLE, SIZE

    def __init__(self, target: nn.Module) -> None:
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
def leaking(prior: ToyPrior) -> Leaking:
    return Leaking(prior).eval()


@pytest.fixture(scope="module")
def ensemble(leaking: Leaking, prior: ToyPrior) -> dict[Member, Entry]:
    """A white-box, an adaptive and a label-only attack under two seeds each."""
    budgets = {WHITE: FULL, ADAPTIVE: MASKED_EOT, LABEL_ONLY: BOUNDARY}
    members = {
        dataclasses.replace(member, seed=seed): budget
        for member, budget in budgets.items()
        for seed in (0, 1)
    }
    known = Knowledge(law=ErasingLaw(scale=(0.05, 0.1)))
    return run_members(leaking, LABELS, members, materials=lambda _: (prior, known))


def evidence(target: nn.Module, entries: dict[Member, Entry], judge_net: nn.Module, **more) -> Evidence:
    """All that the toy world can give: the evaluators and the verifier are one network that sees images whole."""
    chosen = combine(target, entries, LABELS)

    def hits(images: Tensor) -> Tensor:
        return judge_net(images.flatten(0, 1)).argmax(1).view(images.shape[:2]) == LABELS[:, None]

    with torch.no_grad():
        found = {member: hits(entry.images) for member, entry in entries.items()}
    photos = LABELS.repeat_interleave(20)
    right = torch.ones(len(photos), dtype=torch.bool)
    given = {
        "hits": {"main": found, "panel": found},
        "verifier": found,
        "prior_verifier": {member: torch.zeros_like(h) for member, h in found.items()},
        "target_right": right,
        "evaluator_right": right,
        "photo_labels": photos,
        "curves": {member.search: [(10.0, np.ones(PEOPLE)), (20.0, np.ones(PEOPLE))] for member in entries},
        "diagnostic": Diagnostic("erased share", 0.25, True),
    }
    return Evidence(entries, chosen, **(given | more))


def states(verdict) -> dict[str, str]:
    return {flag.name: flag.state for flag in verdict.flags}


# --- the three models that must be told apart -----------------------------------------------------------


def test_a_leaking_model_is_established(leaking: Leaking, ensemble: dict[Member, Entry]) -> None:
    verdict = judge(evidence(leaking, ensemble, leaking))
    assert [flag.name for flag in verdict.flags] == NAMES
    assert set(states(verdict).values()) == {"clear"}, verdict.table()[["state", "finding"]].to_dict("index")
    assert verdict.established and verdict.accuracy.value == 1.0 and verdict.accuracy.n == PEOPLE
    assert verdict.sentence().startswith("AttAcc 100.0 %")
    assert verdict.members["chosen"].sum() == PEOPLE


def test_what_only_means_that_more_leaks_is_a_floor(leaking: Leaking, ensemble: dict[Member, Entry]) -> None:
    whole = judge(evidence(leaking, ensemble, leaking))
    assert set(NAMES) > checks.FLOORS and not whole.is_floor
    for name in NAMES:
        marred = tuple(
            dataclasses.replace(flag, raised=True if flag.name == name else flag.raised)
            for flag in whole.flags
        )
        verdict = dataclasses.replace(whole, flags=marred)
        assert not verdict.established and verdict.is_floor == (name in checks.FLOORS)
        assert (
            "a floor" in verdict.sentence()
        ) == verdict.is_floor and "not established" in verdict.sentence()


def test_a_broken_attack_is_not_taken_for_a_defence(leaking: Leaking, prior: ToyPrior) -> None:
    entries = run_members(leaking, LABELS, {WHITE: BROKEN}, materials=lambda _: (prior, Knowledge()))
    small = [(1.0, np.zeros(PEOPLE)), (2.0, np.ones(PEOPLE))]
    verdict = judge(evidence(leaking, entries, leaking, curves={WHITE.search: small}))
    found = states(verdict)
    assert not verdict.established and verdict.sentence().startswith("not established")
    assert verdict.accuracy.value < 0.5
    assert found["ensemble incomplete"] == "raised"
    assert found["loss still falling at the end"] == "raised"
    assert found["target confidence not reached"] == "raised"
    assert found["candidates collapsed to duplicates"] == "raised"  # one start for everybody
    assert found["budget curve not saturated"] == "raised"
    assert found["black-box beats white-box"] == "open"


def test_an_attack_that_climbs_its_loss_is_flagged(
    leaking: Leaking, prior: ToyPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib.attacks import ppa

    true = ppa.poincare
    monkeypatch.setattr(ppa, "poincare", lambda logits, labels: -true(logits, labels))
    entries = run_members(
        leaking, LABELS, {WHITE: FULL | {"pool": 4}}, materials=lambda _: (prior, Knowledge())
    )
    found = states(judge(evidence(leaking, entries, leaking)))
    assert found["target confidence not reached"] == "raised"
    assert found["verifier not above prior samples"] == "raised"


def test_masked_gradients_are_seen_by_the_black_box(leaking: Leaking, prior: ToyPrior) -> None:
    few = FULL | {"pool": 6}
    found = {}
    for model in (leaking, Masked(leaking)):
        entries = run_members(
            model, LABELS, {WHITE: few, SCORES: GENETIC}, materials=lambda _: (prior, Knowledge())
        )
        found[model] = states(judge(evidence(model, entries, leaking)))
    clean, masked = found.values()
    assert clean["black-box beats white-box"] == "clear" and masked["black-box beats white-box"] == "raised"
    assert clean["loss still falling at the end"] != "raised"
    assert masked["loss still falling at the end"] == "raised"  # it never fell


def test_what_nobody_checked_is_not_established(leaking: Leaking, ensemble: dict[Member, Entry]) -> None:
    for name, missing in (
        ("budget curve not saturated", {"curves": {}}),
        ("verifier not above prior samples", {"verifier": None}),
        ("defence diagnostic inactive", {"diagnostic": None}),
        ("evaluator and target disagree on real photos", {"target_right": None}),
    ):
        verdict = judge(evidence(leaking, ensemble, leaking, **missing))
        assert states(verdict)[name] == "open" and not verdict.established
        assert verdict.sentence().startswith("not established")
        assert f"{name} (open)" in verdict.sentence()


# --- combining ------------------------------------------------------------------------------------------


def entry(seed: int, *, m: int = 3, loss: list[float] | None = None) -> Entry:
    images = torch.rand(PEOPLE, m, 3, SIZE, SIZE, generator=generator(seed, "images"))
    losses = loss or [5.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    return Entry(images, [{"step": i, "loss": x, "confidence": 0.5} for i, x in enumerate(losses)])


def chosen_of(
    confidence: list[list[float]], members: tuple[Member, ...] = (SCORES, WHITE), image: int = 0
) -> Chosen:
    values = torch.tensor(confidence)
    return Chosen(members, values, torch.full(values.shape, image))


def test_the_target_chooses_and_no_evaluator(leaking: Leaking) -> None:
    entries = {WHITE: entry(0), ADAPTIVE: entry(1), SCORES: entry(2, m=2)}
    chosen = combine(leaking, entries, LABELS)
    assert chosen.members == tuple(sorted(entries, key=lambda m: m.label))
    assert torch.equal(chosen.member, chosen.confidence.argmax(0))
    values = {member: torch.full((PEOPLE, 3), float(i)) for i, member in enumerate(chosen.members)}
    assert torch.equal(chosen.pick(values).long(), chosen.member)
    places = {member: torch.arange(3).expand(PEOPLE, 3) for member in chosen.members}
    wanted = chosen.image.gather(0, chosen.member[None])[0]
    assert torch.equal(chosen.pick(places), wanted)


def test_an_evaluators_opinion_moves_nothing_that_is_chosen(
    leaking: Leaking, ensemble: dict[Member, Entry]
) -> None:
    """What evaluators say changes the number, never whose reconstruction counts."""
    first = evidence(leaking, ensemble, leaking)
    turned = {role: {m: ~h for m, h in found.items()} for role, found in first.hits.items()}
    one, other = judge(first), judge(dataclasses.replace(first, hits=turned))
    assert one.accuracy.value == 1.0 and other.accuracy.value == 0.0
    assert one.members["chosen"].equals(other.members["chosen"])


def test_the_order_of_members_changes_nothing(leaking: Leaking, ensemble: dict[Member, Entry]) -> None:
    one, other = (
        judge(evidence(leaking, dict(order), leaking))
        for order in (ensemble.items(), reversed(ensemble.items()))
    )
    assert one.accuracy == other.accuracy and one.members.equals(other.members)
    assert one.table().equals(other.table())


def test_the_protocol_is_one_and_apart_from_the_attacks_own_views(leaking: Leaking) -> None:
    """The candidates of an attack with the referee's seed were selected under views of that seed: judging by the
    same ones would favour it."""
    one = entry(0, m=2)
    chosen = combine(leaking, {WHITE: one}, LABELS, seed=0)
    budget = Budget(candidates=2, steps=1, learning_rate=1.0, keep=1, views=30)

    def views_of(seed: int) -> Tensor:
        access = Access(leaking, ToyPrior(), fast=False)
        seen = rank(access, one.images, LABELS, budget=budget, loss=cross_entropy, seed=seed)
        return seen["confidence"].amax(1)

    torch.testing.assert_close(chosen.confidence[0], views_of(seed_for(0, "referee")))
    assert not torch.allclose(chosen.confidence[0], views_of(0))
    alone = combine(leaking, {WHITE: Entry(one.images[3:4], one.history)}, [3])
    torch.testing.assert_close(alone.confidence[0], chosen.confidence[0, 3:4])


def test_a_members_own_confidence_does_not_count(leaking: Leaking) -> None:
    boasting = dataclasses.replace(entry(0), history=[{"step": 0, "loss": 0.0, "confidence": 1.0}] * 10)
    once, twice = (combine(leaking, {WHITE: e, SCORES: entry(1)}, LABELS) for e in (entry(0), boasting))
    assert torch.equal(once.confidence, twice.confidence)


def test_bad_input(leaking: Leaking, prior: ToyPrior) -> None:
    with pytest.raises(UserError, match="at least one member"):
        combine(leaking, {}, LABELS)
    with pytest.raises(UserError, match="attack the same ones"):
        combine(leaking, {WHITE: entry(0)}, [0, 1])
    with pytest.raises(UserError, match="classes 0 to 9"):
        combine(leaking, {WHITE: entry(0)}, LABELS + 1)
    flat = Entry(entry(0).images[:, 0], entry(0).history)
    with pytest.raises(UserError, match=r"images \(K, m, 3, S, S\)"):
        combine(leaking, {WHITE: flat}, LABELS)
    for unfit in (Oracle(leaking, reveals="labels"), ErasedViews(leaking, ErasingLaw(), masks=2, seed=0)):
        with pytest.raises(UserError, match="plain target"):
            combine(unfit, {WHITE: entry(0)}, LABELS)
    whole = evidence(leaking, {WHITE: entry(0)}, leaking)
    with pytest.raises(UserError, match="at least one evaluator"):
        judge(dataclasses.replace(whole, hits={}))
    fewer = {"main": {WHITE: whole.hits["main"][WHITE][:, :2]}}
    with pytest.raises(UserError, match=r"expected \(10, 3\) answers of main"):
        judge(dataclasses.replace(whole, hits=fewer))
    with pytest.raises(UserError, match="answers of verifier about ppa"):
        judge(dataclasses.replace(whole, verifier={}))


# --- one flag at a time ---------------------------------------------------------------------------------


def test_an_incomplete_ensemble() -> None:
    kinds = (WHITE, ADAPTIVE, LABEL_ONLY)
    both = tuple(dataclasses.replace(member, seed=seed) for member in kinds for seed in (0, 1))

    def state(members: tuple[Member, ...]) -> bool | None:
        return checks.ensemble_incomplete(chosen_of([[0.9] * PEOPLE] * len(members), members)).raised

    assert [member.role for member in (*kinds, SCORES)] == ["white box", "adaptive", "label only", "scores"]
    assert state(both) is False
    assert state((*both, SCORES)) is False
    for missing in range(len(both)):
        assert state(both[:missing] + both[missing + 1 :]) is True
    other = dataclasses.replace(both[1], budget="quick")  # the second seed of something else
    assert state((both[0], other, *both[2:])) is True
    foreign = checks.ensemble_incomplete(chosen_of([[0.9] * 6] * len(both), both), adapted=False)
    assert foreign.raised is None and "nobody tried an attack adapted to it" in foreign.sentence


def test_still_falling() -> None:
    flat, falling = entry(0), entry(0, loss=[10.0 - i for i in range(10)])
    chosen = chosen_of([[0.9] * PEOPLE, [0.8] * PEOPLE], (WHITE, SCORES))

    def state(white: Entry, black: Entry = flat) -> bool | None:
        return descent.still_falling({WHITE: white, SCORES: black}, chosen).raised

    assert state(flat, falling) is False, "white-box members only"
    assert state(falling) is True
    assert state(entry(0, loss=[3.0])) is True
    assert state(entry(0, loss=[10.0 - i for i in range(5)])) is True
    assert state(entry(0, loss=[1.0 + i for i in range(10)])) is True, "it rises"
    assert state(entry(0, loss=[2.0] * 10)) is True, "it never fell"
    alone = chosen_of([[0.9] * PEOPLE], (SCORES,))
    assert descent.still_falling({SCORES: flat}, alone).raised is None
    found = descent.still_falling({WHITE: falling, SCORES: flat}, chosen)
    assert WHITE.search in found.sentence


def test_only_what_the_choice_rests_on_must_have_come_to_rest() -> None:
    flat, falling, dead = entry(0), entry(0, loss=[10.0 - i for i in range(10)]), entry(0, loss=[2.0] * 10)
    few = chosen_of([[0.9] * 36 + [0.1] * 4, [0.1] * 36 + [0.9] * 4], (WHITE, ADAPTIVE))
    half = chosen_of([[0.9] * 20 + [0.1] * 20, [0.1] * 20 + [0.9] * 20], (WHITE, ADAPTIVE))
    state = descent.still_falling
    assert state({WHITE: flat, ADAPTIVE: falling}, few).raised is False, "four of forty rest on it"
    assert state({WHITE: flat, ADAPTIVE: falling}, half).raised is True
    assert state({WHITE: flat, ADAPTIVE: dead}, few).raised is True, "an attack that never moved is broken"


def test_seeds_of_one_attack_are_averaged_before_its_loss_is_judged() -> None:
    """Opposite noise of two seeds hides in each what both together show."""
    noise = 0.2 * torch.randn(40, generator=generator(0, "noise")).numpy()
    line = 1 - np.arange(40) / 80
    second = dataclasses.replace(WHITE, seed=1)
    both = {WHITE: entry(0, loss=(line + noise).tolist()), second: entry(0, loss=(line - noise).tolist())}
    chosen = chosen_of([[0.9] * PEOPLE] * 2, (WHITE, second))
    assert descent.still_falling(both, chosen).raised is True
    one = chosen_of([[0.9] * PEOPLE], (WHITE,))
    assert descent.still_falling({WHITE: both[WHITE]}, one).raised is None


def test_a_lowered_learning_rate_brings_no_loss_to_rest() -> None:
    falling = 1 - np.minimum(np.arange(50), 30) / 40  # on a straight line until the rate is lowered
    assert descent._late_fall(falling)[0] == 0
    share, limit = descent._late_fall(falling, (0.0, 0.6))
    assert share > limit
    assert PpaBudget().descent == (0.0, 0.6) and PpaBudget(milestones=()).descent == (0.0, 1.0)
    last = IfgmiBudget(steps=30, feature_steps=(10, 10, 10)).descent
    assert last == (pytest.approx(5 / 6), 1.0)
    stages = np.concatenate([np.linspace(9, 1, 50), np.full(10, 1.0)])
    assert descent._late_fall(stages, last)[0] == 0, "the last stage is at rest"
    steep = np.concatenate([np.linspace(9, 4, 50), np.linspace(4, 2, 10)])
    assert np.greater(*descent._late_fall(steep, last)), "the last stage falls to its end"
    shaking = stages + 0.1 * np.cos(np.pi * np.arange(60))
    assert not np.greater(*descent._late_fall(shaking, last)), "at rest but for its noise"


def test_too_much_noise_to_tell_is_open() -> None:
    noise = torch.randn(40, generator=generator(0, "noise")).numpy()
    loss = 1 - np.arange(40) / 80 + 0.2 * noise
    noisy = entry(0, loss=loss.tolist())
    chosen = chosen_of([[0.9] * PEOPLE], (WHITE,))
    found = descent.still_falling({WHITE: noisy}, chosen)
    assert found.raised is None and "too noisy to tell" in found.sentence


def test_a_noisy_loss_that_has_come_to_rest_is_not_flagged() -> None:
    """Expectation over erasing draws new masks at each step; on lfw64 its loss scatters by 5 % of its fall."""
    noise = torch.randn(200, 40, generator=generator(0, "noise")).numpy()
    rest = np.exp(-np.arange(40) / 4) + 0.05 * noise
    moving = 1 - np.arange(40) / 40 + 0.05 * noise
    flagged = [
        np.mean([np.greater(*descent._late_fall(loss)) for loss in losses]) for losses in (rest, moving)
    ]
    assert flagged[0] < 0.05 and flagged[1] > 0.4


def test_confidence_not_reached() -> None:
    assert checks.confidence_not_reached(chosen_of([[0.1] * 6, [0.9] * 6])).raised is False
    low = checks.confidence_not_reached(chosen_of([[0.1] * 6, [0.2] * 6]))
    assert low.raised is True and low.value == pytest.approx(0.2)
    mixed = checks.confidence_not_reached(chosen_of([[0.1] * 6, [0.0, 1.0, 0.0, 1.0, 0.3, 0.5]]))
    assert mixed.raised is False, "an interval that reaches the limit is no proof of failure"
    many = chosen_of([[0.95] * 36 + [0.01] * 24], (WHITE,))
    assert checks.confidence_not_reached(many).raised is True, "two fifths of the people are missed"
    some = chosen_of([[0.95] * 52 + [0.01] * 8], (WHITE,))
    assert checks.confidence_not_reached(some).raised is False


def test_black_box_beats_white_box_by_an_interval_only() -> None:
    noise = torch.rand(60, generator=generator(0, "noise"))
    noisy = chosen_of([noise.tolist(), noise.roll(1).tolist()])
    assert checks.black_box_beats_white_box(noisy).raised is False
    luckier = chosen_of([(0.9 * noise[:20] + 0.1).tolist(), (0.9 * noise[20:40]).tolist()])
    found = checks.black_box_beats_white_box(luckier)
    assert found.value > checks.MARGIN and found.raised is False
    better = chosen_of([(0.5 + noise / 2).tolist(), (noise / 2).tolist()])
    assert checks.black_box_beats_white_box(better).raised is True
    worse = chosen_of([(noise / 2).tolist(), (0.5 + noise / 2).tolist()])
    assert checks.black_box_beats_white_box(worse).raised is False
    saturated = chosen_of([[0.999] * 60, (0.99 + noise / 1000).tolist()])
    assert checks.black_box_beats_white_box(saturated).raised is False, "certain, and of no importance"
    few = chosen_of([[0.9] * 5, [0.1] * 5])
    assert checks.black_box_beats_white_box(few).raised is None
    labels = chosen_of([[0.9] * 10, [0.1] * 10], (LABEL_ONLY, WHITE))
    assert checks.black_box_beats_white_box(labels).raised is True


def test_inactive_diagnostic() -> None:
    assert checks.diagnostic_inactive(Diagnostic("KL", 0.0, False)).raised is True
    assert checks.diagnostic_inactive(Diagnostic("KL", 2.0, True)).raised is False
    assert checks.diagnostic_inactive(None).raised is None


def test_copies_of_one_image() -> None:
    chosen = chosen_of([[0.9] * PEOPLE], (WHITE,))
    copied = Entry(entry(0).images[:, :1].expand(-1, 3, -1, -1, -1), entry(0).history)
    everybody = Entry(entry(0).images[:1].expand(PEOPLE, -1, -1, -1, -1), entry(0).history)
    assert checks.collapsed({WHITE: entry(0)}, chosen).raised is False
    assert checks.collapsed({WHITE: copied}, chosen).raised is True
    assert checks.collapsed({WHITE: everybody}, chosen).raised is True, "the same three images for everybody"
    assert checks.collapsed({WHITE: entry(0, m=1)}, chosen).raised is None
    both = chosen_of([[0.1] * PEOPLE, [0.9] * PEOPLE])
    failed = {WHITE: entry(0), SCORES: Entry(everybody.images[:, :1], everybody.history)}
    assert checks.collapsed(failed, both).raised is False, (
        "nobody's reconstruction is one of the failed member's"
    )


def test_a_growing_curve() -> None:
    low, high = np.zeros(40), np.ones(40)
    chosen = chosen_of([[0.9] * 40], (WHITE,))

    def state(*curve: tuple[float, np.ndarray]) -> bool | None:
        return checks.not_saturated({WHITE.search: curve}, chosen).raised

    assert state((1, low), (2, high)) is True
    assert state((2, high), (1, low)) is True, "in the order of the passes"
    assert state((1, low), (2, high), (3, high)) is False
    noise = (torch.rand(2, 62, generator=generator(0, "curve")) < 0.8).double().numpy()
    less, more = sorted(noise, key=np.mean)
    assert state((1, more), (2, less)) is False
    assert state((1, less), (2, more)) is not True, "noise is not growth"
    one_more = np.append(np.zeros(1), np.ones(199))
    assert (
        checks.not_saturated(
            {WHITE.search: [(1, one_more), (2, np.ones(200))]}, chosen_of([[0.9] * 200], (WHITE,))
        ).raised
        is False
    ), "growth too small to matter"
    assert state((1, low)) is None
    assert state((10, low), (11, low)) is None, "too close to show growth"
    assert state((1, low[:5]), (2, high[:5])) is None


def test_the_attacks_that_the_choice_rests_on_must_be_at_their_end() -> None:
    flat, growing = [(1, np.ones(40)), (2, np.ones(40))], [(1, np.zeros(40)), (2, np.ones(40))]
    chosen = chosen_of([[0.9] * 36 + [0.1] * 4, [0.1] * 36 + [0.9] * 4], (WHITE, ADAPTIVE))
    state = checks.not_saturated
    assert state({WHITE.search: flat, ADAPTIVE.search: growing}, chosen).raised is False, "4 of 40 rest on it"
    assert state({WHITE.search: growing, ADAPTIVE.search: flat}, chosen).raised is True
    found = state({ADAPTIVE.search: flat}, chosen)
    assert found.raised is None and WHITE.search in found.sentence
    halves = chosen_of([[0.9] * 20 + [0.1] * 20, [0.1] * 20 + [0.9] * 20], (WHITE, ADAPTIVE))
    assert state({WHITE.search: flat, ADAPTIVE.search: growing}, halves).raised is True, "each supplies half"


def test_advice_is_given_where_it_is_wanted() -> None:
    chosen = chosen_of([[0.9] * 6, [0.9] * 6])
    assert "trust the black-box" not in checks.black_box_beats_white_box(chosen).sentence
    better = chosen_of([[0.9] * 10, [0.1] * 10], (LABEL_ONLY, WHITE))
    assert "trust the black-box" in checks.black_box_beats_white_box(better).sentence


def test_a_member_that_leaks_more_than_the_choice() -> None:
    all_right, half = torch.ones(60, dtype=torch.bool), torch.arange(60) % 2 == 0
    few_wrong = torch.arange(60) > 1
    state = judging.member_alone_leaks_more
    worse = state(half, {WHITE: half, ADAPTIVE: all_right})
    assert worse.raised is True and ADAPTIVE.label in worse.sentence and worse.value == pytest.approx(0.5)
    assert state(half, {WHITE: half, ADAPTIVE: half}).raised is False
    some = half | (torch.arange(60) < 8)  # four more of sixty: 6.7 points, by chance perhaps
    assert state(half, {WHITE: half, ADAPTIVE: some}).raised is None
    swapped = half.roll(1)  # as many, other people: 10 points more cannot be excluded
    assert state(half, {WHITE: swapped}).raised is None
    assert state(half, {WHITE: ~half & False}).raised is False
    assert state(all_right, {WHITE: half, ADAPTIVE: all_right}).raised is False
    assert state(few_wrong, {WHITE: few_wrong, ADAPTIVE: all_right}).raised is False, (
        "two of sixty are noise, and all that is left"
    )
    assert state(half[:5], {WHITE: all_right[:5]}).raised is None


def test_a_judge_that_fails_on_photos() -> None:
    labels, right = torch.arange(20).repeat_interleave(10), torch.ones(200, dtype=torch.bool)
    poor, good = right.clone(), right.clone()
    poor[::2], good[::20] = False, False
    assert judging.judge_disagrees_on_photos(right, poor, labels).raised is True
    assert judging.judge_disagrees_on_photos(right, good, labels).raised is False
    blind = judging.judge_disagrees_on_photos(~poor, ~poor, labels)
    assert blind.raised is False and blind.value == 1.0, "only photos that the target gets right count"
    assert judging.judge_disagrees_on_photos(~right, right, labels).raised is None
    assert judging.judge_disagrees_on_photos(None, right, labels).raised is None


def test_evaluators_that_disagree() -> None:
    all_right, half = torch.ones(60, dtype=torch.bool), torch.arange(60) % 2 == 0
    few = torch.arange(60) > 2
    state = judging.evaluators_disagree
    assert state({"main": all_right, "panel": half}).raised is True
    assert state({"main": all_right, "panel": few}).raised is False
    assert state({"main": half, "panel": ~half}).raised is True, "equally many, never the same"
    assert state({"main": all_right, "panel": all_right, "other": half}).raised is True
    assert state({"main": all_right}).raised is None
    assert state({"main": all_right[:5], "panel": half[:5]}).raised is None


def test_evaluators_that_err_now_and_then_are_not_flagged() -> None:
    """Three evaluators of equal strength that err independently on a tenth of 62 people."""
    right = torch.rand(40, 3, 62, generator=generator(0, "panel")) > 0.1
    flagged = [judging.evaluators_disagree(dict(zip("abc", panel, strict=True))).raised for panel in right]
    assert np.mean(flagged) <= 0.08


def test_a_verifier_that_sees_nothing() -> None:
    yes, no = torch.ones(30, dtype=torch.bool), torch.zeros(30, dtype=torch.bool)
    state = judging.verifier_not_above_prior
    assert state(yes, no).raised is False
    assert state(no, no).raised is True
    assert state(yes, yes).raised is True
    assert state(torch.arange(30) < 3, torch.arange(30) == 0).raised is True, "three against one is noise"
    assert state(no, None).raised is None
    assert state(yes[:5], no[:5]).raised is None


def test_a_flag_says_what_it_measured() -> None:
    flag = checks.confidence_not_reached(chosen_of([[0.2] * 6], (WHITE,)))
    assert flag.state == "raised" and flag.limit == checks.REACHED and "0.20" in flag.sentence
    nothing = checks.diagnostic_inactive(None)
    assert nothing.state == "open" and math.isnan(nothing.value)
