"""Notebook 10: the register of all defences, and a page for each, in its own words."""

from __future__ import annotations

import inspect
import re

import pandas as pd

from lib import defences as registry
from lib.plots import label
from lib.reports.tables import quantity
from lib.reports.workbook import Workbook
from lib.setups import Setup
from lib.training import Defence

MEMBERS = tuple(name for name in vars(Defence) if not name.startswith("_") and name != "name")
SILENT = ("cost", "tensors", "diagnostics", "acted")  # members that change nothing


def register(setup: Setup) -> pd.DataFrame:
    """Every defence there is: how it is written, the members of the interface through which it acts (in their order
    there), and the constants of its YAML file with what the setup changes."""
    rows = []
    for name in registry.names():
        kind = registry.defence_class(name)
        constants = registry.constants(name) | setup.defences.get(name, {})
        rows.append(
            {
                "defence": name,
                "written": usage(name),
                "acts through": ", ".join(acts_through(kind)) or "nothing",
                "constants": ", ".join(f"{key} {value}" for key, value in constants.items()),
            }
        )
    return pd.DataFrame(rows).set_index("defence")


def usage(name: str) -> str:
    """``re(low,high)``: a defence with its strengths."""
    parameters = inspect.signature(registry.defence_class(name)).parameters.values()
    strengths = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    return f"{name}({','.join(strengths)})" if strengths else name


def acts_through(kind: type[Defence]) -> list[str]:
    """Members of :class:`lib.training.Defence` that a defence overrides, in the order of the interface."""
    bases = [base for base in kind.__mro__ if base is not Defence and issubclass(base, Defence)]
    return [name for name in MEMBERS if name not in SILENT and any(name in vars(base) for base in bases)]


def page(*texts: str) -> str:
    """The page in Markdown of a composition, or of several that differ in strengths alone: names, what it minimises or
    changes, what its diagnostics are, and where it is from, in its own words."""
    parts = [f"### {'; '.join(map(label, texts))}"]
    for term in registry.parse(texts[0]):
        kind = registry.defence_class(term.name)
        paragraphs = (inspect.getmodule(kind).__doc__ or "").split("\n\n")
        source = [paragraph.strip() for paragraph in paragraphs if paragraph.startswith("Source")]
        parts.append(_markdown("\n\n".join([*_about(kind), *_glossary(kind, term.name), *source])))
    return "\n\n".join(parts)


def _about(kind: type[Defence]) -> list[str]:
    """What a defence says of itself, and what it extends, unless that is a mere base; and their options, as a list."""
    said, options = [], {}
    taken, bases = inspect.signature(kind).parameters, [b for b in kind.__mro__ if issubclass(b, Defence)]
    for base in (base for base in bases if base is not Defence and base.__doc__):
        text, _, block = inspect.cleandoc(base.__doc__).partition("\n\nArgs:")
        text = text.partition("\n\nRaises:")[0]
        if not text.startswith("Base"):
            said.append(text)
        for names, about in _options(block).items():
            elsewhere = about.startswith("see ") and any(b.__name__ in about for b in bases)  # told there
            if not elsewhere and any(name in taken for name in names.split(", ")):
                options.setdefault(names, about)
    listed = [f"- ``{names}``: {about}" for names, about in options.items()]
    return [*said, *(["*Options.*\n\n" + "\n".join(listed)] if listed else [])]


def _options(block: str) -> dict[str, str]:
    """Names, such as ``steps, step``, to what the ``Args`` of a docstring say of them (and errors to theirs)."""
    entries = re.findall(r"^    (?! )(.+?(?:\n {8}.*)*)$", block, flags=re.MULTILINE)
    joined = (" ".join(entry.split()) for entry in entries)
    return dict(entry.split(": ", 1) for entry in joined if ": " in entry)


def _glossary(kind: type[Defence], name: str) -> list[str]:
    """What a defence's diagnostics are, as its own :meth:`Defence.diagnostics` and those that it extends say, under
    the names of figures and tables; a paragraph, or none."""
    extended = [
        base for base in reversed(kind.__mro__) if base is not Defence and "diagnostics" in vars(base)
    ]
    said = " ".join(inspect.getdoc(base.diagnostics) or "" for base in extended).replace("<name>", name)
    named = re.sub(r"``(\w+)``", lambda found: f"``{quantity(found[1])}``", said)
    if not named:
        return []
    acted = (inspect.getdoc(kind.acted) or "").partition(".")[0]
    return [f"*What is recorded.* {named} It has acted if {acted.removeprefix('Whether ')}."]


def _markdown(text: str) -> str:
    """A docstring for a reader: code in single marks, and what it refers to without the path and the role."""
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"`\1`", text.replace("``", "`"))


def pages(book: Workbook) -> str:
    """The pages of the study's defences, trained or not, one after another; strengths of one defence share a page."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for text in book.study.pages:
        kinds.setdefault(tuple(term.name for term in registry.parse(text)), []).append(text)
    return "\n\n".join(page(*texts) for texts in kinds.values())
