"""Checks shared by the statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lib.errors import UserError

Floats = NDArray[np.float64]


def finite(values: ArrayLike, name: str, *, ndim: int = 1) -> Floats:
    """A non-empty finite float64 array of ``ndim`` dimensions.

    Raises:
        UserError: if it is not.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise UserError(
            f"{name}: expected a non-empty array of {ndim} dimensions, got shape {array.shape}; reshape it"
        )
    if not np.isfinite(array).all():
        raise UserError(
            f"{name}: expected finite numbers, got NaN or infinity; leave such identities out on purpose"
        )
    return array


def check_level(level: float, resamples: int = 2) -> None:
    """Raises UserError unless the confidence level is inside (0, 1) and there are resamples to speak of."""
    if not 0 < level < 1:
        raise UserError(f"confidence level: expected inside (0, 1), got {level}; use 0.95")
    if resamples < 2:
        raise UserError(f"resamples: expected 2 or more, got {resamples}; use 2000 or more for a report")
