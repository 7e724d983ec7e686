"""NoDef control: a smaller network."""

from __future__ import annotations

import dataclasses

from lib.defences._checks import number
from lib.training.interface import Defence, Recipe


class SmallNetwork(Defence):
    """``small(part)``: multiply the widths of the network by this fraction in (0, 1)."""

    def __init__(self, part: float) -> None:
        self.part = number("small share", part, 0, 1, usage="small(0.5)", ends="()")

    def plan(self, recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, width=recipe.width * self.part)
