"""Privacy against utility: the trade-off plane, attack accuracy by judge, and attack strength over budget."""

from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes

from lib import statistics
from lib.plots.style import (
    EVALUATORS,
    FAINT,
    INK,
    Style,
    axes_or_new,
    interval_errors,
    legend_right,
    order,
    percent_axis,
    set_styles,
    styles,
)
from lib.plots.training import interval_curves, require


def tradeoff(
    frame: pd.DataFrame,
    *,
    frontier: pd.DataFrame | None = None,
    front: bool = True,
    evaluator: str = "main evaluator",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Attack accuracy against natural accuracy, down and right is better; two-way 95 % error bars.

    ``frame``: defence, natural, natural_low, natural_high, attack, attack_low, attack_high; several rows of a
    defence (seeds) are drawn alike. ``front`` steps through the non-dominated means. ``frontier`` is NoDef's
    own frontier, what weaker training without a defence reaches: natural, attack and optionally low, high.
    """
    sides = ("natural", "attack")
    require(frame, "defence", *(f"{side}{end}" for side in sides for end in ("", "_low", "_high")))
    ax = axes_or_new(ax, width=8.5, height=4.8)
    if frontier is not None:
        line = frontier.sort_values("natural")
        ax.plot(
            line["natural"],
            line["attack"],
            color=FAINT,
            linestyle="--",
            linewidth=1.5,
            label="NoDef frontier",
        )
        if {"low", "high"} <= set(line):
            ax.fill_between(line["natural"], line["low"], line["high"], color=FAINT, alpha=0.15, linewidth=0)
    if front:
        means = frame.groupby("defence")[list(sides)].mean()
        best = means[statistics.pareto_front(means["natural"], means["attack"])].sort_values(
            "natural", kind="stable"
        )
        ax.step(
            best["natural"],
            best["attack"],
            where="pre",
            color=INK,
            linewidth=1,
            alpha=0.55,
            label="Pareto front",
            zorder=1,
        )
    for name, look in styles(frame["defence"]).items():
        rows = frame[frame["defence"] == name]
        two_way_points(ax, rows, look)
    percent_axis(ax, "xy")
    ax.set_ylim(bottom=0, top=min(1.0, ax.get_ylim()[1]) if ax.get_ylim()[1] < 1.2 else None)
    ax.set(
        xlabel="natural accuracy (right is better)", ylabel=f"attack accuracy, {evaluator} (down is better)"
    )
    ax.set_title(title or "")
    legend_right(ax, labelspacing=0.7)
    return ax


def two_way_points(ax: Axes, rows: pd.DataFrame, look: Style, *, clear: bool = False) -> None:
    """Points of privacy and utility with both error bars: columns natural and attack, each with _low and _high. With
    ``clear`` markers that are not filled let what lies below them be seen."""
    errors = {
        axis: interval_errors(rows[side], rows[f"{side}_low"], rows[f"{side}_high"])
        for axis, side in (("xerr", "natural"), ("yerr", "attack"))
    }
    ax.errorbar(
        rows["natural"],
        rows["attack"],
        **errors,
        linestyle="",
        color=look.colour,
        marker=look.marker,
        markersize=8,
        markerfacecolor="none" if clear and not look.filled else look.face,
        markeredgewidth=1.5,
        elinewidth=1,
        label=look.label,
        zorder=3,
    )


def attack_bars(
    frame: pd.DataFrame,
    *,
    chance: float | None = None,
    y_label: str = "attack accuracy",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Bars by defence, one colour an evaluator, with 95 % intervals: columns defence, evaluator, value, low,
    high."""
    require(frame, "defence", "evaluator", "value", "low", "high")
    ax = axes_or_new(ax, height=4.2)
    looks = set_styles(frame["evaluator"], known=EVALUATORS)
    names = order(frame["defence"])
    position = {name: i for i, name in enumerate(names)}
    thick = 0.82 / len(looks)
    for j, (evaluator, look) in enumerate(looks.items()):
        rows = frame[frame["evaluator"] == evaluator]
        at = rows["defence"].map(position) + (j - (len(looks) - 1) / 2) * thick
        ax.bar(at, rows["value"], width=0.9 * thick, color=look.colour, label=look.label, linewidth=0)
        ax.errorbar(
            at,
            rows["value"],
            yerr=interval_errors(rows["value"], rows["low"], rows["high"]),
            linestyle="",
            color=INK,
            elinewidth=1.1,
            capsize=2,
        )
    if chance is not None:
        ax.axhline(chance, color=FAINT, linestyle=":", label="chance")
    characters = max(8, int(78 / len(names)))
    shown = [fill(look.label.replace(", .", ",\u00a0."), characters) for look in styles(names).values()]
    ax.set_xticks(range(len(names)), shown)
    ax.grid(False, axis="x")
    percent_axis(ax)
    ax.set(ylim=(0, max(1.0, frame["high"].max())), ylabel=y_label, title=title or "")
    legend_right(ax)
    return ax


def budget_curve(
    frame: pd.DataFrame,
    *,
    x: str = "budget",
    x_label: str = "network passes per identity",
    y_label: str = "attack accuracy",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Attack accuracy over the attack's budget on a doubling axis: columns budget, defence, value, low,
    high."""
    ax = interval_curves(frame, x=x, x_label=x_label, y_label=y_label, logarithmic_x=True, title=title, ax=ax)
    ax.set_ylim(bottom=0)
    return ax
