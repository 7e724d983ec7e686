"""Notebook 07 in words: the question answered by the measures that were chosen before looking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lib.plots import label
from lib.reports.feature_report import PRIMARY, FeatureReport

QUESTIONS = {
    "towards": "reconstructions lie nearer to erased than to clean private features",
    "towards_more": "and more so than under NoDef",
    "away": "they lie farther from private features, relative to unseen photos, than under NoDef",
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
                lines.append(f"    - {question}: **{_outcome(report, row)}** ({_number(row)}{agree})")
    return "\n".join(lines)


def _outcome(report: FeatureReport, row: Any) -> str:
    if not report.book.setup.conclusive:
        return "too small to conclude"
    if not row.interval.excludes(0):
        return "not established"
    return "yes" if row.interval.value * row.supports > 0 else "no, the opposite"


def _number(row: Any) -> str:
    names = {"away": "log ratio", "separated": row.measure.replace("_", " ")}
    text = names.get(row.claim, "vote - ½" if row.claim == "towards" else "difference of votes")
    return f"{text} {row.interval.plain(2, signed=True).rpartition(', n')[0]}"


def _agreement(rows: pd.DataFrame, primary: str) -> str:
    """How many of the other measures point the same way."""
    others = rows[rows["measure"] != primary]
    if others.empty:
        return ""
    directed = rows["supports"] * rows["interval"].map(lambda interval: np.sign(interval.value))
    same = (directed[others.index] == directed[rows.index[rows["measure"] == primary][0]]).sum()
    return f"; {same} of {len(others)} other measures point the same way"
