"""A number that never travels without its uncertainty and sample size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from lib.errors import UserError


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits, 95 % unless its maker was told otherwise.

    ``n`` counts independent units (identities, images, seeds: the maker says which). Limits are NaN where
    the data cannot give them (one identity, one seed); ``value`` is NaN where the quantity is undefined.
    """

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UserError(f"interval: expected low <= high, got {self.low} > {self.high}; swap them")

    def standard_error(self, *, level: float = 0.95) -> float:
        """Standard error of a normal estimate with this interval: half the width over 1.96 at 95 %."""
        return (self.high - self.low) / (2 * NormalDist().inv_cdf((1 + level) / 2))

    def excludes(self, value: float = 0.0) -> bool:
        """Whether the whole interval lies on one side of ``value``; False for NaN limits."""
        return self.low > value or self.high < value

    def percent(self, digits: int = 1, *, signed: bool = False, count: bool = True) -> str:
        """A fraction as ``71.2 % [65.0, 77.1], n = 62``; ``signed`` for differences; without its n where ``count``
        is off."""
        return self._text(100.0, digits, " %", signed, count)

    def plain(self, digits: int = 3, *, signed: bool = False, count: bool = True) -> str:
        """Without unit, as ``0.712 [0.650, 0.771], n = 62``; otherwise as :meth:`percent`."""
        return self._text(1.0, digits, "", signed, count)

    def __str__(self) -> str:
        return self.plain()

    def _text(self, scale: float, digits: int, unit: str, signed: bool, count: bool) -> str:
        end = f", n = {self.n}" if count else ""
        if math.isnan(self.value):
            return f"undefined{end}"
        sign = "+" if signed else ""
        value, low, high = (
            f"{scale * number:{sign}.{digits}f}" for number in (self.value, self.low, self.high)
        )
        limits = "no interval" if math.isnan(self.low) else f"[{low}, {high}]"
        return f"{value}{unit} {limits}{end}"
