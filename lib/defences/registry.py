"""Finds the defences in this package and builds them from their names."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

import lib.defences
from lib.defences.names import Overrides, Term, canonical, constants, parse, resolved, spell
from lib.errors import UserError
from lib.models import Classifier, classifier_from
from lib.training.interface import Defence

_NOT_DEFENCES = ("names", "registry")


def names() -> list[str]:
    """The defences there are: the modules of this package, sorted; helpers start with an underscore."""
    return list(_names(tuple(lib.defences.__path__)))


@cache
def _names(folders: tuple[str, ...]) -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(folders))
    return sorted(name for name in found if name not in _NOT_DEFENCES and not name.startswith("_"))


def defence_class(name: str) -> type[Defence]:
    """The class that the file ``<name>.py`` defines.

    Raises:
        UserError: if there is no such file; the message lists those there are.
        TypeError: if the file does not define exactly one defence (a defect of that file).
    """
    if name not in names():
        raise UserError(f"defence {name!r}: expected one of {', '.join(names())}; check the spelling")
    module = importlib.import_module(f"lib.defences.{name}")
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, Defence) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Defence, it defines {len(found)}")
    return found[0]


def acted(
    text: str, training: Mapping[str, Any], overrides: Overrides | None = None
) -> dict[str, bool | None]:
    """What :meth:`lib.training.interface.Defence.acted` says of every part of a composition.

    Args:
        training: ``diagnostics`` and ``history`` of its training, names as ``<part>.<diagnostic>``.
        overrides: constants that the setup changes.

    Returns:
        part -> whether it acted, and what shows it is finite; None for one that has nothing to show.
    """
    found: dict[str, bool | None] = {}
    ends = training.get("diagnostics") or {}
    for term in parse(text):
        part = canonical(spell([term]), overrides)
        own = [name for name in ends if name.rpartition(".")[0] == part]
        rows = [row for row in training.get("history", ()) if all(name in row for name in own)] or [ends]
        history = [{name.rpartition(".")[2]: row[name] for name in own} for row in rows]
        moved = defence_class(term.name).acted(history) if own else None
        found[part] = None if moved is None else moved and all(map(math.isfinite, history[-1].values()))
    return found


def build(text: str, overrides: Overrides | None = None) -> list[Defence]:
    """Make the defences of a composition, in order.

    Args:
        text: any spelling, such as ``re(0.1,0.4)+fe(0.5)``.
        overrides: constants that a setup changes, by defence: ``{"re": {"value": "black"}}``.

    Returns:
        new defences, each with its canonical ``name``.

    Raises:
        UserError: for text that cannot be read, unknown defences, values or constants, and compositions
            that have no meaning: a defence twice, ``none`` with others, two criteria.
    """
    for name, changes in (overrides or {}).items():
        known = _keywords(defence_class(name))
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise UserError(
                f"constants of {name}: expected some of {', '.join(known) or 'none'}, "
                f"got {', '.join(unknown)}; correct the setup"
            )
    terms = parse(text)
    classes = [defence_class(term.name) for term in terms]
    _check_terms(text, terms)
    defences = [_make(cls, term, overrides or {}) for cls, term in zip(classes, terms, strict=True)]
    _check_criteria(text, defences)
    return defences


def restore(tensors: dict[str, Tensor], meta: dict[str, Any]) -> Classifier:
    """Rebuild a stored network behind the defences it was trained behind: what they build into a network and
    how they deploy it is done again before the weights are loaded.

    Args:
        meta: ``spec``, ``num_classes``, ``image_size`` and, unless it was trained behind none, ``defence`` with
            the ``overrides`` that its setup makes and all ``constants`` of that time.

    Raises:
        UserError: the constants of a defence have changed since; no stage key sees that.
    """
    text, overrides = meta.get("defence", "none"), meta.get("overrides")
    now, then = resolved(text, overrides), meta.get("constants") or {}
    for name, values in then.items():  # an option that has come since was not there to be set
        if changed := {key: value for key, value in values.items() if now[name].get(key) != value}:
            raise UserError(
                f"{text}: expected the constants of {name} that this network was trained with, {changed}, got "
                f"{ {key: now[name].get(key) for key in changed} }; put {name}.yaml back, or remove the network with "
                f"`python -m lib.run cache rm '{text}'`"
            )

    def surgery(model: nn.Module) -> nn.Module:
        defences = build(text, overrides)
        for defence in defences:
            model = defence.build(model)
        for defence in defences:
            model = defence.deploy(model)
        return model

    return classifier_from(tensors, meta, surgery=surgery)


def _keywords(cls: type[Defence]) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _usage(name: str, cls: type[Defence]) -> str:
    parameters = inspect.signature(cls).parameters.values()
    shown = [p.name if p.kind is not p.KEYWORD_ONLY else f"{p.name}=..." for p in parameters]
    return f"{name}({','.join(shown)})" if shown else name


def _make(cls: type[Defence], term: Term, overrides: Overrides) -> Defence:
    settings: dict[str, Any] = {**constants(term.name), **overrides.get(term.name, {}), **term.kwargs}
    unknown = set(term.kwargs) - set(_keywords(cls))
    try:
        inspect.signature(cls).bind(*term.args, **settings)
    except TypeError:
        unknown = unknown or {""}
    if unknown:
        raise UserError(
            f"defence {term.name}: expected {_usage(term.name, cls)}, got {spell([term])}; "
            "values without a default come first, in this order, the others as keywords"
        )
    defence = cls(*term.args, **settings)
    defence.name = canonical(spell([term]), overrides)
    return defence


def _check_terms(text: str, terms: Sequence[Term]) -> None:
    used = [term.name for term in terms]
    repeated = sorted({name for name in used if used.count(name) > 1})
    if repeated:
        raise UserError(
            f"defence {text!r}: expected each defence once, got {', '.join(repeated)} twice; drop one"
        )
    if "none" in used and len(used) > 1:
        raise UserError(f"defence {text!r}: expected none to stand alone, got others with it; leave none out")


def _check_criteria(text: str, defences: Sequence[Defence]) -> None:
    owners = [defence.name for defence in defences if defence.criterion is not None]
    if len(owners) > 1:
        raise UserError(
            f"defence {text!r}: expected at most one defence that replaces the classification loss, got "
            f"{' and '.join(owners)}; two losses cannot both stand in its place, drop one"
        )
