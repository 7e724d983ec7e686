"""Attacks side by side: what they find, and what they spend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator

from lib.plots.style import (
    INK,
    MARKERS,
    Style,
    axes_or_new,
    grid,
    interval_errors,
    legend_below,
    legend_right,
    percent_axis,
    set_styles,
    styles,
    suptitle,
)
from lib.plots.training import interval_curves, require

COLUMNS = 3


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
    """Success against what an attack spent, on a logarithmic axis: columns attack, defence, passes, value, low,
    high; a colour a model, a marker an attack. Where models cost the same their points and bars lie over one another,
    the later ones smaller and thinner, so that all are seen at their place."""
    require(frame, "attack", "defence", "passes", "value", "low", "high")
    ax = axes_or_new(ax, width=7.5, height=5.2)
    models = styles(frame["defence"].astype(str))
    names = frame["attack"].str.replace("\n", ", ")
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dict.fromkeys(names))}
    sizes = dict(zip(models, np.linspace(12, 5, len(models)), strict=True))
    for defence, look in models.items():
        size = sizes[defence]
        for name, marker in markers.items():
            rows = frame[(frame["defence"].astype(str) == defence) & (names == name)]
            if rows.empty:
                continue
            ax.errorbar(
                rows["passes"],
                rows["value"],
                yerr=interval_errors(rows["value"], rows["low"], rows["high"]),
                linestyle="",
                color=look.colour,
                marker=marker,
                markerfacecolor="white",
                markeredgewidth=1.6,
                markersize=size,
                elinewidth=size / 3,
                capsize=size / 2,
            )
    _spent_axis(ax)
    percent_axis(ax)
    ax.set(ylim=(0, 1.02), xlabel=x_label, ylabel=y_label, title=title or "")
    colours = [
        Line2D([], [], label=look.label, color=look.colour, linewidth=sizes[name] / 3)
        for name, look in models.items()
    ]
    shapes = [
        Line2D([], [], linestyle="", label=name, color=INK, marker=marker, markerfacecolor="white")
        for name, marker in markers.items()
    ]
    _legend_below(ax, "model", 0.0, colours)
    _legend_below(ax, "attack, prior", 0.4, shapes)
    return ax


def _legend_below(ax: Axes, title: str, left: float, handles: Sequence[Line2D]) -> None:
    """One of several legends below the axes, ``left`` of it being a share of their width."""
    legend = Legend(  # not ax.legend(), which keeps one alone
        ax,
        handles,
        [handle.get_label() for handle in handles],
        title=title,
        title_fontsize=10,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(left, -0.17),
        borderaxespad=0.0,
    )
    ax.add_artist(legend)
    legend.set_clip_on(False)  # what is clipped to the axes gets no room in the layout


def attack_budgets(frame: pd.DataFrame, *, x_label: str, y_label: str, title: str | None = None) -> Figure:
    """What an attack finds against what it spent, on a logarithmic axis: a panel an attack, in it a curve for each
    of its priors and choices of constants. Columns attack (with what tells its curves apart after a comma), passes,
    value, low, high."""
    require(frame, "attack", "passes", "value", "low", "high")
    parts = frame["attack"].str.partition(", ")
    frame = frame.assign(method=parts[0], series=parts[2])
    looks, methods = set_styles(frame["series"]), list(dict.fromkeys(frame["method"]))
    figure, axes = grid(len(methods), columns=COLUMNS, height=2.7, sharex=True, sharey=True)
    for i, (ax, method) in enumerate(zip(axes, methods, strict=True)):
        rows = frame[frame["method"] == method]
        interval_curves(
            rows,
            x="passes",
            by="series",
            looks={name: look for name, look in looks.items() if name in set(rows["series"])},
            logarithmic_x=True,
            dodge=False,
            legend=False,
            x_label=x_label if i + COLUMNS >= len(methods) else " ",
            y_label=y_label if i % COLUMNS == 0 else "",
            title=method,
            ax=ax,
        )
        _spent_axis(ax)
        ax.tick_params(labelbottom=True)  # of every panel: the last row may be shorter
    axes[0].set_ylim(0, 1.04)
    legend_below(figure, axes)
    suptitle(figure, title)
    return figure


def _spent_axis(ax: Axes) -> None:
    """Passes or queries on a logarithmic axis with round ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.minorticks_off()
