"""Numbers in README.md and results/README.md, filled in from saved tables: ``python -m lib.results.readme [--check]``.

Two markers, both followed by generated text that is replaced as a whole::

    <!-- number: setup=lfw64 defence=none metric=attack_accuracy_top1 evaluator=main -->...<!-- /number -->
    <!-- table: setup=lfw64 metrics=natural_accuracy,attack_accuracy_top1 evaluator=main -->...<!-- /table -->

A marker's ``name=value`` pairs filter the committed tables; runs that differ only in seeds are joined
(:func:`lib.results.summarise`). Beside columns it knows:

``show``      number: value | interval | both (default) | n | runs ; table: both (default) | value;
              both: ``points`` writes a difference of fractions in percentage points, with its sign;
              ``verdict`` of a count of flags: established where there is none
``without``   table only: defences that get no row, joined by ``;``
``headline``  1 (default) keeps headline rows, ``any`` keeps all
``from``      tables (default) or curves; ``curve=`` then names the curve and ``x=`` the position on it
``metrics``   table only: the metrics that become columns, in order (rows are defences), ``metric`` or
              ``metric@evaluator``; one that is about the target alone is looked up without ``attack``,
              ``prior``, ``budget``, ``attack_seed`` and ``evaluator``, one about an attack without ``split``
``attacks``   table only: rows are these attacks, ``attack/prior/budget`` joined by ``;``, in this order
``models``    with ``attacks``: the defences that become columns, joined by ``;``, each for every metric

Values with spaces are not allowed. A marker that matches no row, or more than one, is an error.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from lib.errors import UserError
from lib.results.schema import CURVE_COLUMNS, PUBLISHED, load_curves, load_tables
from lib.results.sentences import metric_name, show_interval, show_number, summarise
from lib.runtime import ROOT

PAGES = (ROOT / "README.md", PUBLISHED / "README.md")

_MARKER = re.compile(r"<!-- (number|table): *([^>]*?) *-->(.*?)<!-- /\1 -->", re.DOTALL)
_ANY_MARKER = re.compile(r"<!-- /?(?:number|table)\b[^>]*-->")
_OPTIONS = {"show", "headline", "from", "metrics", "without", "attacks", "models"}
_ATTACK_COLUMNS = ("attack", "prior", "budget", "attack_seed", "evaluator")


@dataclass(frozen=True)
class Saved:
    """The results under a folder, each kind read once."""

    folder: Path

    @cached_property
    def tables(self) -> pd.DataFrame:
        return load_tables(folder=self.folder)

    @cached_property
    def curves(self) -> pd.DataFrame:
        return load_curves(folder=self.folder)


def refresh(text: str, *, folder: Path = PUBLISHED) -> str:
    """The text with every marker's content computed anew from the results under ``folder``.

    Raises:
        UserError: for an unknown name, an unclosed marker, or one that matches no row or several.
    """
    tags = len(_ANY_MARKER.findall(text))
    if tags != 2 * len(_MARKER.findall(text)):
        raise UserError(
            "README: expected <!-- number: ... -->...<!-- /number --> pairs, got one unclosed; close it"
        )

    saved = Saved(folder)

    def replaced(match: re.Match[str]) -> str:
        kind, query = match.group(1), match.group(2)
        filters = _parse(query)
        body = _number(filters, saved) if kind == "number" else f"\n{_table(filters, saved)}\n"
        return f"<!-- {kind}: {query} -->{body}<!-- /{kind} -->"

    return _MARKER.sub(replaced, text)


def numbers_outside_markers(text: str) -> list[str]:
    """Percentages typed by hand, which nothing keeps fresh: for a test that wants none."""
    return re.findall(r"\d+(?:\.\d+)?\s?%(?![\s-](?:interval|confidence))", _MARKER.sub("", text))


def _parse(query: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in query.split()]
    filters = {name: value for name, _, value in pairs}
    unknown = sorted(set(filters) - set(CURVE_COLUMNS) - _OPTIONS)
    if unknown or any(not equals for _, equals, _ in pairs):
        raise UserError(
            f"README marker {query!r}: expected column=value pairs, got {unknown or query}; see lib.results"
        )
    return filters


def _rows(filters: dict[str, str], saved: Saved) -> pd.DataFrame:
    """Summarised rows that match the filters; curves are summarised with their axis kept apart."""
    curves = filters.get("from", "tables") == "curves"
    table = saved.curves if curves else saved.tables
    for column, wanted in filters.items():
        if column in _OPTIONS:
            continue
        if column not in table:
            raise UserError(f"README marker: {column} is a column of curves only; add from=curves")
        numeric = pd.api.types.is_numeric_dtype(table[column])
        table = table[table[column] == float(wanted)] if numeric else table[table[column] == wanted]
    return summarise(table, headline=not curves and filters.get("headline", "1") != "any")


def _one(filters: dict[str, str], saved: Saved) -> pd.Series:
    rows = _rows(filters, saved)
    if len(rows) != 1:
        asked = " ".join(f"{name}={value}" for name, value in filters.items())
        raise UserError(
            f"README marker: expected one result for {asked}, got {len(rows)}; add or mend a filter"
        )
    return rows.iloc[0]


def _number(filters: dict[str, str], saved: Saved) -> str:
    return _shown(_one(filters, saved), filters.get("show", "both"))


def _shown(row: pd.Series, show: str) -> str:
    value, interval = show_number(row.value, row.metric), show_interval(row.low, row.high, row.metric)
    shown = {
        "value": value,
        "interval": interval,
        "both": f"{value} {interval}",
        "n": str(row.n),
        "runs": str(row.runs),
        "verdict": "established" if row.value == 0 else "not established",
        "points": f"{100 * row.value:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]",
    }
    if show not in shown:
        raise UserError(f"README marker: expected show={'|'.join(shown)}, got {show!r}")
    return shown[show]


def _table(filters: dict[str, str], saved: Saved) -> str:
    """A Markdown table, one row per defence, NoDef and its weaker models first, one column per metric."""
    if "metrics" not in filters:
        raise UserError("README table marker: expected metrics=a,b,c, got none; name the columns")
    metrics = filters["metrics"].split(",")
    if "attacks" in filters:
        return _table_of_attacks(filters, metrics, saved)
    shared = {k: v for k, v in filters.items() if k != "metrics"}
    cells: dict[str, dict[str, str]] = {}
    for column in metrics:
        metric, _, evaluator = column.partition("@")
        asked = {**shared, "metric": metric} | ({"evaluator": evaluator} if evaluator else {})
        rows = _rows(asked, saved)
        # rows about an attack have no split, rows about the target alone have no attack and no evaluator
        for absent in (("split",), _ATTACK_COLUMNS):
            if rows.empty:
                rows = _rows({k: v for k, v in asked.items() if k not in absent}, saved)
        if rows.empty or rows["defence"].duplicated().any():
            raise UserError(
                f"README table marker: expected one {metric} per defence, got {len(rows)} rows "
                f"of {rows['defence'].nunique()} defences; add or mend a filter"
            )
        for _, row in rows.iterrows():
            cells.setdefault(row.defence, {})[column] = _shown(row, filters.get("show", "both"))
    lines = ["| defence | " + " | ".join(map(_heading, metrics)) + " |", "|---" * (len(metrics) + 1) + "|"]
    for absent in filters.get("without", "").split(";"):
        cells.pop(absent, None)
    for defence, found in sorted(cells.items(), key=lambda cell: _place(cell[0])):
        lines.append(f"| `{defence}` | " + " | ".join(found.get(column, "–") for column in metrics) + " |")
    return "\n".join(lines)


def _table_of_attacks(filters: dict[str, str], metrics: list[str], saved: Saved) -> str:
    """A Markdown table, one row per attack, one column per metric and model; what was not run is a dash."""
    models = filters.get("models", "none").split(";")
    columns = [(column, model) for column in metrics for model in models]
    heads = [f"{_heading(column)}, `{model}`" for column, model in columns]
    lines = ["| attack | prior | " + " | ".join(heads) + " |", "|---" * (len(columns) + 2) + "|"]
    listed = filters["attacks"].split(";")
    several = Counter(line.rpartition("/")[0] for line in listed)
    for line in listed:
        names = line.split("/")
        if len(names) != 3:
            raise UserError(f"README table marker: expected attacks=attack/prior/budget;..., got {line!r}")
        run = dict(zip(("attack", "prior", "budget"), names, strict=True))
        cells = []
        for column, model in columns:
            metric, _, evaluator = column.partition("@")
            asked = {**filters, **run, "defence": model, "metric": metric, "evaluator": evaluator}
            rows = _rows({k: v for k, v in asked.items() if k not in ("metrics", "models")}, saved)
            if len(rows) > 1:
                raise UserError(
                    f"README table marker: expected one {metric} of {line} on {model}, got {len(rows)}; add a filter"
                )
            cells.append("–" if rows.empty else _shown(rows.iloc[0], filters.get("show", "both")))
        if set(cells) == {"–"}:
            raise UserError(f"README table marker: expected results of {line}, got none; mend its name")
        name = f"`{run['attack']}`" + (f", {run['budget']}" if several[line.rpartition("/")[0]] > 1 else "")
        lines.append(f"| {name} | {run['prior'].replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _place(defence: str) -> tuple[bool, bool]:
    """NoDef first, its weaker models next, defences after them; the rest of the order is kept."""
    return defence != "none", not defence.startswith(("early(", "fewer(", "small("))


def _heading(column: str) -> str:
    """``attack_accuracy_top1@panel_2`` -> "AttAcc, panel 2"; a verifier's metrics name it already."""
    metric, _, evaluator = column.partition("@")
    name = metric_name(metric)
    judge = evaluator.removeprefix("verifier").strip("_") if "verifier" in name else evaluator
    return name + (f", {judge.replace('_', ' ')}" if judge else "")


def main(arguments: list[str]) -> int:
    """Refresh :data:`PAGES`, or with ``--check`` only say which are stale; exit status 0, 1 (stale) or 2."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m lib.results.readme [--check]", file=sys.stderr)
        return 2
    try:
        before = {path: path.read_text(encoding="utf-8") for path in PAGES}
        after = {path: refresh(text) for path, text in before.items()}
    except (FileNotFoundError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = [path for path in PAGES if before[path] != after[path]]
    for path in stale:
        if arguments:
            print(f"error: {path} is stale; run python -m lib.results.readme", file=sys.stderr)
            continue
        aside = path.with_name(f".{path.name}.aside")
        aside.write_text(after[path], encoding="utf-8")
        os.replace(aside, path)
    return 1 if arguments and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
