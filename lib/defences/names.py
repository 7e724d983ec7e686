"""The language of defence names: one parser, one printer, one canonical form.

    composition = term { "+" term }        re(0.1,0.4)+negls(-0.05)
    term        = name [ "(" [ entry { "," entry } ] ")" ]
    entry       = value | name "=" value   positional values first
    value       = number | word | true | false

Canonical: no blanks, lower-case names, shortest numbers (0.10 and .1 are 0.1, 1.0 is 1), keywords sorted and
left out where they have the value of the defence's YAML file. Terms keep their order, because surgery on the
network happens in that order.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib.errors import UserError

Value = int | float | bool | str
Overrides = Mapping[str, Mapping[str, Any]]

EXAMPLE = "re(0.1,0.4)+negls(-0.05)"
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_BLANK = re.compile(r"\s*")
_EXACT_INTEGERS = 1e15


@dataclass(frozen=True)
class Term:
    """One defence of a composition: its name, positional values and keywords, as written."""

    name: str
    args: tuple[Value, ...] = ()
    kwargs: dict[str, Value] = field(default_factory=dict)


def parse(text: str) -> list[Term]:
    """Read a defence or a composition of defences; the defences need not exist.

    Raises:
        UserError: with the position of the first thing that does not belong.
    """
    if not isinstance(text, str):
        raise UserError(f"defence: expected text such as {EXAMPLE}, got {text!r}; write it in quotes")
    reader = _Reader(text)
    terms = [_term(reader)]
    while reader.take("+"):
        terms.append(_term(reader))
    if not reader.at_end():
        raise reader.error("'+' and another defence, or the end")
    return terms


def spell(terms: Sequence[Term]) -> str:
    """Print terms: no blanks, shortest numbers, keywords sorted. ``parse`` reads it back to equal terms."""
    return "+".join(_spell_term(term) for term in terms)


def canonical(text: str, overrides: Overrides | None = None) -> str:
    """The one spelling of a defence.

    Args:
        text: any spelling.
        overrides: constants that a setup changes, by defence; then *its* values are the ones left out.

    Raises:
        UserError: if the text cannot be read.
    """
    terms = []
    for term in parse(text):
        usual = {**constants(term.name), **(overrides or {}).get(term.name, {})}
        kept = {key: value for key, value in term.kwargs.items() if not _same(value, usual.get(key))}
        terms.append(Term(term.name, term.args, kept))
    return spell(terms)


def applied(text: str, overrides: Overrides) -> dict[str, dict[str, Any]]:
    """Those of a setup's ``overrides`` that change a term of a composition; empty ones are left out."""
    used = {term.name for term in parse(text)}
    return {name: dict(changes) for name, changes in overrides.items() if name in used and changes}


def resolved(text: str, overrides: Overrides | None = None) -> dict[str, dict[str, Any]]:
    """Every constant of every term of a composition, as it is built."""
    return {
        term.name: {**constants(term.name), **(overrides or {}).get(term.name, {}), **term.kwargs}
        for term in parse(text)
    }


def constants(name: str) -> dict[str, Any]:
    """The defaults of a defence's keywords, from ``<name>.yaml`` beside it; empty without such a file."""
    path = Path(__file__).with_name(f"{name}.yaml")
    return dict(_constants(path, path.stat().st_mtime_ns)) if path.exists() else {}


@functools.cache  # asked for with every name that is spelled
def _constants(path: Path, _modified: int) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _same(value: Value, usual: Any) -> bool:
    return isinstance(value, bool) == isinstance(usual, bool) and value == usual


def _spell_term(term: Term) -> str:
    entries = [_spell_value(value) for value in term.args]
    entries += [f"{key}={_spell_value(value)}" for key, value in sorted(term.kwargs.items())]
    return f"{term.name}({','.join(entries)})" if entries else term.name


def _spell_value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(_shortest(value))


def _shortest(value: float) -> int | float:
    return int(value) if float(value).is_integer() and abs(value) < _EXACT_INTEGERS else float(value)


class _Reader:
    """A position in the text; every ``take`` skips blanks first."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def _skip(self) -> None:
        self.position = _BLANK.match(self.text, self.position).end()

    def take(self, symbol: str) -> bool:
        self._skip()
        found = self.text.startswith(symbol, self.position)
        self.position += len(symbol) if found else 0
        return found

    def match(self, pattern: re.Pattern[str]) -> str | None:
        self._skip()
        found = pattern.match(self.text, self.position)
        if found is None:
            return None
        self.position = found.end()
        return found.group()

    def at_end(self) -> bool:
        self._skip()
        return self.position == len(self.text)

    def error(self, expected: str) -> UserError:
        self._skip()
        rest = self.text[self.position :]
        got = repr(rest[:12]) if rest else "the end"
        return UserError(
            f"defence {self.text!r}: expected {expected} at position {self.position + 1}, got {got}; "
            f"write it like {EXAMPLE}"
        )


def _term(reader: _Reader) -> Term:
    name = reader.match(_WORD)
    if name is None:
        raise reader.error("the name of a defence")
    args: list[Value] = []
    kwargs: dict[str, Value] = {}
    if reader.take("(") and not reader.take(")"):
        _entry(reader, args, kwargs)
        while reader.take(","):
            _entry(reader, args, kwargs)
        if not reader.take(")"):
            raise reader.error("',' or ')'")
    return Term(name.lower(), tuple(args), kwargs)


def _entry(reader: _Reader, args: list[Value], kwargs: dict[str, Value]) -> None:
    start = reader.position
    key = reader.match(_WORD)
    if key is not None and reader.take("="):
        if key in kwargs:
            reader.position = start
            raise reader.error(f"each keyword once ({key} is repeated)")
        kwargs[key] = _value(reader)
        return
    reader.position = start
    if kwargs:
        raise reader.error("a keyword such as value=grey (positional values come first)")
    args.append(_value(reader))


def _value(reader: _Reader) -> Value:
    number = reader.match(_NUMBER)
    if number is not None:
        value = float(number)
        if math.isinf(value):
            reader.position -= len(number)
            raise reader.error("a number of ordinary size")
        return _shortest(value)
    word = reader.match(_WORD)
    if word is None:
        raise reader.error("a number or a word")
    return {"true": True, "false": False}.get(word, word)
