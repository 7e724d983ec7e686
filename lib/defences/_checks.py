"""Checks that several defences share: one error each, before anything is built."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from lib.errors import UserError


def number(what: str, value: Any, low: float, high: float, *, usage: str, ends: str = "[]") -> float:
    """A finite number between ``low`` and ``high``.

    Args:
        what: whose it is, for the message: ``"negls alpha"``.
        usage: what to write instead, for the message.
        ends: which bounds belong to it, in interval notation: ``[]``, ``(]``, ``[)`` or ``()``.
    """
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    fits = fits and (value > low or (value == low and ends[0] == "["))
    fits = fits and (value < high or (value == high and ends[1] == "]"))
    if not fits:
        bounds = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
        raise UserError(f"defence {what}: expected a number in {bounds}, got {value!r}; write {usage}")
    return float(value)


def whole(what: str, value: Any, low: int, *, usage: str) -> int:
    """A whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(
            f"defence {what}: expected a whole number of {low} or more, got {value!r}; write {usage}"
        )
    return value


def word(what: str, value: Any, known: tuple[str, ...]) -> str:
    """One of the words that an option knows."""
    if value not in known:
        raise UserError(
            f"defence {what}: expected {' or '.join(known)}, got {value!r}; write "
            f"{what.rpartition(' ')[2]}={known[0]}"
        )
    return value
