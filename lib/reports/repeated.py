"""Notebook 11, over training seeds: whether what a tuned defence takes outlasts chance in training, under every prior.

Models of ``repeated``, as the rule tunes them (:func:`lib.reports.sweep.tuned_in`), and NoDef are trained under all
``repeated_seeds`` and meet every attack of ``repeated_attacks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from IPython.display import Markdown

from lib import results
from lib.reports import sweep, tuned
from lib.reports.made import made
from lib.reports.tables import points, seed_points
from lib.reports.workbook import Workbook
from lib.stages import success
from lib.stages.inversion import Attack
from lib.statistics import Interval


def attacks(book: Workbook) -> list[Attack]:
    """What :func:`measure` is made of, a training seed after the other."""
    return [
        replace(run, training_seed=seed)
        for runs, seeds in _groups(book).values()
        for seed in seeds
        for run in runs.values()
    ]


def measure(book: Workbook) -> pd.DataFrame:
    """:func:`lib.reports.tuned.compare` over the training seeds, with ``by``: the attack and its prior. AttAcc of every
    seed and the differences to NoDef are saved as ``curves/<setup>__repeated``."""
    parts, rows = [], []
    for by, (runs, seeds) in _groups(book).items():
        others = [name for name in runs if name != "none"]
        found = tuned.compare(book, runs, others, seeds=seeds).assign(by=by)
        parts.append(found)
        rows += [
            row for point in found.to_dict("records") for row in _rows(runs[point["defence"]], seeds, point)
        ]
    if parts:
        results.save_curves(rows, f"{book.setup.name}__repeated")
    return tuned.joined(parts)


def _groups(book: Workbook) -> dict[str, tuple[dict[str, Attack], list[int]]]:
    """Attack and prior -> model, NoDef first, -> its run; and the seeds. Of a partial book the seeds that NoDef is made
    under, if there are two, and the models that are made under all of those."""
    study = book.study
    if not study.repeated:
        return {}
    models = list(dict.fromkeys(["none", *sweep.tuned_in(book, study.repeated)]))
    found = {}
    for by, line in tuned.by_line(study.repeated_attacks or [study.swept]).items():
        runs = book.listed_attacks([line], models, book.attack_seeds[:1])
        there = {
            seed: {run.defence for run in made(book, [replace(run, training_seed=seed) for run in runs])}
            for seed in study.repeated_seeds
        }
        seeds = [seed for seed, names in there.items() if "none" in names]
        kept = {run.defence: run for run in runs if all(run.defence in there[seed] for seed in seeds)}
        if len(seeds) > 1 and len(kept) > 1:
            found[by] = (kept, seeds)
    return found


def _rows(run: Attack, seeds: Sequence[int], point: Mapping[str, object]) -> list[dict[str, object]]:
    rows = []
    for seed in seeds:
        one = replace(run, training_seed=seed)
        rows.append(_row(one, success.mean(success.measure([one])), "attack_accuracy_top1", "main"))
    for column, judge in (("privacy", "main"), ("privacy_verifier", success.VERIFIER)):
        if point[column] is not None:
            over_all = {**_row(run, point[column], "privacy_gain", judge), "training_seed": None}
            rows.append(over_all)
    if point["training"] is not None:
        of_trainings = _row(run, point["training"], "privacy_gain", "main")  # Student's
        rows.append({**of_trainings, "training_seed": None, "curve": "repeated_trainings"})
    return rows


def _row(run: Attack, interval: Interval, metric: str, evaluator: str) -> dict[str, object]:
    return sweep.curve_row(run, "repeated", interval, metric=metric, evaluator=evaluator)


# --- as a person reads it ------------------------------------------------------------------------------------


def shown(found: pd.DataFrame) -> pd.DataFrame | Markdown:
    """:func:`lib.reports.tuned.shown`, with AttAcc of each seed; a sentence where the study lists nothing."""
    if found.empty:
        return Markdown(
            "Nothing to compare yet: it takes NoDef and a defence under the same two training seeds."
        )
    table = tuned.shown(found)
    table.insert(2, "AttAcc, each training seed", [seed_points(seeds) for seeds in found["seeds"]])
    over = ["" if interval is None else points(interval) for interval in found["training"]]
    table.insert(list(table).index(tuned.P), "the same, Student's interval over trainings", over)
    return table
