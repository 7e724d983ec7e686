"""Bootstrap over identities, vectorised: resampling K people is a multinomial weight for each.

Metrics specification, section 9. A binomial interval over images is too short by sqrt(1 + (m - 1) rho).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats

from lib.errors import UserError
from lib.evaluation import identity_means
from lib.statistics.inputs import Floats, check_level, finite
from lib.statistics.interval import Interval

RESAMPLES = 2000


def identity_weights(identities: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each identity is drawn, (resamples, identities); rows sum to ``identities``."""
    return rng.multinomial(identities, np.full(identities, 1 / identities), size=resamples).astype(np.float64)


def percentile_interval(value: float, samples: ArrayLike, *, n: int, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap ``samples`` (B,), widened for few units.

    The bootstrap of a mean is too narrow by sqrt((n - 1) / n) and ignores that its width is estimated; the
    expanded percentiles (Hesterberg 2015, doi 10.1080/00031305.2015.1089789, section 5.3) give it the width
    of the t interval. From about 50 units on this changes little.

    NaN samples (statistic undefined in that resample) are left out; all NaN, or n < 2, gives NaN limits.
    """
    check_level(level)
    samples = np.asarray(samples, dtype=np.float64)
    samples = samples[~np.isnan(samples)]
    if n < 2 or len(samples) == 0:
        return Interval(float(value), np.nan, np.nan, n)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high), n)


def zero_event_bound(identities: int, *, level: float = 0.95) -> float:
    """Exact upper bound of a rate after 0 events in K identities, 1 - (1 - level)^(1/K): about 3 / K."""
    check_level(level)
    if identities < 1:
        raise UserError(f"identities: expected 1 or more, got {identities}; attack somebody first")
    return float(1 - (1 - level) ** (1 / identities))


def clustered_mean(
    values: ArrayLike,
    identity: ArrayLike,
    *,
    seed: int,
    average: Literal["macro", "micro"] = "macro",
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of per-image values with an interval that resamples identities and keeps all their images.

    Of shares, resampling hardly sees what is rare; see :func:`share_interval`.

    Args:
        values: (N,) per image: hits, distances. identity: (N,) integers.
        average: "macro" weighs identities alike, "micro" images alike (equal when all have m images).

    Returns:
        Interval with n = number of identities; NaN limits with one identity (except for all 0 or all 1).

    Raises:
        UserError: if lengths differ, there are no values or they are not finite.
    """
    check_level(level, resamples)
    if average not in ("macro", "micro"):
        raise UserError(f"average: expected 'macro' or 'micro', got {average!r}; choose one")
    means = identity_means(torch.as_tensor(finite(values, "values")), torch.as_tensor(np.asarray(identity)))
    mean, count = means.mean.numpy(), means.count.numpy().astype(np.float64)
    share = np.ones_like(count) if average == "macro" else count
    value, people = float((share * mean).sum() / share.sum()), len(mean)
    weights = identity_weights(people, resamples, np.random.default_rng(seed))
    samples = weights @ (share * mean) / (weights @ share)
    samples = samples.clip(mean.min(), mean.max())  # rounding must not leave [0, 1]
    return share_interval(percentile_interval(value, samples, n=people, level=level), mean, level=level)


def share_interval(found: Interval, values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Widen the interval of a mean of shares where resampling is too sure: near 0 and 1.

    Where most ``values`` (of people, any shape) are exactly 0, no upper limit is below the :func:`zero_event_bound`,
    which holds when all are 0: to have seen an event must not lower it; and alike at 1. Other values are left alone.
    """
    values = np.asarray(values)
    if values.min() < 0 or values.max() > 1:
        return found
    low, high, bound = found.low, found.high, zero_event_bound(found.n, level=level)
    if (values == 0).mean() > 0.5:
        low, high = np.fmax(low, 0.0), np.fmax(high, bound)
    if (values == 1).mean() > 0.5:
        low, high = np.fmin(low, 1 - bound), np.fmin(high, 1.0)
    return Interval(found.value, float(low), float(high), found.n)


def clustered_statistic(
    columns: ArrayLike,
    statistic: Callable[[Floats], Floats],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Interval of a function of several means, such as the scaled leakage (a ratio of mean distances).

    Args:
        columns: (K, c) per-identity quantities, resampled together.
        statistic: maps means (B, c) to values (B,); NaN where undefined.
    """
    check_level(level, resamples)
    columns = finite(columns, "columns", ndim=2)
    weights = identity_weights(len(columns), resamples, np.random.default_rng(seed))
    value = float(statistic(columns.mean(0, keepdims=True))[0])
    return percentile_interval(
        value, statistic(weights @ columns / len(columns)), n=len(columns), level=level
    )


def nested_statistic(
    models: Sequence[Sequence[ArrayLike]],
    statistic: Callable[[list[Floats]], Floats],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Interval of a function of means of several models, such as a ratio of ratios of distances.

    Args:
        models: of each its quantities, (S, K) mean of each identity under each of its seeds. One draw of people serves
            all, one draw of a model's seeds all its quantities.
        statistic: maps a list of the models' means, (B, q) each, to values (B,); NaN where undefined.
    """
    check_level(level, resamples)
    checked = [[finite(values, "values", ndim=2) for values in model] for model in models]
    people = checked[0][0].shape[1]
    if any(values.shape != (len(model[0]), people) for model in checked for values in model):
        raise UserError(
            f"models: expected the same {people} identities in all, and a model's seeds; align them"
        )
    rng = np.random.default_rng(seed)
    inner = identity_weights(people, resamples, rng) / people
    means, samples = [], []
    for model in checked:
        outer = identity_weights(len(model[0]), resamples, rng) / len(model[0])
        means.append(np.array([[values.mean() for values in model]]))
        samples.append(np.stack([((inner @ values.T) * outer).sum(1) for values in model], 1))
    return percentile_interval(float(statistic(means)[0]), statistic(samples), n=people, level=level)


def nested_mean(
    values: ArrayLike,
    *,
    seed: int,
    photos: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean over seeds and identities, resampling seeds outside and identities inside.

    All seeds attack the same people, so one draw of people serves every seed of a resample: independent
    draws would average identity variance away. With five seeds or fewer the share of the seeds is
    underestimated; print :func:`lib.statistics.t_interval` of the seed means beside it. Of shares see
    :func:`share_interval`.

    Args:
        values: (S, K) mean of each identity under each seed.
        photos: (K,) photos of each identity: the mean is then micro, over photos; None: macro.

    Returns:
        Interval with n = K.
    """
    check_level(level, resamples)
    values = finite(values, "values", ndim=2)
    seeds, people = values.shape
    share = photo_share(photos, people)
    rng = np.random.default_rng(seed)
    outer = identity_weights(seeds, resamples, rng)
    inner = identity_weights(people, resamples, rng)
    samples = ((inner @ (share * values).T) * outer).sum(1) / (seeds * (inner @ share))
    samples = samples.clip(values.min(), values.max())  # rounding must not leave [0, 1]
    found = percentile_interval(float((values @ share).mean() / people), samples, n=people, level=level)
    return share_interval(found, values, level=level)


def photo_share(photos: ArrayLike | None, people: int) -> Floats:
    """(K,) weight of each identity, 1 on average: its photos, or 1 for everybody if ``photos`` is None.

    Raises:
        UserError: unless there is one positive count for each identity.
    """
    if photos is None:
        return np.ones(people)
    photos = finite(photos, "photos")
    if photos.shape != (people,) or photos.min() <= 0:
        raise UserError(f"photos: expected {people} positive counts, got shape {photos.shape}; count them")
    return photos * (people / photos.sum())
