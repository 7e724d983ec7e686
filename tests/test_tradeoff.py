"""The trade-off measures of the metrics specification, section 7."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lib.errors import UserError
from lib.statistics import (
    Interval,
    Points,
    advantage_over_frontier,
    dominance_probability,
    frontier_attack,
    hypervolume,
    hypervolume_interval,
    matched_attack,
    matched_loss,
    paper_ratio,
    pareto_front,
    verdict,
    zero_event_bound,
)


def family(accuracy, attack, people=60, seed=0, noise=0.05):
    """Points whose per-identity values scatter around the given means, with the same people everywhere."""
    person = np.random.default_rng(seed).normal(0, noise, people)
    person -= person.mean()
    return Points(
        attack=np.clip(np.asarray(attack)[:, None] + person, 0, 1),
        accuracy=np.clip(np.asarray(accuracy)[:, None] + person, 0, 1),
    )


def test_pareto_front_drops_the_dominated():
    accuracy, attack = [0.9, 0.8, 0.7, 0.6, 0.9], [0.7, 0.4, 0.5, 0.1, 0.7]
    assert pareto_front(accuracy, attack).tolist() == [True, True, False, True, True]
    with pytest.raises(UserError):
        pareto_front([0.1], [0.1, 0.2])


def test_hypervolume_of_the_specification():
    accuracy, privacy = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.3, 0.6, 0.5, 0.9])
    area = hypervolume(accuracy, 1 - privacy, reference=(0.5, 0.9))
    assert float(area) == pytest.approx(0.20)
    share = hypervolume(accuracy, 1 - privacy, reference=(0.5, 0.9), ideal=(1.0, 0.0))
    assert float(share) == pytest.approx(0.20 / (0.5 * 0.9))
    stacked = hypervolume(
        np.stack([accuracy, accuracy[::-1]]), 1 - np.stack([privacy, privacy[::-1]]), reference=(0.5, 0.9)
    )
    assert stacked == pytest.approx([0.2, 0.2])


def test_hypervolume_outside_the_box():
    assert float(hypervolume([0.4, 0.95], [0.1, 0.95], reference=(0.5, 0.9))) == 0
    assert float(hypervolume([1.0], [0.0], reference=(0.5, 0.9), ideal=(0.8, 0.2))) == 1
    with pytest.raises(UserError, match="beyond"):
        hypervolume([0.5], [0.5], reference=(0.9, 0.5), ideal=(0.8, 0.2))


def test_matched_attack_interpolates_the_front_and_admits_defeat():
    accuracy, attack = [0.9, 0.8, 0.7], [0.6, 0.3, 0.5]
    assert matched_attack(accuracy, attack, 0.85) == pytest.approx(0.45)
    assert matched_attack(accuracy, attack, 0.75) == pytest.approx(0.3), "0.7 is dominated"
    assert matched_attack(accuracy, attack, 0.9) == pytest.approx(0.6)
    assert math.isnan(matched_attack(accuracy, attack, 0.91))


def test_matched_loss_reports_gain_and_not_reached():
    nodef = family([0.9], [0.8])
    sweep = family([0.895, 0.87, 0.8], [0.7, 0.5, 0.2])
    zero, one, three, five = matched_loss(sweep, nodef, seed=0)
    assert math.isnan(zero.attack.value) and math.isnan(zero.gain.low) and zero.reached < 0.1
    assert one.attack.value == pytest.approx(0.5 + 0.2 * 0.02 / 0.025)
    assert one.gain.value == pytest.approx(0.8 - one.attack.value) and one.reached == 1
    assert three.attack.value == pytest.approx(0.5) and five.attack.value == pytest.approx(0.5 - 0.3 * 2 / 7)
    assert three.attack.low < 0.5 < three.attack.high and three.gain.n == 60
    with pytest.raises(UserError, match="one NoDef"):
        matched_loss(sweep, sweep, seed=0)


def test_nodef_loses_nothing_to_itself_whatever_its_seeds():
    rng = np.random.default_rng(0)
    accuracy = np.stack([np.full((1, 60), 0.88), np.full((1, 60), 0.94)])
    nodef = Points(rng.random((2, 1, 60)), accuracy)
    weaker = Points(0.5 * rng.random((2, 1, 60)), accuracy - 0.1)
    sweep = Points(
        *(np.concatenate(pair, 1) for pair in ((nodef.attack, weaker.attack), (accuracy, weaker.accuracy)))
    )
    zero, *_ = matched_loss(sweep, nodef, seed=0)
    assert zero.reached == 1 and zero.gain.value == 0 and zero.gain.low >= -1e-12
    assert matched_loss(weaker, nodef, seed=0)[0].reached == 0


def test_frontier_is_isotonic_and_flat_beyond_the_best():
    accuracy, attack = [0.5, 0.6, 0.7, 0.8], [0.2, 0.5, 0.4, 0.7]
    at = [0.5, 0.6, 0.7, 0.75, 0.8, 0.9]
    assert frontier_attack(accuracy, attack, at, chance=None) == pytest.approx(
        [0.2, 0.45, 0.45, 0.575, 0.7, 0.7]
    )
    assert frontier_attack(accuracy, attack, [0.3], chance=None) == pytest.approx([0.2])
    assert frontier_attack(accuracy, attack, [0.3, 0.1], chance=0.1) == pytest.approx([0.15, 0.1])


FRONTIER = ([0.5, 0.6, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.5, 0.8])


def test_a_weaker_nodef_has_no_advantage():
    frontier = family(*FRONTIER)
    same = advantage_over_frontier(
        family([0.8, 0.65], [0.5, 0.25], seed=1), frontier, chance=0.02, seed=0, resamples=200
    )
    for point in same:
        assert point.advantage.value == pytest.approx(0, abs=1e-9)
        assert verdict(point.advantage).outcome == "not established"
        assert not point.extrapolated and point.detectable > 0


def test_no_variation_is_not_certainty():
    nobody = Points(np.zeros((2, 30)), np.full((2, 30), 0.8))
    (first, _) = advantage_over_frontier(nobody, nobody, chance=None, seed=0, resamples=50)
    bound = zero_event_bound(30)
    assert (first.advantage.low, first.advantage.high) == (-bound, bound) and first.detectable > bound
    everybody = Points(np.ones((2, 30)), np.full((2, 30), 0.8))
    (first, _) = advantage_over_frontier(nobody, everybody, chance=None, seed=0, resamples=50)
    assert (first.advantage.low, first.advantage.high) == (1 - bound, 1)
    alone = Points(np.zeros((1, 1)), np.ones((1, 1)))
    (first,) = advantage_over_frontier(alone, alone, chance=None, seed=0, resamples=50)
    assert math.isnan(first.advantage.low) and verdict(first.advantage).outcome == "not established"


def test_advantage_and_harm_are_found_with_their_size():
    frontier = family(*FRONTIER)
    defence = family([0.85, 0.95, 0.7, 0.4], [0.35, 0.6, 0.45, 0.0])
    better, beyond, worse, weak = advantage_over_frontier(
        defence, frontier, chance=0.02, seed=0, resamples=200
    )
    assert better.frontier == pytest.approx(0.65) and better.advantage.value == pytest.approx(0.3)
    assert better.advantage.low < 0.3 < better.advantage.high
    assert beyond.frontier == pytest.approx(0.8), "F at NoDef's best"
    assert weak.extrapolated and not beyond.extrapolated and not better.extrapolated
    assert verdict(better.advantage).outcome == "RE helps"
    assert verdict(worse.advantage, defence="FE").outcome == "FE hurts"
    assert better.advantage.n == 60 and better.accuracy == pytest.approx(0.85)


def test_advantage_interval_shrinks_when_people_are_paired():
    rng = np.random.default_rng(0)
    person = rng.normal(0, 0.1, 60)
    frontier = Points(np.array([[0.3], [0.6]]) + person, np.array([[0.6], [0.8]]) + np.zeros(60))
    widths = []
    for effect in (person, rng.permutation(person)):
        defence = Points(0.4 + effect[None] + rng.normal(0, 0.02, 60), np.full((1, 60), 0.8))
        (point,) = advantage_over_frontier(defence, frontier, chance=None, seed=0, resamples=200)
        widths.append(point.advantage.high - point.advantage.low)
    assert widths[0] < 0.4 * widths[1]


def test_seeds_widen_and_partly_attacked_people_are_accepted():
    rng = np.random.default_rng(0)
    attack, accuracy = rng.uniform(0.4, 0.6, (1, 2, 20)), rng.uniform(0.7, 0.9, (1, 2, 50))
    spread = np.array([-0.2, 0.0, 0.2])[:, None, None]
    single = Points(np.repeat(attack, 3, 0), np.repeat(accuracy, 3, 0))
    several = Points(attack + spread, np.repeat(accuracy, 3, 0))
    corner = {"reference": (0.5, 1.0), "seed": 0}
    narrow, wide = hypervolume_interval(single, **corner), hypervolume_interval(several, **corner)
    assert narrow.value == pytest.approx(wide.value) and narrow.n == 20
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_micro_accuracy_weighs_people_by_photos():
    attack, accuracy = np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])
    assert Points(attack, accuracy).means()[0].tolist() == [0.5]
    assert Points(attack, accuracy, np.array([3.0, 1.0])).means()[0].tolist() == [0.75]


def test_dominance_probability_ends():
    good, bad = family([0.9], [0.2]), family([0.8, 0.95], [0.5, 0.1])
    result = dominance_probability(good, bad, seed=0, resamples=200)
    assert result.tolist() == [[1.0, 0.0]]
    assert dominance_probability(good, good, seed=0, resamples=50).tolist() == [[0.0]]


def test_ratio_is_printed_and_marked():
    def ratio(defence_accuracy, defence_attack):
        return paper_ratio(
            nodef_attack=0.8,
            defence_attack=defence_attack,
            nodef_accuracy=0.9,
            defence_accuracy=defence_accuracy,
        )

    usual = ratio(0.85, 0.3)
    assert usual.defined and usual.value == pytest.approx(10) and str(usual) == "10.00"
    near = ratio(0.8971, 0.3)
    assert not near.defined and "near zero" in str(near) and near.value == pytest.approx(0.5 / 0.0029)
    assert math.isnan(ratio(0.9, 0.3).value) and not ratio(0.9, 0.3).defined
    assert str(ratio(0.95, 0.3)) == "undefined (dominates NoDef)"
    assert str(ratio(0.85, 0.9)) == "undefined (dominated by NoDef)"
    assert ratio(0.95, 0.9).note == "utility gain, privacy loss"


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        (Interval(0.1, 0.01, 0.2, 62), "RE helps"),
        (Interval(0.1, 0.0, 0.2, 62), "not established"),
        (Interval(-0.1, -0.2, -0.01, 62), "RE hurts"),
        (Interval(0.1, math.nan, math.nan, 1), "not established"),
        (Interval(0.1, 0.01, 0.2, 5), "not established"),
    ],
)
def test_verdict_needs_an_interval_without_zero(interval, outcome):
    assert verdict(interval).outcome == outcome


def test_verdict_says_what_could_have_been_detected():
    result = verdict(Interval(0.02, -0.0783, 0.1177, 40))
    assert result.detectable == pytest.approx(2.8016 * 0.05, rel=1e-3)
    assert result.sentence == (
        "not established: +2.0 % [-7.8, +11.8], n = 40; a difference of 14.0 points could have been detected "
        "with 80 % power"
    )


def test_points_refuse_bad_input():
    good = np.full((2, 6), 0.5)
    for attack, accuracy in ((good, good[:1]), (good * 200, good), (good, good * np.nan), (good[0], good[0])):
        with pytest.raises(UserError):
            Points(attack, accuracy)
    with pytest.raises(UserError, match="photos"):
        Points(good, good, np.zeros(6))
    with pytest.raises(UserError, match="same people"):
        advantage_over_frontier(Points(good, good), Points(good[:, :5], good[:, :5]), chance=None, seed=0)
