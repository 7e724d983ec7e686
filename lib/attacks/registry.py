"""Attacks by name, found by looking through the package."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import lib.attacks
from lib.attacks.interface import Budget, Reconstructions
from lib.errors import UserError


@dataclass(frozen=True)
class Attack:
    """One attack: its name in tables and setups, its budget type, its function."""

    name: str
    Budget: type[Budget]
    invert: Callable[..., Reconstructions]

    def budget(self, **values: Any) -> Budget:
        """A budget from a setup's values; what is not given keeps the published default.

        Raises:
            UserError: a key the budget does not have, or a value it refuses.
        """
        known = [field.name for field in dataclasses.fields(self.Budget)]
        for key in values:
            if key not in known:
                raise UserError(f"{self.name} budget: unknown key {key!r}; known are {', '.join(known)}")
        return self.Budget(**values)


@cache
def _attacks() -> dict[str, Attack]:
    found = {}
    for entry in pkgutil.iter_modules(lib.attacks.__path__):
        module = importlib.import_module(f"lib.attacks.{entry.name}")
        if all(hasattr(module, member) for member in ("NAME", "Budget", "invert")):
            found[module.NAME] = Attack(module.NAME, module.Budget, module.invert)
    return found


def names() -> list[str]:
    """All attacks, alphabetically."""
    return sorted(_attacks())


def get(name: str) -> Attack:
    """Raises: UserError for a name that no attack has."""
    if name not in _attacks():
        raise UserError(f"attack: expected one of {', '.join(names())}, got {name!r}; check the spelling")
    return _attacks()[name]
