"""Spread over training or attack seeds (metrics specification, section 9).

With a handful of seeds a bootstrap over them is too narrow, so every seed's point is kept and the interval
is Student's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lib.statistics.bootstrap import RESAMPLES, nested_mean, photo_share
from lib.statistics.inputs import Floats, check_level, finite
from lib.statistics.interval import Interval


@dataclass(frozen=True)
class SeedSummary:
    """``points`` (S,) mean of each seed; ``over_seeds`` t interval, n = S; ``over_identities`` for these
    very seeds, n = K; ``nested`` over both, n = K. The first and second say which source dominates."""

    points: Floats
    over_seeds: Interval
    over_identities: Interval
    nested: Interval


def t_interval(seed_means: ArrayLike, *, level: float = 0.95) -> Interval:
    """Student interval (S - 1 degrees of freedom) of the mean over seeds; n = S. NaN limits for one seed.

    It may leave [0, 1] for fractions: that says how little a few seeds tell.
    """
    check_level(level)
    means = finite(seed_means, "seed means")
    value, n = float(means.mean()), len(means)
    if n < 2:
        return Interval(value, np.nan, np.nan, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * means.std(ddof=1) / np.sqrt(n))
    return Interval(value, value - half, value + half, n)


def summarise_seeds(
    values: ArrayLike,
    *,
    seed: int,
    photos: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> SeedSummary:
    """All three intervals of one quantity.

    Args:
        values: (S, K) mean of each identity under each training or attack seed.
        photos: (K,) photos of each identity: all means are then micro.

    Raises:
        UserError: if values are missing or not finite.
    """
    values = finite(values, "values", ndim=2)
    options = {"seed": seed, "photos": photos, "level": level, "resamples": resamples}
    points = values @ photo_share(photos, values.shape[1]) / values.shape[1]
    return SeedSummary(
        points,
        t_interval(points, level=level),
        nested_mean(values.mean(0, keepdims=True), **options),
        nested_mean(values, **options),
    )
