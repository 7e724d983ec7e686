"""Closed forms, coverage and degenerate cases of the intervals and tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lib.errors import UserError
from lib.statistics import (
    Interval,
    clustered_mean,
    clustered_statistic,
    compare_paired,
    detectable_difference,
    holm,
    identity_weights,
    mcnemar,
    nested_mean,
    nested_statistic,
    percentile_interval,
    sign_flip_p_value,
    summarise_seeds,
    t_interval,
    wilson,
    zero_event_bound,
)


def clustered_hits(rng, people, images, spread=1.0):
    """Hits of people whose own rates differ: (N,) values and (N,) identities; true mean .5."""
    rates = rng.beta(spread, spread, size=people)
    return (rng.random((people, images)) < rates[:, None]).ravel(), np.repeat(np.arange(people), images)


# Interval


def test_interval_prints_its_uncertainty_and_size():
    assert Interval(0.712, 0.65, 0.771, 62).percent() == "71.2 % [65.0, 77.1], n = 62"
    assert str(Interval(0.712, 0.65, 0.771, 62)) == "0.712 [0.650, 0.771], n = 62"
    assert Interval(0.05, -0.01, 0.11, 9).percent(signed=True) == "+5.0 % [-1.0, +11.0], n = 9"
    assert Interval(0.5, math.nan, math.nan, 1).percent() == "50.0 % no interval, n = 1"
    assert Interval(math.nan, math.nan, math.nan, 3).percent() == "undefined, n = 3"


def test_interval_excludes_and_refuses():
    assert Interval(1, 0.1, 2, 9).excludes() and Interval(-1, -2, -0.1, 9).excludes()
    assert not Interval(1, 0.0, 2, 9).excludes() and not Interval(1, math.nan, math.nan, 1).excludes()
    assert Interval(0, -1.959964, 1.959964, 9).standard_error() == pytest.approx(1)
    with pytest.raises(UserError):
        Interval(0, 1, -1, 9)


# Bootstrap


def test_weights_keep_the_number_of_people():
    weights = identity_weights(7, 100, np.random.default_rng(0))
    assert weights.shape == (100, 7) and (weights.sum(1) == 7).all() and weights.std() > 0.5


def test_macro_and_micro_means():
    values, identity = [1, 1, 1, 0], [0, 0, 0, 1]
    assert clustered_mean(values, identity, seed=0).value == 0.5
    assert clustered_mean(values, identity, seed=0, average="micro").value == 0.75
    assert clustered_mean(values, identity, seed=0).n == 2


def test_bootstrap_of_a_mean_has_the_width_of_the_t_interval():
    for people in (8, 200):
        values = np.random.default_rng(1).normal(size=people)
        ours = clustered_mean(values, np.arange(people), seed=0, resamples=10000)
        theirs = t_interval(values)
        width = (ours.high - ours.low) / (theirs.high - theirs.low)
        assert width == pytest.approx(1, abs=0.12 if people == 8 else 0.04)


def test_clustered_interval_covers_where_the_binomial_one_does_not():
    rng = np.random.default_rng(3)
    covered = binomial = 0
    for trial in range(200):
        values, identity = clustered_hits(rng, 40, 8)
        interval = clustered_mean(values, identity, seed=trial, resamples=400)
        covered += interval.low <= 0.5 <= interval.high
        naive = wilson(int(values.sum()), len(values))
        binomial += naive.low <= 0.5 <= naive.high
    assert covered / 200 == pytest.approx(0.95, abs=0.04)
    assert binomial / 200 < 0.85


def test_copies_of_images_add_no_information():
    values, identity = clustered_hits(np.random.default_rng(0), 20, 4)
    once = clustered_mean(values, identity, seed=0)
    again = clustered_mean(np.tile(values, 50), np.tile(identity, 50), seed=0)
    assert (once.low, once.high) == pytest.approx((again.low, again.high))


def test_no_event_is_bounded_per_person_not_per_image():
    identity = np.repeat(np.arange(60), 8)
    never = clustered_mean(np.zeros(480, bool), identity, seed=0)
    assert (never.value, never.low) == (0, 0) and never.high == pytest.approx(3 / 60, rel=0.05)
    always = clustered_mean(np.ones(480, bool), identity, seed=0)
    assert (always.value, always.high) == (1, 1) and always.low == pytest.approx(1 - 3 / 60, abs=0.003)
    assert zero_event_bound(60) == pytest.approx(
        stats.binomtest(0, 60, alternative="less").proportion_ci().high
    )


def test_having_seen_an_event_does_not_lower_the_bound():
    highs, lows = [], []
    for events in range(4):  # of 62 people, one image of eight each
        hits = np.zeros((62, 8))
        hits[:events, 0] = 1
        people = np.repeat(np.arange(62), 8)
        highs.append(clustered_mean(hits.ravel(), people, seed=0).high)
        lows.append(nested_mean(1 - hits.mean(1)[None], seed=0).low)
    assert highs == sorted(highs) and lows == sorted(lows, reverse=True)
    assert highs[0] == zero_event_bound(62) == 1 - lows[0]
    far = clustered_mean(np.full(62, 0.001) + np.arange(62) / 1e6, np.arange(62), seed=0)
    assert far.high < 0.002, "what is no share is left alone"


def test_models_that_agree_on_everybody_could_still_differ():
    found = compare_paired(np.ones(62), np.ones(62), seed=0)
    assert found.difference.high == zero_event_bound(62) and 0.05 < found.detectable < 0.08


def test_one_identity_gives_no_interval():
    alone = clustered_mean([0.0, 1.0], [4, 4], seed=0)
    assert alone.value == 0.5 and math.isnan(alone.low) and math.isnan(alone.high) and alone.n == 1
    constant = clustered_mean([2.0, 2.0], [0, 1], seed=0)
    assert (constant.low, constant.high) == (2, 2)


def test_same_seed_same_interval():
    values, identity = clustered_hits(np.random.default_rng(0), 20, 4)
    assert clustered_mean(values, identity, seed=5) == clustered_mean(values, identity, seed=5)
    assert clustered_mean(values, identity, seed=5) != clustered_mean(values, identity, seed=6)


def test_statistic_of_several_means_is_resampled_jointly():
    base = np.random.default_rng(0).uniform(1, 2, 50)
    columns = np.stack([3 * base, base], 1)
    ratio = clustered_statistic(columns, lambda means: means[:, 0] / means[:, 1], seed=0)
    assert ratio.value == pytest.approx(3) and (ratio.low, ratio.high) == pytest.approx((3, 3))


def test_undefined_resamples_are_left_out():
    samples = np.r_[np.linspace(0, 1, 999), np.full(500, np.nan)]
    interval = percentile_interval(0.5, samples, n=10**6)
    assert (interval.low, interval.high) == pytest.approx((0.025, 0.975), abs=2e-3)
    assert math.isnan(percentile_interval(np.nan, np.full(5, np.nan), n=9).low)


def test_nested_bootstrap_contains_both_sources():
    rng = np.random.default_rng(0)
    seeds, people = rng.normal(size=(6, 1)), rng.normal(size=(1, 40))
    flat, by_seed, by_person = 0 * seeds + 0 * people + 0.5, seeds + 0 * people, 0 * seeds + people
    width = {
        name: (lambda i: i.high - i.low)(nested_mean(table, seed=0))
        for name, table in {
            "flat": flat,
            "seed": by_seed,
            "person": by_person,
            "both": seeds + people,
        }.items()
    }
    assert width["flat"] == 0
    assert width["person"] == pytest.approx(2 * 2.02 * people.std(ddof=1) / math.sqrt(40), rel=0.1)
    assert width["both"] == pytest.approx(math.hypot(width["seed"], width["person"]), rel=0.1)
    never, always = (nested_mean(np.full((2, 20), value), seed=0) for value in (0.0, 1.0))
    assert (never.low, never.high) == (0, pytest.approx(1 - 0.05 ** (1 / 20)))
    assert (always.low, always.high) == (pytest.approx(0.05 ** (1 / 20)), 1)


def test_a_micro_mean_counts_photos_not_people():
    """Natural accuracy is micro: means over seeds and people must give what pooling all photos gives."""
    rng = np.random.default_rng(0)
    photos = np.array([1, 2, 5, 12, 30] * 6)
    hits = [[rng.random(n) < 0.7 for n in photos] for _ in range(3)]
    means = np.array([[person.mean() for person in seed] for seed in hits])
    pooled = np.mean([np.concatenate(seed).mean() for seed in hits])
    micro, macro = nested_mean(means, photos=photos, seed=0), nested_mean(means, seed=0)
    assert micro.value == pytest.approx(pooled) and macro.value == pytest.approx(means.mean())
    assert abs(micro.value - macro.value) > 1e-3 and micro.low < micro.value < micro.high
    first, second = (np.concatenate(hits[i]) for i in (0, 1))
    compared = compare_paired(means[0], means[1], photos=photos, seed=0)
    assert compared.difference.value == pytest.approx(first.mean() - second.mean())
    identity = np.repeat(np.arange(len(photos)), photos)
    alone = clustered_mean(first, identity, seed=0, average="micro")
    again = nested_mean(means[:1], photos=photos, seed=0)
    assert again.high - again.low == pytest.approx(alone.high - alone.low, rel=0.1)
    for function in (
        lambda c: nested_mean(means, photos=c, seed=0),
        lambda c: compare_paired(means[0], means[1], photos=c, seed=0),
    ):
        for bad in (photos[:-1], 0 * photos):
            with pytest.raises(UserError, match="30 positive counts"):
                function(bad)


@pytest.mark.parametrize(
    ("values", "identity", "options"),
    [
        ([], [], {}),
        ([1.0], [0, 1], {}),
        ([1.0, math.nan], [0, 1], {}),
        ([1.0, 0.0], [0, 1], {"level": 95}),
        ([1.0, 0.0], [0, 1], {"resamples": 1}),
        ([1.0, 0.0], [0, 1], {"average": "mean"}),
    ],
)
def test_clustered_mean_refuses_bad_input(values, identity, options):
    with pytest.raises(UserError):
        clustered_mean(values, identity, seed=0, **options)


# Proportions


def test_wilson_known_values():
    none, half = wilson(0, 10), wilson(5, 10)
    assert (none.low, none.high) == pytest.approx((0, 0.2775), abs=1e-4)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert wilson(2618, 3009).high - 0.87 == pytest.approx(1.96 * 0.0061, abs=6e-4)
    for successes, n in ((1, 0), (5, 4), (-1, 4)):
        with pytest.raises(UserError):
            wilson(successes, n)


def test_mcnemar_counts_only_disagreement():
    first = np.r_[np.ones(10), np.zeros(2), np.ones(88)]
    second = np.r_[np.zeros(10), np.ones(2), np.ones(88)]
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (10, 2)
    assert result.difference == pytest.approx(0.08) and result.z == pytest.approx(8 / math.sqrt(12))
    assert result.p_value == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    same = mcnemar(first, first)
    assert same.p_value == 1 and math.isnan(same.z)
    for other in (second[:5], second + 0.5):
        with pytest.raises(UserError):
            mcnemar(first, other)


# Paired comparison


def test_pairing_removes_the_spread_between_people():
    rng = np.random.default_rng(0)
    people = rng.uniform(0.2, 0.8, 60)
    first, second = people + 0.05 + rng.normal(0, 0.02, 60), people
    result = compare_paired(first, second, seed=0)
    assert result.difference.low > 0.03 and result.difference.high < 0.07 and result.difference.n == 60
    assert result.p_value < 1e-3
    alone = clustered_mean(first, np.arange(60), seed=0)
    assert result.difference.high - result.difference.low < 0.3 * (alone.high - alone.low)
    assert result.detectable < 0.015


def test_sign_flip_is_exact_for_few_people():
    assert sign_flip_p_value(np.array([1.0, 2, 3, 4, 5]), seed=0) == pytest.approx(2 / 2**5)
    assert sign_flip_p_value(np.array([1.0, 2, 3, 4, 5, 6]), seed=0) == pytest.approx(2 / 2**6)
    assert sign_flip_p_value(np.array([1.0, -1.0]), seed=0) == 1
    assert sign_flip_p_value(np.zeros(9), seed=0) == 1 and sign_flip_p_value([3.0], seed=0) == 1


def test_sign_flip_p_is_uniform_without_a_difference():
    rng = np.random.default_rng(0)
    p = [sign_flip_p_value(rng.standard_t(3, size=15), seed=i, flips=199) for i in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) < 0.1


def test_paired_differences_carry_the_seeds():
    """Two models that differ only by chance from one training to the next must not look different."""
    rng = np.random.default_rng(0)
    people = rng.uniform(0.2, 0.8, 60)
    effects = [rng.normal(0, 0.05, (4, 1)) for _ in range(2)]
    first, second = (people + effect + rng.normal(0, 0.01, (4, 60)) for effect in effects)
    nested, averaged = (
        compare_paired(*pair, seed=0) for pair in ((first, second), (first.mean(0), second.mean(0)))
    )
    assert nested.difference.value == pytest.approx(averaged.difference.value)
    by_seed = math.hypot(*(effect.std() / 2 for effect in effects))  # of a mean of 4, as a bootstrap sees it
    assert nested.difference.standard_error() == pytest.approx(by_seed, rel=0.1)
    assert nested.difference.standard_error() > 5 * averaged.difference.standard_error()
    assert nested.detectable > averaged.detectable
    once = compare_paired(first[:1], second[:1], seed=0)
    assert once == compare_paired(first[0], second[0], seed=0)
    unequal = compare_paired(first, second[:1], seed=0)
    assert unequal.difference.value == pytest.approx(float(first.mean() - second[0].mean()))
    photos = rng.integers(1, 9, 60)
    summary = summarise_seeds(first, photos=photos, seed=0)
    assert summary.points == pytest.approx(first @ photos / photos.sum())
    assert summary.nested.value == pytest.approx(summary.over_seeds.value)


def test_agreement_on_everybody_is_not_certainty():
    result = compare_paired(np.full(30, 0.5), np.full(30, 0.5), seed=0)
    bound = zero_event_bound(30)
    assert (result.difference.low, result.difference.high) == (-bound, bound) and result.p_value == 1


def test_unequal_people_are_refused():
    with pytest.raises(UserError, match="align"):
        compare_paired([1.0, 0.0], [1.0], seed=0)


def test_detectable_difference_is_found_four_times_in_five():
    assert detectable_difference(1.0) == pytest.approx(2.8016, abs=1e-3)
    assert detectable_difference(1.0, degrees=9) > 3
    rng = np.random.default_rng(0)
    people = 20
    effect = detectable_difference(1 / math.sqrt(people), degrees=people - 1)
    samples = rng.normal(effect, 1, size=(4000, people))
    assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.03)


def test_holm_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    with pytest.raises(UserError):
        holm([0.1, 1.2])


# Seeds


def test_t_interval_known_values():
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.value == 2 and interval.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert interval.n == 3
    one = t_interval([0.4])
    assert one.value == 0.4 and math.isnan(one.low)


def test_seed_summary_separates_the_sources():
    people = np.random.default_rng(0).uniform(size=30)
    table = np.stack([people, people, people])
    summary = summarise_seeds(table, seed=0)
    assert summary.points.tolist() == pytest.approx([people.mean()] * 3)
    assert summary.over_seeds.high - summary.over_seeds.low == pytest.approx(0, abs=1e-12)
    assert summary.over_identities.high - summary.over_identities.low > 0.1
    assert summary.nested.n == 30 and summary.over_seeds.n == 3


def test_a_statistic_of_two_models_resamples_the_seeds_of_each():
    rng = np.random.default_rng(0)
    people = 0.01 * rng.normal(size=(1, 80)) + 1
    ratio = lambda means: means[0][:, 0] / means[1][:, 0]  # noqa: E731
    still = nested_statistic([[people], [people]], ratio, seed=0)
    assert still.value == 1 and still.low == still.high == 1, "one draw of people serves both"
    seeds = nested_statistic([[np.concatenate([people, 1.2 * people])], [people]], ratio, seed=0)
    assert (
        seeds.value == pytest.approx(1.1)
        and seeds.low == pytest.approx(1)
        and seeds.high == pytest.approx(1.2)
    )
    with pytest.raises(UserError, match="align them"):
        nested_statistic([[people], [people[:, 1:]]], ratio, seed=0)
