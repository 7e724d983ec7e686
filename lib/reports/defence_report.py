"""Notebook 10: what every defence has moved in its training, and whether it acted."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib import defences as registry
from lib import plots, store
from lib.plots import label
from lib.reports import defence_costs, defence_pages
from lib.reports.made import made
from lib.reports.tables import quantity
from lib.reports.workbook import Workbook
from lib.stages import records

FLATTEST = 0.1  # of the largest value: the least that the axis of a diagnostic spans


def listed(book: Workbook) -> list[str]:
    """The study's defences that have a page; of a partial book those that are trained."""
    runs = [book.attack(text) for text in book.study.pages]
    trained = made(
        book, runs, lambda run: store.exists(records.answers_stage(run.target_stage())), "training of"
    )
    return [run.defence for run in trained]


def diagnostics(book: Workbook) -> pd.DataFrame:
    """Train (or load) the listed defences, first training seed: columns ``defence, diagnostic, step, value``, a row
    an epoch."""
    rows = []
    for text in listed(book):
        training = records.answers_of(book.attack(text)).training
        names, history = list(training["diagnostics"]), training["history"]
        for entry in history:
            rows += [(text, name, entry["step"], entry[name]) for name in names if name in entry]
        if names and not any(name in history[-1] for name in names):  # trained before rows had them
            rows += [
                (text, name, history[-1]["step"], value) for name, value in training["diagnostics"].items()
            ]
    return pd.DataFrame(rows, columns=["defence", "diagnostic", "step", "value"])


def diagnostic_figure(curves: pd.DataFrame) -> Figure:
    """A panel a diagnostic, over the training; those known at its end alone, or the same throughout, are left to the
    table. An axis spans a tenth of the largest value at least: what does not move looks flat."""
    moves = curves.groupby(["defence", "diagnostic"])["value"].transform("nunique") > 1
    shown = curves[moves] if moves.any() else curves
    names = shown["diagnostic"].map(quantity)
    named = shown.assign(panel=shown["defence"].map(label) + ": " + names)
    wide = named.pivot_table(index=["defence", "step"], columns="panel", values="value", sort=False)
    panels = list(wide)
    figure = plots.learning_curves(
        wide.reset_index().assign(defence="none"),  # a panel says whose it is: one colour for all
        metrics=panels,
        title="What each defence must move",
    )
    for ax, panel in zip(figure.axes, panels, strict=False):
        model, _, named_as = panel.partition(": ")
        ax.set_title(model, fontsize="medium")
        ax.set_ylabel(named_as)
        low, high = ax.get_ylim()
        least = FLATTEST * (float(wide[panel].abs().max()) or 1.0)
        if high - low < least:
            ax.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    return figure


def diagnostic_caption(curves: pd.DataFrame) -> str:
    """Which diagnostics the figure leaves out."""
    found = curves.groupby(["defence", "diagnostic"], sort=False).agg({"step": "nunique", "value": "nunique"})
    if not (found["value"] > 1).any():
        return "Every defence that records something, over its training."
    names = [f"{label(defence)}, {quantity(name)}" for defence, name in found.index]
    once = [name for name, count in zip(names, found["step"], strict=True) if count == 1]
    still = [n for n, s, v in zip(names, found["step"], found["value"], strict=True) if v == 1 < s]
    text = []
    if once:
        text.append(f"Known at the end of training alone: {'; '.join(once)}.")
    if still:
        text.append(f"The same throughout: {'; '.join(still)}.")
    return " ".join(
        ["Over the training; the rest is in the table below." if text else "Over the training.", *text]
    )


def activity(book: Workbook, curves: pd.DataFrame) -> pd.DataFrame:
    """First and last value of every diagnostic (no first of one that is known at the end alone), and whether the
    defence acted by its own criterion (:meth:`lib.training.Defence.acted`)."""
    moved = {text: _acted(book, curves, text) for text in dict.fromkeys(curves["defence"])}
    named = curves.assign(
        defence=curves["defence"].map(label),
        diagnostic=curves["diagnostic"].map(quantity),
        acted=["yes" if moved[text] else "no" for text in curves["defence"]],
    )
    ends = named.groupby(["defence", "diagnostic"], sort=False).agg(
        first=("value", lambda values: values.iloc[0] if len(values) > 1 else np.nan),
        last=("value", "last"),
        acted=("acted", "last"),
    )
    return ends.rename(columns={"first": "after the first epoch", "last": "at the end"})


def silent(book: Workbook, curves: pd.DataFrame) -> list[str]:
    """Listed defences of which a part did not act; controls that only change the recipe have nothing to show."""
    return [text for text in listed(book) if not _recipe_only(text) and not _acted(book, curves, text)]


def _acted(book: Workbook, curves: pd.DataFrame, text: str) -> bool:
    rows = curves[curves["defence"] == text]
    epochs = [dict(zip(part["diagnostic"], part["value"], strict=True)) for _, part in rows.groupby("step")]
    if not epochs:
        return False
    parts = registry.acted(text, {"diagnostics": epochs[-1], "history": epochs}, book.setup.defences)
    return all(moved or (moved is None and _recipe_only(part)) for part, moved in parts.items())


def _recipe_only(text: str) -> bool:
    kinds = [registry.defence_class(term.name) for term in registry.parse(text)]
    return all(set(defence_pages.acts_through(kind)) <= {"plan"} for kind in kinds)


def what_we_saw(book: Workbook, curves: pd.DataFrame, found: pd.DataFrame) -> str:
    """Whether every trained defence was active, and what all cost."""
    quiet, trained = silent(book, curves), len(listed(book))
    names = ", ".join(label(text) for text in quiet)
    active = (
        f"Not shown to have acted: {names}"
        if quiet
        else f"{trained} of {len(book.study.pages)} defences are trained, and all of them acted by their own criteria"
    )
    return f"**{active}.** {defence_costs.sentence(found)}"
