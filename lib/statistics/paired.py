"""Two models attacked on the same identities (metrics specification, section 9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lib.errors import UserError
from lib.statistics.bootstrap import (
    RESAMPLES,
    identity_weights,
    percentile_interval,
    photo_share,
    zero_event_bound,
)
from lib.statistics.inputs import Floats, check_level, finite
from lib.statistics.interval import Interval


@dataclass(frozen=True)
class PairedComparison:
    """``difference``: first minus second, n = identities; ``p_value``: sign-flip permutation, two-sided;
    ``detectable``: the true difference that would be found with 80 % power, NaN with one identity."""

    difference: Interval
    p_value: float
    detectable: float


def compare_paired(
    first: ArrayLike,
    second: ArrayLike,
    *,
    seed: int,
    photos: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    flips: int = 9999,
) -> PairedComparison:
    """Difference of the means of two models over identities, resampled jointly, and over training seeds,
    resampled for each model apart: macro, or micro (over photos) if ``photos`` (K,) counts those of each.

    If two models agree on every identity and the values are fractions, the interval is plus or minus the
    :func:`zero_event_bound` instead of the empty one that resampling would give. The p value flips the signs
    of the identities' differences, seeds averaged.

    Args:
        first, second: per-identity means (K,), or (S, K) under S training seeds (S may differ).

    Raises:
        UserError: if the numbers of identities differ, or values are missing or not finite.
    """
    check_level(level, resamples)
    first, second = (seeds_by_people(values, name) for values, name in ((first, "first"), (second, "second")))
    people = first.shape[1]
    if second.shape[1] != people:
        raise UserError(
            f"paired comparison: expected equally many identities, got {people} and {second.shape[1]}; align them"
        )
    share = photo_share(photos, people)
    difference = share * (first.mean(0) - second.mean(0))
    everything = np.concatenate([first, second])
    fractions = everything.min() >= 0 and everything.max() <= 1
    if fractions and (everything == everything[0]).all():
        bound = zero_event_bound(people, level=level)
        interval = Interval(0.0, -bound, bound, people)
    else:
        rng = np.random.default_rng(seed)
        weights = identity_weights(people, resamples, rng)
        samples = [resampled_means(values, weights * share, rng) for values in (first, second)]
        interval = percentile_interval(difference.mean(), samples[0] - samples[1], n=people, level=level)
    detectable = float("nan")
    if people > 1:
        of_people = float(difference.std(ddof=1) / np.sqrt(people))
        people_alone = len(first) == len(second) == 1 and of_people > 0
        error = of_people if people_alone else max(of_people, interval.standard_error(level=level))
        detectable = detectable_difference(error, degrees=people - 1, level=level)
    return PairedComparison(interval, sign_flip_p_value(difference, seed=seed, flips=flips), detectable)


def seeds_by_people(values: ArrayLike, name: str) -> Floats:
    """(S, K) of per-identity means (K,) or (S, K). Raises: UserError if they are missing or not finite."""
    array = np.asarray(values)
    return finite(array, name, ndim=2) if array.ndim == 2 else finite(array, name)[None]


def resampled_means(values: Floats, weights: Floats, rng: np.random.Generator) -> Floats:
    """(B,) means of (S, K) under weights of the people (B, K) and own draws of the seeds."""
    by_seed = weights @ values.T / weights.sum(1, keepdims=True)
    if len(values) == 1:
        return by_seed[:, 0]
    return (by_seed * identity_weights(len(values), len(weights), rng)).sum(1) / len(values)


def sign_flip_p_value(differences: ArrayLike, *, seed: int, flips: int = 9999) -> float:
    """Two-sided p of "no difference": under it each identity's difference (K,) could have either sign.

    Exact when 2^K <= flips, else from random flips (never below 1 / (flips + 1)). The smallest exact p is
    2 / 2^K, so fewer than six identities cannot reach 5 %.
    """
    differences = finite(differences, "differences")
    if len(differences) == 1 or not differences.any():
        return 1.0
    result = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=flips,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def detectable_difference(
    standard_error: float, *, degrees: int | None = None, level: float = 0.95, power: float = 0.8
) -> float:
    """The true difference that a two-sided test finds with probability ``power``: (t_level + t_power) * SE.

    Args:
        standard_error: of the difference, >= 0; NaN gives NaN.
        degrees: of freedom; None uses the normal law (2.80 * SE by default).
    """
    check_level(level)
    check_level(power)
    if standard_error < 0 or (degrees is not None and degrees < 1):
        raise UserError(
            f"detectable difference: expected SE >= 0 and df >= 1, got {standard_error}, {degrees}"
        )
    law = stats.norm if degrees is None else stats.t(degrees)
    return float((law.ppf((1 + level) / 2) + law.ppf(power)) * standard_error)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's adjusted p-values in input order (family-wise error over all setups).

    Raises:
        UserError: if there are none or one lies outside [0, 1].
    """
    p = finite(p_values, "p values")
    if p.min() < 0 or p.max() > 1:
        raise UserError(f"p values: expected [0, 1], got {p.min()} to {p.max()}; pass probabilities")
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    result = np.empty_like(p)
    result[order] = adjusted
    return result
