"""Attacks by name, found by looking through the package."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

import lib.attacks
from lib.attacks.adaptive import Ingredient, adapt, parse
from lib.attacks.interface import Budget, Reconstructions, check_inputs
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.errors import UserError
from lib.models import folded

if TYPE_CHECKING:
    from lib.priors import Prior


@dataclass(frozen=True)
class Attack:
    """One attack: its name in tables and setups, its budget type, its function.

    Attributes:
        needs: fields of :class:`~lib.attacks.knowledge.Knowledge` it cannot do without.
        sees: "gradients" (white box), "scores" or "labels".
        ingredients: what was appended to its name with ``+``.
        prior: the only kind of prior it works with (:func:`lib.attacks.interface.check_inputs`), None for any.
        own_images: see :meth:`images`, without its ingredients.
        own_revision: without its ingredients.
        about: how its module begins: its name in full, paper and year in brackets, what it needs.
    """

    name: str
    Budget: type[Budget]
    invert: Callable[..., Reconstructions]
    needs: frozenset[str] = frozenset()
    sees: str = "gradients"
    ingredients: tuple[Ingredient, ...] = ()
    prior: str | None = None
    own_revision: int = 1
    own_images: int = 0
    about: str = ""

    @property
    def base(self) -> str:
        """The attack without its ingredients."""
        return self.name.partition("+")[0]

    @property
    def passes(self) -> int:
        """Images through the target per image that the attack shows it."""
        return math.prod(ingredient.passes for ingredient in self.ingredients)

    def images(self, there: float = math.inf) -> int:
        """How many public images pass the target before the attack begins, of as many as are ``there``; erased views
        each for itself."""
        parts = (min(part, there) for ingredient in self.ingredients for part in ingredient.images)
        return min(self.own_images, there) * self.passes + sum(parts)

    @property
    def revision(self) -> int:
        """Of what it does: raised with the module's ``REVISION`` and with each ingredient's when that changes, by a
        default of its budget, too, so that stored results are made anew."""
        return self.own_revision + sum(ingredient.revision - 1 for ingredient in self.ingredients)

    @property
    def erases(self) -> frozenset[str]:
        """What is to be made from erased public images (:data:`lib.attacks.adaptive.interface.MATERIALS`)."""
        return frozenset().union(*(ingredient.erases for ingredient in self.ingredients))

    def budget(self, **values: Any) -> Budget:
        """A budget from a setup's values; what is not given keeps the published default.

        Raises:
            UserError: a key the budget does not have, or a value it refuses.
        """
        known = [field.name for field in dataclasses.fields(self.Budget)]
        for key in values:
            if key not in known:
                raise UserError(f"{self.name} budget: unknown key {key!r}; known are {', '.join(known)}")
        if not isinstance(values.get("fast", False), bool):
            raise UserError(
                f"{self.name} budget fast: expected true or false, got {values['fast']!r}; correct it"
            )
        try:
            return self.Budget(**values)
        except UserError:
            raise
        except (TypeError, ValueError) as error:  # a text, a list or nothing where a number belongs
            given = ", ".join(f"{key}: {value!r}" for key, value in values.items())
            raise UserError(
                f"{self.name} budget: expected values of the kinds that its defaults have, got {{{given}}} ({error}); "
                "correct the setup (YAML reads 1e-3 as text, 1.0e-3 as a number)"
            ) from error


@functools.cache
def _attacks() -> dict[str, Attack]:
    found = {}
    for entry in pkgutil.iter_modules(lib.attacks.__path__):
        module = importlib.import_module(f"lib.attacks.{entry.name}")
        if all(hasattr(module, member) for member in ("NAME", "Budget", "invert")):
            if module.NAME in found or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", module.NAME):
                raise TypeError(
                    f"{module.__name__}: expected a NAME of its own in snake_case, got {module.NAME!r}; change it"
                )
            found[module.NAME] = Attack(
                module.NAME,
                module.Budget,
                module.invert,
                frozenset(getattr(module, "NEEDS", ())),
                getattr(module, "SEES", "gradients"),
                prior=getattr(module, "PRIOR", None),
                own_revision=getattr(module, "REVISION", 1),
                own_images=getattr(module, "IMAGES", 0),
                about=" ".join((module.__doc__ or "").partition("\n\n")[0].split()),
            )
    return found


def names() -> list[str]:
    """All attacks, alphabetically."""
    return sorted(_attacks())


@functools.cache
def get(name: str) -> Attack:
    """An attack, or one with adaptive ingredients appended: ``ppa+eot16+re_prior``.

    Raises:
        UserError: a name that no attack or ingredient has, an ingredient given twice, or one for an attack that
            sees no gradients or has nothing for it to change.
    """
    base, *rest = name.split("+")
    if base not in _attacks():
        raise UserError(f"attack: expected one of {', '.join(names())}, got {base!r}; check the spelling")
    attack = _attacks()[base]
    if not rest:
        return dataclasses.replace(attack, invert=_alone(attack.invert))
    ingredients = tuple(parse(text) for text in rest)
    if len({re.sub(r"[\d.]+", "", text) for text in rest}) < len(rest):
        raise UserError(f"attack: expected each ingredient once, got {name!r}; remove the repeated one")
    if attack.sees != "gradients":
        raise UserError(
            f"attack: expected ingredients on a white-box attack, got {name!r} ({base} sees {attack.sees}); drop them"
        )
    for ingredient in ingredients:
        if "students" in ingredient.erases and "students" not in attack.needs:
            raise UserError(
                f"attack: expected {ingredient.name} on an attack with students (LOMMA), got {name!r}; drop it"
            )
    needs = attack.needs.union(*(ingredient.needs for ingredient in ingredients))

    def invert(
        target: nn.Module,
        prior: Prior,
        labels: Sequence[int] | Tensor,
        *,
        seed: int,
        knowledge: Knowledge = NOTHING,
        **rest: Any,
    ) -> Reconstructions:
        check_inputs(
            target, prior, labels, attack=base, kind=attack.prior
        )  # before the ingredients' own work
        if "erased" not in needs:  # it may be given for others' sake
            knowledge = dataclasses.replace(knowledge, erased=None)
        seen = adapt(folded(target), ingredients, knowledge, seed)
        found = attack.invert(seen, prior, labels, seed=seed, knowledge=knowledge, **rest)
        return dataclasses.replace(found, attack=name)

    return dataclasses.replace(attack, name=name, invert=invert, needs=needs, ingredients=ingredients)


def _alone(invert: Callable[..., Reconstructions]) -> Callable[..., Reconstructions]:
    """The same attack on a target that is made fast first, without what only ingredients may know."""

    @functools.wraps(invert)
    def run(target: nn.Module, *rest: Any, knowledge: Knowledge = NOTHING, **named: Any) -> Reconstructions:
        knowledge = dataclasses.replace(knowledge, erased=None)
        return invert(folded(target), *rest, knowledge=knowledge, **named)

    return run
