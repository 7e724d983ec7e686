"""What defences cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lib.plots.style import axes_or_new, interval_errors, label, styles
from lib.plots.training import require


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
