"""Ingredients by name, found by looking through the package."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from torch import nn

import lib.attacks.adaptive as package
from lib.attacks.adaptive.interface import Ingredient
from lib.attacks.interface import refuse_oracle
from lib.attacks.knowledge import Knowledge
from lib.errors import UserError


@cache
def _modules() -> tuple[ModuleType, ...]:
    found = [
        importlib.import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    return tuple(module for module in found if hasattr(module, "EXAMPLE") and hasattr(module, "parse"))


def parse(name: str) -> Ingredient:
    """Raises: UserError for a name that no ingredient has."""
    for module in _modules():
        if (found := module.parse(name)) is not None:
            return found
    known = ", ".join(module.EXAMPLE for module in _modules())
    raise UserError(f"attack ingredient: expected one like {known}, got {name!r}; check the spelling")


def adapt(
    target: nn.Module, ingredients: tuple[Ingredient, ...], knowledge: Knowledge, seed: int
) -> nn.Module:
    """The target as an attack with these ingredients sees it; the last one sees through all before it.

    Raises:
        UserError: an ingredient that lacks what it needs, or an oracle as target.
    """
    refuse_oracle(target)
    for ingredient in sorted(ingredients, key=lambda one: one.place):
        knowledge.require(ingredient.name, *sorted(ingredient.needs))
        if ingredient.wrap:
            target = ingredient.wrap(target, knowledge, seed)
            target.ingredients = (*target.ingredients, ingredient.name)
    return target
