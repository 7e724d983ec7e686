"""Ingredients of adaptive attacks on erasing, one per file; each goes with any white-box attack (``re_students`` with
those that have students).

A module with ``parse`` is an ingredient: ``parse("eot16")`` gives an :class:`Ingredient` or None. Names of
attacks append them: ``ppa+eot16+feature_shift``.
"""

from lib.attacks.adaptive.interface import Adapted, Ingredient
from lib.attacks.adaptive.registry import adapt, parse

__all__ = ["Adapted", "Ingredient", "adapt", "parse"]
