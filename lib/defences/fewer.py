"""NoDef control: fewer photos of each person."""

from __future__ import annotations

import dataclasses

from lib.defences._checks import number
from lib.training.interface import Defence, Recipe


class FewerImages(Defence):
    """``fewer(part)``: train on this fraction, in (0, 1), of each identity's training photos."""

    def __init__(self, part: float) -> None:
        self.part = number("fewer share", part, 0, 1, usage="fewer(0.5)", ends="()")

    def plan(self, recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, share=recipe.share * self.part)
