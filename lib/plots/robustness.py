"""Inversion against evasion."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lib.plots.style import axes_or_new, legend_right, percent_axis, styles
from lib.plots.tradeoff import two_way_points
from lib.plots.training import require


def privacy_against_robustness(
    frame: pd.DataFrame, *, x_label: str, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """A point a model with intervals both ways: columns defence, and robust and attack, each with ``_low`` and
    ``_high``."""
    sides = ("robust", "attack")
    require(frame, "defence", *(f"{side}{end}" for side in sides for end in ("", "_low", "_high")))
    ax = axes_or_new(ax, width=7.5, height=4.4)
    for name, look in styles(frame["defence"].astype(str)).items():
        two_way_points(ax, frame[frame["defence"] == name].rename(columns=_as_natural), look)
    percent_axis(ax, "xy")
    ax.set(
        xlabel=x_label,
        ylabel="attack accuracy (down is better)",
        title=title or "Inversion and evasion of the same models",
    )
    legend_right(ax)
    return ax


def _as_natural(column: str) -> str:
    return column.replace("robust", "natural")
