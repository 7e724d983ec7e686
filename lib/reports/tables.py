"""Tables as a notebook shows them: intervals in words, units in the cells, no columns that say nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import pandas as pd

from lib.results import summarise
from lib.results.sentences import metric_name, show_interval, show_number
from lib.statistics import Interval, Ratio, SeedSummary, Verdict

QUANTITIES = {
    "x_z": "dependence of features on photos",
    "z_y": "dependence of features on names",
}
"""What diagnostics are called where their own names say little."""


def quantity(diagnostic: str) -> str:
    """How a diagnostic, ``<defence>.<name>``, is called."""
    name = diagnostic.rpartition(".")[2]
    return QUANTITIES.get(name, name.replace("_", " "))


def readable(
    frame: pd.DataFrame, *, plain: Collection[str] = (), signed: Collection[str] = ()
) -> pd.DataFrame:
    """The frame with intervals, verdicts and ratios as text.

    Args:
        plain: columns whose intervals are no fractions. signed: columns of differences: with a sign, those of
            fractions in points, because 60 % less 20 % are 40 points.
    """

    def text(value: Any, column: str) -> Any:
        if isinstance(value, Interval):
            if column in signed and column not in plain:
                return points(value)
            show = value.plain if column in plain else value.percent
            return show(signed=column in signed, count=False)
        if isinstance(value, Verdict):
            return value.outcome
        return str(value) if isinstance(value, Ratio) else value

    shown = {column: [text(value, column) for value in frame[column]] for column in frame}
    return pd.DataFrame(shown, index=frame.index).rename(columns=lambda name: str(name).replace("_", " "))


def pivot(
    table: pd.DataFrame,
    *,
    metrics: Collection[str] = (),
    columns: str = "evaluator",
    headline: bool = True,
    **filters: str | Collection[str],
) -> pd.DataFrame:
    """Rows of results as defence x ``columns``, each cell ``71.2 % [65.0, 77.1]``; seeds are joined.

    Args:
        table: rows of ``results/tables``. metrics: kept, in this order (all where empty).
        columns: the schema column that becomes the frame's columns: ``evaluator`` or ``metric``.
        filters: further ``column=value`` conditions, or ``column=[values]``.
    """
    rows = table[table["metric"].isin(metrics)] if metrics else table
    for column, wanted in filters.items():
        rows = rows[rows[column].isin([wanted] if isinstance(wanted, str) else wanted)]
    rows = summarise(rows, headline=headline)
    cells = [
        f"{show_number(row.value, row.metric)} {show_interval(row.low, row.high, row.metric)}"
        for row in rows.itertuples()
    ]
    names = rows[columns].map(metric_name) if columns == "metric" else rows[columns].str.replace("_", " ")
    shown = rows.assign(cell=cells, name=names)
    order = (
        [metric_name(name) for name in metrics] if columns == "metric" and metrics else list(names.unique())
    )
    wide = shown.pivot(index="defence", columns="name", values="cell")
    wide = wide.reindex(index=list(dict.fromkeys(rows["defence"])), columns=order)
    return wide.rename_axis(index="defence", columns=None)


def points(interval: Interval) -> str:
    """A difference of fractions in words: ``+12.3 points [+4.0, +20.1]``."""
    if math.isnan(interval.value):
        return "undefined"
    value, low, high = (f"{100 * end:+.1f}" for end in (interval.value, interval.low, interval.high))
    return f"{value} points " + ("no interval" if math.isnan(interval.low) else f"[{low}, {high}]")


def percent(interval: Interval) -> str:
    """A fraction in a cell, its n said elsewhere: ``71.2 % [65.0, 77.1]``."""
    return interval.percent(count=False)


def limits(intervals: Iterable[Interval]) -> dict[str, list[float]]:
    """Columns ``value``, ``low`` and ``high``, as figures take them."""
    kept = list(intervals)
    return {end: [getattr(interval, end) for interval in kept] for end in ("value", "low", "high")}


LEVEL = 0.05
"""Below it Holm's p establishes a difference, where many are looked at together."""


def established(difference: Interval, p: float) -> bool:
    """Whether a difference is told from nothing by its interval and by its p, corrected for those beside it."""
    return difference.excludes(0) and p < LEVEL


def rule(over: str, found: int | None = None) -> str:
    """What :func:`established` asks, p being corrected ``over`` some comparisons, and of how many of them it holds."""
    counted = "" if found is None else f"; {found} of them {'is' if found == 1 else 'are'}"
    return (
        f"A difference is called established only if its interval excludes 0 and Holm's p over {over} is below "
        f"{LEVEL}{counted}."
    )


def p_value(p: float | None) -> str:
    """As it is printed; nothing for None."""
    return "" if p is None or p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def holms(p: float) -> str:
    """In a sentence: ``Holm's p = 0.012``."""
    text = p_value(p)
    return f"Holm's p {text if text.startswith('<') else f'= {text}'}"


def seed_points(seeds: SeedSummary) -> str:
    """Every training seed's mean of a fraction, and Student's interval over them where there are several:
    ``91.4, 92.1 % (t: 87.3 to 96.2)``, cut off at 0 and 100 %."""
    shown = ", ".join(f"{100 * value:.1f}" for value in seeds.points) + " %"
    if len(seeds.points) < 2:
        return shown
    low, high = max(0.0, seeds.over_seeds.low), min(1.0, seeds.over_seeds.high)
    return f"{shown} (t: {100 * low:.1f} to {100 * high:.1f})"
