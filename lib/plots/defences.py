"""What defences cost, and what their strengths buy."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lib.plots.style import (
    Style,
    axes_or_new,
    family_styles,
    interval_errors,
    label,
    legend_right,
    percent_axis,
    styles,
)
from lib.plots.tradeoff import two_way_points
from lib.plots.training import require

PARTS = {
    "NoDef": styles(["none"])["none"],
    "first": Style("first part", "#56b4e9", "s"),
    "second": Style("second part", "#e69f00", "D"),
    "pair": Style("pair", "#882255", "o"),
}
"""Of a pair of defences."""


def ratios(frame: pd.DataFrame, *, x_label: str, title: str | None = None, ax: Axes | None = None) -> Axes:
    """A row a defence, its ratio to NoDef with a range: columns defence, value, low, high."""
    require(frame, "defence", "value", "low", "high")
    ax = axes_or_new(ax, width=7.5, height=0.9 + 0.3 * len(frame))
    looks = styles(frame["defence"].astype(str))
    for place, row in enumerate(frame.itertuples()):
        look = looks[str(row.defence)]
        one = pd.Series([row.value]), pd.Series([row.low]), pd.Series([row.high])
        ax.errorbar(
            one[0],
            [place],
            xerr=interval_errors(*one),
            linestyle="",
            color=look.colour,
            marker=look.marker,
            markerfacecolor=look.face,
            markersize=6.5,
            elinewidth=1.2,
            capsize=2.5,
        )
    ax.axvline(1, color="0.6", linewidth=1, zorder=0)
    ax.set_yticks(range(len(frame)), [label(str(name)) for name in frame["defence"]])
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set(xlabel=x_label, title=title or "")
    ax.set_xlim(left=0)
    return ax


def strengths(frame: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Families of defences in the plane of privacy and utility, down and right is better: columns family (``none``:
    the point that all lines begin at), defence, strength, chosen (ringed), front (joined by steps), and natural and
    attack, each with ``_low`` and ``_high``."""
    sides = ("natural", "attack")
    require(
        frame,
        *("family", "defence", "strength", "chosen", "front"),
        *(f"{s}{end}" for s in sides for end in ("", "_low", "_high")),
    )
    ax = axes_or_new(ax, width=8.5, height=5.6)
    start = frame[frame["family"] == "none"]
    best = frame[frame["front"]].sort_values("natural")
    ax.step(best["natural"], best["attack"], where="pre", color="0.8", linewidth=3, zorder=0)
    two_way_points(ax, start, styles(["none"])["none"])
    swept = frame[frame["family"] != "none"]
    looks = family_styles(swept.groupby("family", sort=False)["defence"].first().to_dict())
    for name, look in looks.items():
        rows = frame[frame["family"] == name].sort_values("strength")
        line = pd.concat([start, rows])
        ax.plot(line["natural"], line["attack"], color=look.colour, linewidth=1.2, alpha=0.7, zorder=1)
        two_way_points(ax, rows, look, clear=True)
        ringed = rows[rows["chosen"]]
        ax.scatter(
            ringed["natural"],
            ringed["attack"],
            s=190,
            facecolor="none",
            edgecolor=look.colour,
            linewidth=1.4,
            zorder=4,
        )
    percent_axis(ax, "xy")
    ax.set(
        xlabel="natural accuracy (right is better)",
        ylabel="AttAcc, main evaluator (down is better)",
        title=title or "",
    )
    legend_right(ax)
    return ax
