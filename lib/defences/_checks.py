"""Checks that several defences share."""

from __future__ import annotations

from numbers import Real
from typing import Any

from lib.errors import UserError


def fraction(name: str, value: Any) -> float:
    """A number strictly between 0 and 1, the one argument of the defence ``name``."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < 1:
        raise UserError(
            f"defence {name}: expected a fraction strictly between 0 and 1, got {value!r}; write {name}(0.5)"
        )
    return float(value)
