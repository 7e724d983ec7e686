"""Notebook 07 in words: the question answered by the measures that were chosen before looking.

A weaker attack leaves reconstructions far from private features, too: "farther" is answered with yes only if NoDef
under a weaker attack is established not to be as far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.plots import label
from lib.reports.feature_report import PRIMARY, FeatureReport
from lib.statistics import Interval

QUESTIONS = {
    "towards": "reconstructions lie nearer to erased than to clean private features",
    "towards_more": "and more so than under NoDef",
    "away": "they lie farther from private features, relative to unseen photos, than under NoDef, also than a weaker "
    "attack leaves NoDef's",
    "separated": "private classes are better separated than under NoDef",
}


def answers(report: FeatureReport, table: pd.DataFrame) -> str:
    """The question answered a line a defence, by the primary measures."""
    lines = []
    for defence in [name for name in dict.fromkeys(table["defence"]) if name != "none"]:
        rows = table[table["defence"] == defence]
        lines.append(f"- **{label(defence)}** (n = {rows['interval'].iloc[0].n})")
        for claim, question in QUESTIONS.items():
            measure = PRIMARY["towards" if claim == "towards_more" else claim]
            chosen = rows[(rows["claim"] == claim) & (rows["measure"] == measure)]
            for row in chosen.itertuples():
                agree = _agreement(rows[rows["claim"] == claim], measure)
                beyond = _beyond_weaker(rows, measure) if claim == "away" else None
                outcome = _outcome(report, row, beyond)
                number = _number(row) + (_against_weaker(table, measure, beyond) if beyond else "")
                lines.append(f"    - {question}: **{outcome}** ({number}{agree})")
    return "\n".join(lines)


def _outcome(report: FeatureReport, row: Any, beyond: Interval | None = None) -> str:
    """What the interval says; of a claim that a weaker attack alone may fulfil, only with what is ``beyond`` it."""
    if not report.book.conclusive:
        return "too small to conclude"
    if not row.interval.excludes(0):
        return "not established"
    if row.interval.value * row.supports < 0:
        return "no, the opposite"
    if beyond is None and row.claim == "away":
        return "than under NoDef, yes; there is no weaker attack to compare with"
    if beyond is None or beyond.low > 0:
        return "yes"
    if beyond.high < 0:
        return "no, less far than a weaker attack alone leaves NoDef's"
    return "than under NoDef, yes; than a weaker attack alone leaves NoDef's, not established"


def _beyond_weaker(rows: pd.DataFrame, measure: str) -> Interval | None:
    """The model's log ratio minus that of NoDef under the weaker attack, if there is one."""
    found = rows.loc[(rows["claim"] == "away_more") & (rows["measure"] == measure), "interval"]
    return found.iloc[0] if len(found) else None


def _against_weaker(table: pd.DataFrame, measure: str, beyond: Interval) -> str:
    control = table[(table["defence"] == "none") & (table["claim"] == "away") & (table["measure"] == measure)]
    (alone,) = control["interval"]
    return f"; the weaker attack on NoDef alone {_signed(alone)}, the model beyond it {_signed(beyond)}"


def _number(row: Any) -> str:
    names = {"away": "log ratio", "separated": row.measure.replace("_", " ")}
    text = names.get(row.claim, "vote minus middle" if row.claim == "towards" else "difference of votes")
    return f"{text} {_signed(row.interval)}"


def _signed(interval: Interval) -> str:
    return interval.plain(2, signed=True, count=False)


def _agreement(rows: pd.DataFrame, primary: str) -> str:
    """How many of the other measures point the same way."""
    others = rows[rows["measure"] != primary]
    if others.empty:
        return ""
    directed = rows["supports"] * rows["interval"].map(lambda interval: np.sign(interval.value))
    same = (directed[others.index] == directed[rows.index[rows["measure"] == primary][0]]).sum()
    return f"; {same} of {len(others)} other measures point the same way"
