"""How the attack's strength grows with its budget, and whether another attack or prior would be stronger."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lib import attacks, results
from lib.plots import label
from lib.reports import outside
from lib.reports.tables import points
from lib.reports.workbook import Workbook
from lib.results.sentences import metric_name
from lib.stages import success
from lib.stages.inversion import Attack
from lib.statistics import Interval

BUDGETS = ("glance", "quick", "sweep", "headline")
"""Weakest first."""
MIDDLING = "sweep"
RIVALS = ("gmi",)
"""Compared in notebook 05 already; notebooks 14 and 15 have them all."""
SHOWN = (
    ("attack_accuracy_top1", "main"),
    ("attack_accuracy_top1", "panel_majority"),
    ("verifier_match", "verifier"),
    ("verifier_rank1_accuracy", "verifier"),
    ("target_confidence", "target"),
)


def curve_attacks(book: Workbook, defence: str = "none") -> list[Attack]:
    """One model attacked by the study's first attack under every budget of the setup, weakest first; budgets
    with the same constants count once, under the later name."""
    known = [name for name in BUDGETS if name in _budgets(book)]
    made = {
        repr(sorted(attack.values.items())): attack
        for attack in (book.attack(defence, budget=b) for b in known)
    }
    return list(made.values())


def _budgets(book: Workbook) -> dict[str, dict[str, Any]]:
    """Of the study's first attack, ingredients or not."""
    return book.setup.attacks[attacks.get(book.study.attacks[0]).base]


def rivalled(book: Workbook) -> tuple[str, ...]:
    """The models that every prior and attack is tried on: NoDef and the run's first defence."""
    return tuple(dict.fromkeys(["none", *book.defences]))[:2]


def rival_attacks(book: Workbook, defence: str = "none") -> list[Attack]:
    """One model under a middling budget with every prior, and under the other attacks."""
    first = book.study.attacks[0]
    middle = MIDDLING if MIDDLING in _budgets(book) else book.study.budget
    runs = [book.attack(defence, attack=first, prior=kind, budget=middle) for kind in book.setup.priors]
    for method in RIVALS:
        budgets = book.setup.attacks.get(method, {})
        if method != first and budgets:
            runs.append(book.attack(defence, attack=method, budget=list(budgets)[-1]))
    return runs


def budget_curve(book: Workbook, defence: str = "none") -> pd.DataFrame:
    """Attack, save ``curves/<run>__attack-budget`` and return its rows (:data:`lib.results.CURVE_COLUMNS`)."""
    runs = curve_attacks(book, defence)
    table = book.invert(runs)
    wanted = pd.MultiIndex.from_frame(table[["metric", "evaluator"]]).isin(SHOWN)
    passes = {run.budget: round(_passes(run)) for run in runs}
    rows = table[wanted].drop(columns="headline")
    rows = rows.assign(curve="attack_budget", x_name="network_passes", x=rows["budget"].map(passes))
    first = runs[0]
    name = f"attack-budget__{book.name(first.defence, first.training_seed, int(rows.training_steps.iloc[0]))}"
    results.save_curves(rows[list(results.CURVE_COLUMNS)], name)
    return rows.reset_index(drop=True)


def rival_table(book: Workbook) -> pd.DataFrame:
    """Run :func:`rival_attacks` on the :func:`rivalled` models; AttAcc, the match rates of the verifier and of
    the outside one if there is one, and what a person costs, a row an attack and model."""
    judges, rows = list(SHOWN[:3]), []
    enrolled = outside.gallery(book.setup) if outside.applies(book.setup) else None
    if enrolled:
        judges.append(("verifier_match", outside.NAME))
    by_model = zip(*(rival_attacks(book, defence) for defence in rivalled(book)), strict=True)
    for attack in [attack for models in by_model for attack in models]:
        table = book.invert([attack])
        if enrolled:
            table = pd.concat([table, outside.measure(book, attack, enrolled)])
        cells: dict[str, object] = {name: getattr(attack, name) for name in ("attack", "prior", "budget")}
        cells["model"] = label(attack.defence)
        for metric, evaluator in judges:
            row = table[(table["metric"] == metric) & (table["evaluator"] == evaluator)].iloc[0]
            interval = Interval(row["value"], row["low"], row["high"], row["n"])
            name = f"{metric_name(metric)}, {evaluator.replace('_', ' ')}"
            if evaluator == outside.NAME:
                name += f" (best {outside.KEPT})"
            cells[name] = interval.percent().rpartition(",")[0]
        cells["passes per person"] = round(_passes(attack))
        rows.append(cells)
    return pd.DataFrame(rows).set_index(["attack", "prior", "budget", "model"])


def _passes(attack: Attack) -> float:
    return success.measure([attack])[0].passes


def curve_sentence(book: Workbook, curve: pd.DataFrame) -> str:
    """Whether the attack still grows at the end of its budgets, in words: by the last step, paired by person."""
    rows = curve[(curve.metric == "attack_accuracy_top1") & (curve.evaluator == "main")].sort_values("x")
    if len(rows) < 2:
        return f"Preset {book.setup.name}: one budget only, no curve."
    runs = {run.budget: run for run in curve_attacks(book, curve["defence"].iloc[0])}
    *_, last, largest = (success.measure([runs[budget]]) for budget in rows["budget"])
    compared = success.compare(largest, last)
    steps = ", ".join(
        f"{100 * row.value:.1f} % ({row.budget}, {row.x:,.0f} passes, {runs[row.budget].values['keep']} images kept)"
        for row in rows.itertuples()
    )
    text = (
        f"Preset {book.setup.name}: AttAcc of what is kept is {steps}. The last step adds "
        f"{points(compared.difference)} to the best {success.fewest(largest, last)}, n = {compared.difference.n}"
    )
    if not book.conclusive:
        return f"{text}: too small to conclude."
    if compared.difference.low > 0:
        return f"{text}: the attack still grows with its budget."
    return f"{text}: no further growth established; {100 * compared.detectable:.1f} points could have been detected."
