"""Whether two defences together do more or less than the sum of what each does alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lib.errors import UserError
from lib.statistics.bootstrap import (
    RESAMPLES,
    identity_weights,
    percentile_interval,
    photo_share,
    zero_event_bound,
)
from lib.statistics.inputs import check_level
from lib.statistics.interval import Interval
from lib.statistics.paired import resampled_means, seeds_by_people


def interaction(
    both: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    neither: ArrayLike,
    *,
    seed: int,
    photos: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """both - first - second + neither, means over the same identities (defences specification, section 10).

    0: the effects add up. For AttAcc, below 0: together they take more from the attack than the sum of what each
    takes alone; above 0: less. Identities are resampled jointly, training seeds for each model apart.

    Args:
        both, first, second, neither: per-identity means (K,), or (S, K) under S training seeds (S may differ).
        photos: (K,) photos of each identity: then over photos (micro), else over identities (macro).

    Raises:
        UserError: different numbers of identities; values missing or not finite.
    """
    check_level(level, resamples)
    names, signs = ("both", "first", "second", "neither"), (1, -1, -1, 1)
    models = [
        seeds_by_people(values, name)
        for values, name in zip((both, first, second, neither), names, strict=True)
    ]
    people = models[0].shape[1]
    if any(values.shape[1] != people for values in models):
        counts = ", ".join(str(values.shape[1]) for values in models)
        raise UserError(
            f"interaction: expected the same identities in all four, got {counts}; attack the same people"
        )
    share = photo_share(photos, people)
    everything = np.concatenate(models)
    fractions = everything.min() >= 0 and everything.max() <= 1
    if fractions and (everything == everything[0]).all():
        bound = 2 * zero_event_bound(people, level=level)  # two differences, each within the bound
        return Interval(0.0, -bound, bound, people)
    rng = np.random.default_rng(seed)
    weights = identity_weights(people, resamples, rng)
    samples = [
        sign * resampled_means(values, weights * share, rng)
        for sign, values in zip(signs, models, strict=True)
    ]
    value = sum(
        sign * float((share * values.mean(0)).mean()) for sign, values in zip(signs, models, strict=True)
    )
    return percentile_interval(value, sum(samples), n=people, level=level)
