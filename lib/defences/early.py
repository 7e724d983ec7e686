"""NoDef control: stop early, with the schedule of the whole run."""

from __future__ import annotations

import dataclasses

from lib.defences._checks import number
from lib.training.interface import Defence, Recipe


class EarlyStopping(Defence):
    """``early(part)``: end training after this fraction, in (0, 1), of an otherwise unchanged schedule."""

    def __init__(self, part: float) -> None:
        self.part = number("early share", part, 0, 1, usage="early(0.5)", ends="()")

    def plan(self, recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, stop=recipe.stop * self.part)
