"""Notebooks 14 and 15: whether attacks still find more under a larger budget."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lib import results
from lib.attacks.referee.flags import GROWN
from lib.reports.attack_report import asked, groups, seeing
from lib.reports.made import made
from lib.reports.sweep import curve_row
from lib.reports.tables import points
from lib.reports.workbook import Workbook
from lib.stages import success
from lib.stages.inversion import Attack
from lib.stages.success import Outcome

SAME = 1.05  # ratio of passes under which two budgets came to the same


def constants(budget: str) -> str:
    """Whose constants a budget has, by its name: ``settled``, or what begins so, those that a grid chose, others
    (empty) those set by hand."""
    return "settled" if budget.startswith("settled") else ""


def runs(book: Workbook, *, white_box: bool) -> list[Attack]:
    """The compared attacks on NoDef under all their budgets, first attack seed."""
    lines = dict.fromkeys([*book.study.curves, *book.study.compared])
    return made(book, seeing(book.listed_attacks(lines, ["none"], book.compared_seeds[:1]), white_box))


def curves(found: Sequence[Attack]) -> pd.DataFrame:
    """Of every attack that was run under two budgets or more with the same :func:`constants`, a row a budget: columns
    ``attack`` (with its prior, and ``settled`` where a grid chose its constants),
    ``passes`` per person, ``value, low, high`` of AttAcc by the main evaluator, ``growth``, paired by person, over the
    budget before it (None for the smallest), and ``run``, its first seed."""
    series: dict[str, list[tuple[float, list[Outcome]]]] = {}
    for seeds in groups(found).values():
        series.setdefault(_name(seeds[0].attack), []).append((success.passes(seeds), seeds))
    rows = []
    for name, points_of in series.items():
        steps = sorted(points_of, key=lambda point: point[0])
        for (_, before), (passes, seeds) in zip([(0.0, None), *steps], steps, strict=False):
            interval = success.mean(seeds)
            growth = success.compare(seeds, before).difference if before else None
            value = {"value": interval.value, "low": interval.low, "high": interval.high}
            if len(steps) > 1:
                run = seeds[0].attack
                rows.append({"attack": name, "passes": passes, **value, "growth": growth, "run": run})
    return pd.DataFrame(rows, columns=["attack", "passes", "value", "low", "high", "growth", "run"])


def _name(run: Attack) -> str:
    return ", ".join(filter(None, (run.attack, run.prior, constants(run.budget))))


def save(book: Workbook, found: pd.DataFrame, name: str) -> None:
    """What the last step of every curve adds as ``curves/<setup>__growth__<name>``; x: how many times the passes before
    it has, of those that spend more."""
    rows = []
    for _, points_of in found.groupby("attack", sort=False):
        last, times = points_of.iloc[-1], points_of["passes"].iloc[-1] / points_of["passes"].iloc[-2]
        if times >= SAME:
            about = {
                "metric": "attack_accuracy_growth",
                "evaluator": "main",
                "x_name": "times_the_passes",
                "x": times,
            }
            rows.append(curve_row(last["run"], "growth", last["growth"], **about))
    if rows:
        results.save_curves(rows, f"{book.setup.name}__growth__{name}")


def sentence(book: Workbook, found: pd.DataFrame, *, white_box: bool) -> str:
    """Which attacks still grow with their budget, by the last step of each curve (by little: by less than the referee
    takes for growth), which find less, and which of the listed ones have no curve."""
    text, weaker = [], []
    for name, rows in found.groupby("attack", sort=False):
        last, times = rows.iloc[-1], rows["passes"].iloc[-1] / rows["passes"].iloc[-2]
        if times < SAME:
            text.append(f"{name}: stops by itself and spends no more of the larger budget")
            continue
        state = "no growth established"
        if last.growth.high < 0:
            state = "finds less"
            weaker.append(name)
        elif last.growth.low > 0:
            state = "still grows" if last.growth.value > GROWN else "still grows, by little"
        text.append(
            f"{name}: {state}, {points(last.growth)} for {times:.1f} times the {asked(name.partition(',')[0])}"
        )
    if not text:
        return "No attack was run under two budgets."
    compared = seeing(book.listed_attacks(book.study.compared, ["none"]), white_box)
    if alone := sorted(set(map(_name, compared)) - set(found["attack"])):
        text.append(f"under one budget alone: {'; '.join(alone)}")
    if not book.conclusive:
        return "; ".join(text) + ". **Too small to conclude.**"
    if weaker:
        text[-1] += (
            f". Weaker under the largest budget than under the one below it, so that its rows are a floor: "
            f"{'; '.join(weaker)}"
        )
    return "; ".join(text) + "."
