"""Notebook 11, over training seeds: whether what a tuned defence takes outlasts chance in training, under every prior.

Models of ``repeated`` and NoDef are trained under all ``repeated_seeds`` and meet every attack of ``repeated_attacks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from IPython.display import Markdown

from lib import results
from lib.reports import sweep, tuned
from lib.reports.tables import seed_points
from lib.reports.workbook import Workbook
from lib.stages import success
from lib.stages.inversion import Attack
from lib.statistics import Interval


def attacks(book: Workbook) -> list[Attack]:
    """What :func:`measure` is made of, a training seed after the other."""
    groups = _groups(book).values()
    seeds = book.study.repeated_seeds
    return [replace(run, training_seed=seed) for seed in seeds for runs in groups for run in runs.values()]


def measure(book: Workbook) -> pd.DataFrame:
    """:func:`lib.reports.tuned.compare` over the training seeds, with ``by``: the attack and its prior. AttAcc of every
    seed and the differences to NoDef are saved as ``curves/<setup>__repeated``."""
    parts, rows = [], []
    for by, runs in _groups(book).items():
        others = [name for name in runs if name != "none"]
        found = tuned.compare(book, runs, others, seeds=book.study.repeated_seeds).assign(by=by)
        parts.append(found)
        rows += [row for point in found.to_dict("records") for row in _rows(book, runs, point)]
    if not parts:
        return pd.DataFrame(columns=[*tuned.COLUMNS, "by"])
    results.save_curves(rows, f"{book.setup.name}__repeated")
    return pd.concat(parts, ignore_index=True)


def _groups(book: Workbook) -> dict[str, dict[str, Attack]]:
    """Attack and prior -> model, NoDef first, -> its run."""
    study = book.study
    if not study.repeated:
        return {}
    models = list(dict.fromkeys(["none", *study.repeated]))
    lines = {f"by {' '.join(line.split()[:2])}": line for line in study.repeated_attacks or [study.swept]}
    return {
        by: {run.defence: run for run in book.listed_attacks([line], models, book.attack_seeds[:1])}
        for by, line in lines.items()
    }


def _rows(book: Workbook, runs: Mapping[str, Attack], point: dict[str, object]) -> list[dict[str, object]]:
    run, seeds = runs[str(point["defence"])], book.study.repeated_seeds
    rows = []
    for seed in seeds:
        one = replace(run, training_seed=seed)
        rows.append(_row(one, success.mean(success.measure([one])), "attack_accuracy_top1", "main"))
    for column, judge in (("privacy", "main"), ("privacy_verifier", success.VERIFIER)):
        if point[column] is not None:
            rows.append(
                {**_row(run, point[column], "privacy_gain", judge), "training_seed": None}
            )  # over them all
    return rows


def _row(run: Attack, interval: Interval, metric: str, evaluator: str) -> dict[str, object]:
    return sweep.curve_row(run, "repeated", interval, metric=metric, evaluator=evaluator)


# --- as a person reads it ------------------------------------------------------------------------------------


def shown(found: pd.DataFrame) -> pd.DataFrame | Markdown:
    """:func:`lib.reports.tuned.shown`, with AttAcc of each seed; a sentence where the study lists nothing."""
    if found.empty:
        return Markdown("No model of this study is trained under several seeds yet.")
    table = tuned.shown(found)
    table.insert(2, "AttAcc, each training seed", [seed_points(seeds) for seeds in found["seeds"]])
    return table
