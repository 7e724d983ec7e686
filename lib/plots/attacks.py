"""Attacks side by side: what they find, and what they spend."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator

from lib.plots.style import (
    Style,
    axes_or_new,
    interval_errors,
    legend_right,
    percent_axis,
    set_styles,
    styles,
)
from lib.plots.training import beside, interval_curves, require


def grouped_intervals(
    frame: pd.DataFrame,
    *,
    x: str,
    by: str,
    y_label: str,
    title: str | None = None,
    looks: dict[str, Style] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A row per ``x``, a point with its 95 % interval per ``by``: columns ``x``, ``by``, value, low, high. ``by``
    are defences, unless ``looks`` says how its values are drawn."""
    require(frame, x, by, "value", "low", "high")
    names = list(dict.fromkeys(frame[x]))
    looks = looks or styles(frame[by].astype(str))
    ax = axes_or_new(ax, width=7.5, height=0.9 + max(0.55, 0.22 * len(looks)) * len(names))
    for i, (name, look) in enumerate(looks.items()):
        rows = frame[frame[by].astype(str) == name]
        shift = (i - (len(looks) - 1) / 2) * 0.6 / len(looks)
        ax.errorbar(
            rows["value"],
            [names.index(value) + shift for value in rows[x]],
            xerr=interval_errors(rows["value"], rows["low"], rows["high"]),
            linestyle="",
            color=look.colour,
            marker=look.marker,
            markerfacecolor=look.face,
            markersize=6.5,
            elinewidth=1.2,
            capsize=2.5,
            label=look.label,
        )
    ax.set_yticks(range(len(names)), [str(name).replace("\n", ", ") for name in names])
    ax.grid(False, axis="y")
    percent_axis(ax, "x")
    ax.set(xlim=(0, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel=y_label, title=title or "")
    legend_right(ax)
    return ax


def attack_costs(
    frame: pd.DataFrame,
    *,
    x_label: str,
    y_label: str,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Success against what an attack spent, on a logarithmic axis: columns attack, model, passes, value, low,
    high; one marker an attack, filled by model."""
    require(frame, "attack", "model", "passes", "value", "low", "high")
    ax = axes_or_new(ax, width=7.5, height=4.2)
    looks = set_styles([name.replace("\n", ", ") for name in frame["attack"]])
    for model_place, model in enumerate(dict.fromkeys(frame["model"])):
        for name, look in looks.items():
            rows = frame[(frame["model"] == model) & (frame["attack"].str.replace("\n", ", ") == name)]
            if rows.empty:
                continue
            bars = ax.errorbar(
                rows["passes"],
                rows["value"],
                yerr=interval_errors(rows["value"], rows["low"], rows["high"]),
                linestyle="",
                color=look.colour,
                marker="os^Dv"[model_place % 5],
                markerfacecolor=look.colour if model_place == 0 else "white",
                markersize=7,
                elinewidth=1.2,
                capsize=2.5,
                label=f"{look.label} on {model}",
            )
            beside(bars.get_children(), 1.5 * model_place, ax)
    _spent_axis(ax)
    ax.margins(x=0.12)  # the last points are moved to the right
    percent_axis(ax)
    ax.set(ylim=(0, 1.02), xlabel=x_label, ylabel=y_label, title=title or "")
    legend_right(ax)
    return ax


def attack_budgets(frame: pd.DataFrame, *, x_label: str, y_label: str, title: str | None = None) -> Axes:
    """One curve an attack over what it spent, on a logarithmic axis: columns attack, passes, value, low, high."""
    looks = set_styles(list(dict.fromkeys(frame["attack"])))
    ax = interval_curves(
        frame,
        x="passes",
        by="attack",
        looks=looks,
        logarithmic_x=True,
        x_label=x_label,
        y_label=y_label,
        title=title,
    )
    _spent_axis(ax)
    return ax


def _spent_axis(ax: Axes) -> None:
    """Passes or queries on a logarithmic axis with round ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.minorticks_off()
