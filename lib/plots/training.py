"""Curves over training steps: what a run did, and what came out at each length of training."""

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from lib.errors import UserError
from lib.plots.style import (
    WIDTH,
    Style,
    axes_or_new,
    blend,
    grid,
    interval_errors,
    legend_below,
    legend_right,
    percent_axis,
    styles,
    suptitle,
)

FEW = 3
"""Rows up to which a line also has markers."""


def require(frame: pd.DataFrame, *columns: str) -> None:
    """Raise a :class:`UserError` where a table lacks a column or has no rows."""
    missing = [column for column in columns if column not in frame]
    if missing or not len(frame):
        problem = f"lacks {', '.join(missing)}" if missing else "is empty"
        raise UserError(
            f"expected a table with rows and {', '.join(columns)}, got one that {problem}; load it again"
        )


def learning_curves(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str],
    x: str = "step",
    by: str = "defence",
    percent: Sequence[str] = (),
    logarithmic: Sequence[str] = (),
    labels: dict[str, str] | None = None,
    smooth: int = 1,
    title: str | None = None,
    width: float = WIDTH,
) -> Figure:
    """One panel a metric, one line a value of ``by``, over ``x``; ``smooth`` averages that many rows (raw
    stays faint).

    ``frame`` is wide: columns x, by and the metrics. Shares named in ``percent`` are shown as percent.
    """
    require(frame, x, by, *metrics)
    figure, axes = grid(len(metrics), columns=min(3, len(metrics)), width=width, height=3.2)
    looks = styles(frame[by].astype(str))
    for ax, metric in zip(axes, metrics, strict=True):
        for name, look in looks.items():
            rows = frame[frame[by].astype(str) == name].dropna(subset=[metric]).sort_values(x)
            if smooth > 1:
                ax.plot(rows[x], rows[metric], color=blend(look.colour, 0.25), linewidth=0.9, zorder=1)
            line = rows[metric].rolling(smooth, min_periods=1, center=True).mean()
            ax.plot(
                rows[x],
                line,
                color=look.colour,
                label=look.label,
                linestyle="-" if look.filled else "--",
                marker="o" if len(rows) <= FEW else None,  # a line through one point is invisible
                markersize=5,
            )
        text = (labels or {}).get(metric, metric.replace("_", " "))
        ax.set(xlabel={"step": "training step"}.get(x, x.replace("_", " ")), ylabel=text)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        if metric in percent:
            percent_axis(ax)
        if metric in logarithmic:
            ax.set_yscale("log")
    if len(looks) > 1:
        legend_below(figure, axes)
    suptitle(figure, title)
    return figure


def beside(artists: Iterable[Artist], place: float, ax: Axes) -> Transform:
    """Move drawn artists ``place`` steps of a few points sideways, so that the bars of several series at one x do
    not hide each other; returns the shift. To be called after drawing, because matplotlib does not fit its limits
    to data under another transform."""
    shift = ScaledTranslation(place * 3.5 / 72, 0, ax.figure.dpi_scale_trans)
    for artist in artists:
        artist.set_transform(ax.transData + shift)
    return shift


def interval_curves(
    frame: pd.DataFrame,
    *,
    x: str,
    by: str = "defence",
    x_label: str | None = None,
    y_label: str,
    percent: bool = True,
    logarithmic_x: bool = False,
    evenly: bool = False,
    dodge: bool = True,
    legend: bool = True,
    headline: dict[str, float] | None = None,
    looks: dict[str, Style] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Lines with 95 % intervals: columns ``x``, ``by``, value, low, high, one row a point.

    ``evenly`` puts the values of ``x`` side by side, however far apart they are. ``dodge`` moves series aside a little,
    so that they do not hide each other; without it every point is where it was measured.

    ``headline[name]`` rings the point of that series that was chosen (the headline training). Where several
    rows share a point (seeds) they are all drawn and the line joins their means. ``looks`` are
    the styles of series that are no defences (:func:`lib.plots.set_styles`).
    """
    require(frame, x, by, "value", "low", "high")
    ax = axes_or_new(ax, width=7.5, height=4.0)
    looks = looks or styles(frame[by].astype(str))
    ticks = sorted(frame[x].unique())
    where = {value: float(i) if evenly else value for i, value in enumerate(ticks)}
    frame = frame.assign(**{x: frame[x].map(where)})
    for i, (name, look) in enumerate(looks.items()):
        rows = frame[frame[by].astype(str) == name].sort_values(x)
        mean = rows.groupby(x)["value"].mean()
        (line,) = ax.plot(
            mean.index, mean, color=look.colour, linestyle="-" if look.filled else "--", zorder=2
        )
        bars = ax.errorbar(
            rows[x],
            rows["value"],
            yerr=interval_errors(rows["value"], rows["low"], rows["high"]),
            linestyle="",
            color=look.colour,
            marker=look.marker,
            markerfacecolor=look.face,
            markersize=6.5,
            elinewidth=1.1,
            capsize=2.5,
            label=look.label,
            zorder=3,
        )
        aside = i - (len(looks) - 1) / 2 if dodge else 0.0
        shift = beside((line, *bars.get_children()), aside, ax)
        if headline and name in headline:
            chosen = where[headline[name]]
            ring = ax.scatter(
                [chosen],
                [mean.loc[chosen]],
                s=190,
                facecolor="none",
                edgecolor=look.colour,
                linewidth=1.4,
            )
            ring.set_offset_transform(ax.transData + shift)
    if logarithmic_x:
        ax.set_xscale("log", base=2)
    spell = EngFormatter(sep="")
    if evenly or len(ticks) <= 8:
        ax.set_xticks(list(where.values()))
        ax.minorticks_off()
    if evenly:
        ax.set_xticklabels([spell(value) for value in ticks])
    else:
        ax.xaxis.set_major_formatter(spell)
    if percent:
        percent_axis(ax)
    ax.set(xlabel=x_label or x.replace("_", " "), ylabel=y_label, title=title or "")
    if legend and len(looks) > 1:
        legend_right(ax)
    return ax
