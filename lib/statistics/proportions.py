"""Proportions of independent images, such as natural accuracy (metrics specification, sections 8 and 9)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lib.errors import UserError
from lib.statistics.inputs import check_level
from lib.statistics.interval import Interval


class McNemar(NamedTuple):
    """Two models on the same images. ``difference``: accuracy of the first minus the second; ``z`` =
    (b - c) / sqrt(b + c), NaN if they never disagree; ``p_value``: exact, two-sided."""

    only_first: int
    only_second: int
    difference: float
    z: float
    p_value: float


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion of independent trials.

    Raises:
        UserError: unless 0 <= successes <= n and n >= 1.
    """
    check_level(level)
    if not (n >= 1 and 0 <= successes <= n):
        raise UserError(f"Wilson interval: expected 0 <= successes <= n with n >= 1, got {successes} of {n}")
    limits = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(limits.low), float(limits.high), int(n))


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike) -> McNemar:
    """Exact McNemar test from the correctness (N,) of two models on the same images.

    Raises:
        UserError: if the shapes differ, there are no images, or the values are not 0/1.
    """
    first, second = np.asarray(first_correct), np.asarray(second_correct)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise UserError(
            f"McNemar: expected two equally long non-empty vectors, got {first.shape} and {second.shape}; "
            "use the same test images"
        )
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise UserError("McNemar: expected 0/1 correctness, got other values; pass hits, not logits")
    first, second = first.astype(bool), second.astype(bool)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    p_value = float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0
    z = (b - c) / np.sqrt(b + c) if b + c else np.nan
    return McNemar(b, c, (b - c) / len(first), float(z), p_value)
