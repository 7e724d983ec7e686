"""A prior trained on erased public faces: the target never saw whole ones, so neither does the search.

Whoever runs the attack passes that prior (:func:`lib.stages.priors.load` with a law): its weights do not tell.
"""

from __future__ import annotations

from lib.attacks.adaptive.interface import Ingredient

EXAMPLE = "re_prior"


def parse(name: str) -> Ingredient | None:
    return (
        Ingredient(name, needs=frozenset({"law"}), erases=frozenset({"prior"})) if name == EXAMPLE else None
    )
