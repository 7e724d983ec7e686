"""The columns of every saved number, checked when written and when read.

Three kinds of file, one per run, all long (one metric a row): ``tables/`` (one row per trained target and
attack run, no aggregates), ``curves/`` (baselines, and values along an axis such as training steps or
attack budget) and ``identities/`` (values per person, the raw material of paired comparisons).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.defences.names import parse, spell
from lib.errors import UserError
from lib.runtime import ROOT
from lib.setups.schema import FILE_NAME

PUBLISHED = ROOT / "results"
"""The results that come with the repository; written by publishing only."""

_RUN = ("setup", "defence", "training_steps", "prior", "attack", "budget", "training_seed", "attack_seed")
COLUMNS = (*_RUN, "headline", "metric", "evaluator", "split", "value", "low", "high", "n")
CURVE_COLUMNS = (*_RUN, "curve", "x_name", "x", "metric", "evaluator", "split", "value", "low", "high", "n")
IDENTITY_COLUMNS = (*_RUN, "metric", "evaluator", "identity", "value", "n")


@dataclass(frozen=True)
class Format:
    """One kind of result file: its folder and columns."""

    folder: str
    columns: tuple[str, ...]


FORMATS = {
    "tables": Format("tables", COLUMNS),
    "curves": Format("curves", CURVE_COLUMNS),
    "identities": Format("identities", IDENTITY_COLUMNS),
}

_INTEGERS = {
    "training_steps": 0,
    "training_seed": 0,
    "attack_seed": 0,
    "headline": 0,
    "n": 1,
}  # name -> least
_NUMBERS = {"value", "low", "high", "x"}
_REQUIRED = {"setup", "metric", "value", "low", "high", "n", "headline", "curve", "x_name", "x", "identity"}
_NOT_KEY = {"value", "low", "high", "n", "headline"}
_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")
_FRACTION = re.compile(
    r"(.*_)?(accuracy|match|rate|share|vote|precision|recall|coverage|fraction)(_top\d+)?(_unselected)?\Z"
)


def is_fraction(metric: str) -> bool:
    """Whether a metric's values are shares in [0, 1] (accuracies, matches, rates, precision, recall ...)."""
    return _FRACTION.match(metric) is not None


def results_dir() -> Path:
    """Where results are read from by default: ``RESULTS_DIR``, else the committed ``results/``."""
    chosen = os.environ.get("RESULTS_DIR")
    return Path(chosen).expanduser().resolve() if chosen else PUBLISHED


def run_dir(setup: str) -> Path:
    """The ignored folder that a user's own runs of a setup write to: ``results/runs/<setup>``."""
    return PUBLISHED / "runs" / setup


def output_dir(setup: str) -> Path:
    """Where results are written: ``RESULTS_DIR``, else :func:`run_dir`, so that a notebook opened by hand
    never touches committed results."""
    return results_dir() if os.environ.get("RESULTS_DIR") else run_dir(setup)


def save_table(
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame,
    name: str,
    *,
    allow_missing: Collection[str] = (),
    folder: Path | None = None,
) -> Path:
    """Check rows of :data:`COLUMNS` and write ``tables/<name>.csv`` aside, then rename.

    Args:
        rows: one mapping per metric; empty cells are "" or None.
        name: file name without ending; no dates (the time is in the notebook's metadata).
        allow_missing: metrics whose value or interval may be NaN, because they are undefined there.
        folder: root to write under, instead of :func:`output_dir` of the rows' setup.

    Returns:
        The file written.

    Raises:
        UserError: unknown or missing columns, wrong types, a metric or evaluator that is not snake_case,
            a fraction outside [0, 1], an unexpected NaN, an empty interval or a duplicated row.
    """
    return _save("tables", rows, name, allow_missing, folder)


def save_curves(
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame,
    name: str,
    *,
    allow_missing: Collection[str] = (),
    folder: Path | None = None,
) -> Path:
    """As :func:`save_table`, for rows of :data:`CURVE_COLUMNS` in ``curves/<name>.csv``.

    ``curve`` names the curve (``training_length``, ``attack_budget``, ``prior_samples`` ...), ``x_name``
    and ``x`` the position on it (x is 0 for a baseline without an axis).
    """
    return _save("curves", rows, name, allow_missing, folder)


def save_identities(
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame,
    name: str,
    *,
    allow_missing: Collection[str] = (),
    folder: Path | None = None,
) -> Path:
    """As :func:`save_table`, for rows of :data:`IDENTITY_COLUMNS` in ``identities/<name>.csv``.

    ``identity`` is the private class (index or name); ``value`` its mean over ``n`` reconstructions.
    """
    return _save("identities", rows, name, allow_missing, folder)


def save_figure(figure: Any, name: str, setup: str) -> Path:
    """Write a matplotlib figure as ``figures/<name>.png`` of the setup's output folder, aside, then rename."""
    target = output_dir(setup) / "figures" / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}")
    figure.savefig(aside, format="png", bbox_inches="tight", metadata={"Software": None})
    os.replace(aside, target)
    return target


def load_tables(pattern: str = "*", *, folder: Path | None = None) -> pd.DataFrame:
    """All tables whose file name matches a glob, joined, in file order; empty with the right columns if none.

    ``folder`` is a results root (:func:`results_dir` by default; :func:`run_dir` for one's own runs).
    """
    return _load("tables", pattern, folder)


def load_curves(pattern: str = "*", *, folder: Path | None = None) -> pd.DataFrame:
    """As :func:`load_tables`, for ``curves/``."""
    return _load("curves", pattern, folder)


def load_identities(pattern: str = "*", *, folder: Path | None = None) -> pd.DataFrame:
    """As :func:`load_tables`, for ``identities/``."""
    return _load("identities", pattern, folder)


def check(
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame, kind: str, *, allow_missing: Collection[str] = ()
) -> pd.DataFrame:
    """The rows as a typed frame in the kind's column order, or a UserError that names row and column."""
    columns = FORMATS[kind].columns
    if not isinstance(rows, pd.DataFrame):
        rows = [dict(row) for row in rows]
    if not len(rows):
        raise UserError(f"{kind}: expected at least one row, got none; save after measuring")
    for number, row in enumerate([rows] if isinstance(rows, pd.DataFrame) else rows):
        if set(row) != set(columns):
            unknown, absent = sorted(set(row) - set(columns)), [c for c in columns if c not in row]
            raise UserError(
                f"{kind} row {number}: expected exactly the columns {','.join(columns)}; "
                f"unknown {unknown}, missing {absent}"
            )
    frame = pd.DataFrame(rows, columns=list(columns)).reset_index(drop=True)
    for column in columns:
        frame[column] = _column(frame[column], column, kind)
    _check_values(frame, kind, set(allow_missing))
    return frame


def _column(values: pd.Series, column: str, kind: str) -> pd.Series:
    """One column with its type: Int64 (empty allowed where not required), float64 or text."""
    absent = values.isna() | values.isin([""])
    if column in _NUMBERS:
        numbers = pd.to_numeric(values.where(~absent, math.nan), errors="coerce").astype("float64")
        _refuse(numbers.isna() & ~absent, values, kind, column, "a number")
        return numbers
    _refuse(absent & (column in _REQUIRED), values, kind, column, "a value")
    if column in _INTEGERS:
        numbers = pd.to_numeric(values.where(~absent, None), errors="coerce").astype("float64")
        bad = ~absent & (numbers.isna() | (numbers != numbers.round()) | (numbers < _INTEGERS[column]))
        if column == "headline":
            bad |= numbers > 1
        _refuse(bad, values, kind, column, f"an integer, at least {_INTEGERS[column]}")
        return numbers.astype("Int64")
    text = values.where(~absent, "").map(str).astype(object)
    _refuse(~_each(text, _is_one_line), values, kind, column, "one line of text")
    return text


def _each(values: pd.Series, function: Callable[[Any], Any]) -> pd.Series:
    """A function of every text, asked once for equal ones: of many rows few are different."""
    return values.map({value: function(value) for value in values.unique()})


def _is_one_line(text: str) -> bool:
    return text == text.strip() and not re.search(r"[\n\r]", text)


def _check_values(frame: pd.DataFrame, kind: str, allow_missing: set[str]) -> None:
    """The rules that need more than one column."""
    metric = frame["metric"]
    for column in ("metric", "evaluator", "split", "attack", "curve", "x_name"):
        if column in frame:
            named = frame[column] != ""
            words = frame[column]
            if column == "attack":  # ingredients are appended with +, and may have a weight
                words = _each(words, lambda v: re.sub(r"\+|(?<=\d)\.(?=\d)", "_", v))
            _refuse(
                named & ~_each(words, lambda v: bool(_SNAKE.match(v))),
                frame[column],
                kind,
                column,
                "snake_case",
            )
    numbers = [c for c in ("value", "low", "high") if c in frame]
    fractions = _each(metric, is_fraction)
    for column in numbers:
        missing = ~np.isfinite(frame[column]) & ~(metric.isin(allow_missing) & frame[column].isna())
        _refuse(
            missing,
            frame[column],
            kind,
            column,
            "a finite number (name the metric in allow_missing if undefined)",
        )
        outside = fractions & ((frame[column] < 0) | (frame[column] > 1))
        _refuse(outside, frame[column], kind, column, "a fraction in [0, 1]")
    if "low" in frame:
        _refuse(frame["low"] > frame["high"], frame["low"], kind, "low", "low <= high")
    if "x" in frame:
        _refuse(~np.isfinite(frame["x"]), frame["x"], kind, "x", "a finite number")
    _refuse(
        ~_each(frame["defence"], _is_spelled),
        frame["defence"],
        kind,
        "defence",
        "a name as lib.defences spells it",
    )
    unnamed = (frame["defence"] == "") & (frame["training_seed"].notna() | frame["training_steps"].notna())
    _refuse(unnamed, frame["defence"], kind, "defence", "a defence beside training steps or a training seed")
    attacked = frame["attack"] != ""
    _refuse(attacked & (frame["budget"] == ""), frame["budget"], kind, "budget", "a budget beside an attack")
    _refuse(
        attacked & frame["attack_seed"].isna() & (kind != "curves"),  # a curve may be a mean over seeds
        frame["attack_seed"],
        kind,
        "attack_seed",
        "a seed beside an attack",
    )
    _refuse(
        ~attacked & frame["attack_seed"].notna(),
        frame["attack_seed"],
        kind,
        "attack_seed",
        "empty without an attack",
    )
    keys = [c for c in frame.columns if c not in _NOT_KEY]
    _refuse(frame.duplicated(keys), metric, kind, "metric", "each run and metric once (duplicated row)")


@cache
def _is_spelled(defence: str) -> bool:
    """Whether this is how a defence is printed; empty stands for rows about no target (say, an evaluator)."""
    return defence == "" or spell(parse(defence)) == defence


def _refuse(bad: pd.Series, values: pd.Series, kind: str, column: str, expected: str) -> None:
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise UserError(f"{kind} row {row}, {column}: expected {expected}, got {values.iloc[row]!r}")


def _save(kind, rows, name: str, allow_missing: Collection[str], folder: Path | None) -> Path:
    if not FILE_NAME.match(name) or name.endswith(".csv"):
        raise UserError(
            f"{kind}: expected a plain file name without ending, got {name!r}; use [A-Za-z0-9._-]"
        )
    frame = check(rows, kind, allow_missing=allow_missing)
    setups = sorted(set(frame["setup"]))
    if len(setups) > 1:
        raise UserError(f"{kind} {name}: expected the rows of one setup, got {setups}; save one file per run")
    target = (folder or output_dir(setups[0])) / FORMATS[kind].folder / f"{name}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        frame.to_csv(aside, index=False, float_format="%.6g", lineterminator="\n")
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _load(kind: str, pattern: str, folder: Path | None) -> pd.DataFrame:
    root = (folder or results_dir()) / FORMATS[kind].folder
    texts = {path: _read(path, kind) for path in sorted(root.glob(f"{pattern}.csv"))}
    if not texts:
        return _types(pd.DataFrame(columns=list(FORMATS[kind].columns), dtype=object))
    try:
        return _types(pd.concat(texts.values(), ignore_index=True))  # at once: a study has hundreds of files
    except (ValueError, TypeError):
        for path, text in texts.items():
            try:
                _types(text)
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{path.name}: expected numbers in the numeric columns, got {error}"
                ) from error
        raise


def _read(path: Path, kind: str) -> pd.DataFrame:
    columns = FORMATS[kind].columns
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name}: expected a CSV of {kind}, got {error}; run it again") from error
    if tuple(frame.columns) != columns:
        raise UserError(
            f"{path.name}: expected the columns {','.join(columns)}, got {','.join(frame.columns)}"
        )
    return frame


def _types(frame: pd.DataFrame) -> pd.DataFrame:
    for column in frame.columns:
        if column in _NUMBERS or column in _INTEGERS:
            numbers = pd.to_numeric(frame[column].mask(frame[column] == "")).astype("float64")
            frame[column] = numbers.astype("Int64") if column in _INTEGERS else numbers
        else:
            frame[column] = frame[column].astype(object)
    return frame
