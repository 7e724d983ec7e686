"""Students and feature statistics from erased public faces, where the target answers as it was trained to."""

from __future__ import annotations

from lib.attacks.adaptive.interface import Ingredient

EXAMPLE = "re_students"


def parse(name: str) -> Ingredient | None:
    if name != EXAMPLE:
        return None
    return Ingredient(
        name, needs=frozenset({"law", "public", "erased"}), erases=frozenset({"students"}), revision=2
    )
