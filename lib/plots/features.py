"""Pictures of the feature space: projections, class separation, distances between sets."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lib.errors import UserError
from lib.plots.style import (
    FAINT,
    INK,
    PAIRS,
    WIDTH,
    axes_or_new,
    grid,
    interval_errors,
    legend_below,
    order,
    percent_axis,
    set_styles,
    styles,
    suptitle,
)
from lib.plots.training import require

Points = Mapping[str, np.ndarray]
MEASURE_NAMES = {
    "ncm_margin": "class-mean margin",
    "ncm_accuracy": "class-mean accuracy",
    "davies_bouldin": "Davies-Bouldin index",
    "fisher_ratio": "Fisher ratio",
    "neighbour_ratio": "own / other neighbour distance",
}


def _scatter(ax: Axes, sets: Points, *, looks: dict, most: int) -> None:
    """Points of each set, at most ``most`` a set, backgrounds first and the few reconstructions on top."""
    rank = {"other_classes": 0, "prior_samples": 1, "private_erased": 2, "reconstructions": 9}
    for name in sorted(sets, key=lambda name: rank.get(name, 3)):
        points, look = np.asarray(sets[name]), looks[name]
        if len(points) > most:
            points = points[np.random.default_rng(0).choice(len(points), most, replace=False)]
        ax.scatter(
            *points.T,
            s=38 if name == "reconstructions" and len(points) < 150 else 18,
            marker=look.marker,
            color=look.colour,
            edgecolor="white",
            linewidth=0.35,
            alpha=0.8,
            zorder=2 + 0.1 * rank.get(name, 3),
        )
    for name, look in looks.items():
        if name in sets:
            ax.plot([], [], linestyle="", marker=look.marker, color=look.colour, label=look.label)


def _equal_limits(axes: Sequence[Axes], clouds: Sequence[np.ndarray]) -> None:
    """The same limits for all axes and one unit the same length on both; panels are at most 1.4 times as wide
    as high."""
    points = np.concatenate(clouds)
    low, high = points.min(0), points.max(0)
    half = np.maximum(0.56 * (high - low), 0.4 * (high - low).max())
    centre = (low + high) / 2
    for ax in axes:
        ax.set_xlim(centre[0] - half[0], centre[0] + half[0])
        ax.set_ylim(centre[1] - half[1], centre[1] + half[1])
        ax.set_box_aspect(half[1] / half[0])


def pca_panels(
    panels: Mapping[str, Points],
    *,
    hulls: Mapping[str, Points] | None = None,
    explained: Mapping[str, Sequence[float]] | None = None,
    columns: int = 2,
    share_axes: bool = True,
    most: int = 300,
    height: float = 3.9,
    title: str | None = None,
    width: float = WIDTH,
) -> Figure:
    """PCA scatter per panel, ``{panel: {set: points (n, 2)}}``, with the outlines ``hulls[panel][set]`` (m,
    2).

    Hulls come size-matched from ``lib.features.hull``. ``explained[panel]`` are the variance shares of the
    axes. ``share_axes`` gives all panels the same limits: right for panels of one projection, wrong across
    networks.
    """
    looks = set_styles(name for sets in panels.values() for name in sets)
    figure, axes = grid(len(panels), columns=columns, width=width, height=height)
    for ax, (panel, sets) in zip(axes, panels.items(), strict=True):
        _scatter(ax, sets, looks=looks, most=most)
        for name, corners in (hulls or {}).get(panel, {}).items():
            ax.fill(*np.asarray(corners).T, facecolor=looks[name].colour, alpha=0.09, zorder=1)
            ax.plot(*np.asarray(corners).T, color=looks[name].colour, linewidth=1.6, zorder=3)
        shares = (explained or {}).get(panel)
        for i, put in enumerate((ax.set_xlabel, ax.set_ylabel)):
            put(f"component {i + 1}" + (f" ({shares[i]:.0%} of the variance)" if shares is not None else ""))
        ax.set_title(panel)
        if not share_axes:
            _equal_limits([ax], [np.asarray(points) for points in sets.values()])
    if share_axes:
        _equal_limits(axes, [np.asarray(points) for sets in panels.values() for points in sets.values()])
    legend_below(figure, axes)
    suptitle(figure, title)
    return figure


def tsne_panels(
    embeddings: Mapping[object, Points],
    *,
    most: int = 500,
    height: float = 4.0,
    title: str | None = None,
    width: float = WIDTH,
) -> Figure:
    """t-SNE, one panel a seed or a named panel: ``{seed: {set: points (n, 2)}}``. No axes: distances mean
    nothing."""
    looks = set_styles(name for sets in embeddings.values() for name in sets)
    figure, axes = grid(len(embeddings), columns=2, width=width, height=height)
    for ax, (panel, sets) in zip(axes, embeddings.items(), strict=True):
        _scatter(ax, sets, looks=looks, most=most)
        _equal_limits([ax], [np.asarray(points) for points in sets.values()])
        ax.set_title(panel if isinstance(panel, str) else f"seed {panel}")
        ax.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
    legend_below(figure, axes)
    suptitle(figure, title)
    return figure


def class_map(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    names: Sequence[str] | Mapping[int, str] | None = None,
    background: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    columns: int = 2,
    axis: str = "discriminant",
    title: str | None = None,
    width: float = WIDTH,
) -> Figure:
    """Classes in a plane, one colour a person: ``{panel: (points (n, 2), identity (n,))}``, at most 10
    people.

    ``background[panel]`` (points, identity) draws the fitted training images faintly behind the held-out
    ones.
    """
    people = sorted({int(person) for _, identity in panels.values() for person in np.unique(identity)})
    if len(people) > 10:
        raise UserError(f"expected at most 10 people to tell apart by colour, got {len(people)}; choose some")
    colours = dict(zip(people, sns.color_palette("tab10", 10), strict=False))
    figure, axes = grid(len(panels), columns=columns, width=width, height=3.9)
    for ax, (panel, (points, identity)) in zip(axes, panels.items(), strict=True):
        for person in people:
            if background is not None and panel in background:
                behind = background[panel][0][background[panel][1] == person]
                ax.scatter(*behind.T, s=12, color=colours[person], alpha=0.2, linewidth=0)
            own = points[identity == person]
            text = str(person) if names is None else names[person]
            ax.scatter(
                *own.T, s=30, color=[colours[person]], edgecolor="white", linewidth=0.5, label=text, zorder=3
            )
            if len(own):
                ax.scatter(*own.mean(0), s=130, marker="X", color=[colours[person]], edgecolor=INK, zorder=4)
        ax.set(title=panel, xlabel=f"{axis} 1", ylabel=f"{axis} 2")
    legend_below(figure, axes, columns=5)
    suptitle(figure, title)
    return figure


def separation_plot(
    frame: pd.DataFrame,
    *,
    better: Mapping[str, str] | None = None,
    columns: int = 3,
    title: str | None = None,
    width: float = WIDTH,
) -> Figure:
    """Class separation, one panel a measure, one line a defence: columns defence, measure, value, low, high.

    ``better[measure]`` is "up" or "down"; known measures have theirs.
    """
    require(frame, "defence", "measure", "value", "low", "high")
    directions = {"davies_bouldin": "down", "neighbour_ratio": "down"} | dict(better or {})
    names = order(frame["defence"])
    looks = styles(names)
    measures = list(dict.fromkeys(frame["measure"]))
    figure, axes = grid(
        len(measures), columns=columns, width=width, height=0.95 + 0.28 * len(names), sharey=True
    )
    for ax, measure in zip(axes, measures, strict=True):
        for i, name in enumerate(names):
            rows = frame[(frame["defence"] == name) & (frame["measure"] == measure)]
            look = looks[name]
            ax.errorbar(
                rows["value"],
                i + np.linspace(-0.12, 0.12, len(rows)) * (len(rows) > 1),
                xerr=interval_errors(rows["value"], rows["low"], rows["high"]),
                linestyle="",
                marker=look.marker,
                markersize=7,
                color=look.colour,
                markerfacecolor=look.face,
                elinewidth=1.3,
                capsize=2.5,
            )
        arrow = "left is better" if directions.get(measure, "up") == "down" else "right is better"
        ax.set_title(MEASURE_NAMES.get(measure, measure.replace("_", " ")), fontsize=10.5)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(arrow, fontsize=9, color=FAINT)
        ax.set_yticks(range(len(names)), [looks[name].label for name in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.margins(x=0.15)
    suptitle(figure, title)
    return figure


def distance_distributions(
    frame: pd.DataFrame,
    *,
    kind: str = "violin",
    x_label: str = "squared distance to the nearest image\n(1 = mean between photos of one person)",
    logarithmic: bool = False,
    title: str | None = None,
    width: float = WIDTH,
) -> Figure:
    """Distribution of a distance over identities or images: columns defence, pair, value; one panel a
    defence.

    ``kind`` "violin" shows every value's density with median and quartiles, "ecdf" the cumulative share.
    ``pair`` names come from ``lib.features.distance_table``.
    """
    require(frame, "defence", "pair", "value")
    if kind not in ("violin", "ecdf"):
        raise UserError(f"expected kind violin or ecdf, got {kind!r}; choose one")
    names = order(frame["defence"])
    looks = set_styles(frame["pair"], known=PAIRS)
    height = 0.9 + 0.42 * len(looks) if kind == "violin" else 3.8
    figure, axes = grid(len(names), columns=2, width=width, height=height, sharex=True, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        rows = frame[frame["defence"] == name].replace([np.inf, -np.inf], np.nan).dropna(subset=["value"])
        for i, (pair, look) in enumerate(looks.items()):
            values = rows.loc[rows["pair"] == pair, "value"].to_numpy(float)
            if not len(values):
                continue
            if kind == "ecdf":
                sns.ecdfplot(x=values, ax=ax, color=look.colour, label=look.label, linewidth=2)
                continue
            shown = np.log10(values) if logarithmic else values
            if np.ptp(shown) > 0:
                # densities are estimated on the shown scale, so a logarithmic axis has no fake tails
                body = ax.violinplot(
                    shown, positions=[i], orientation="horizontal", widths=0.8, showextrema=False
                )
                plt.setp(body["bodies"], facecolor=look.colour, alpha=0.45, edgecolor=look.colour)
            low, middle, high = np.quantile(shown, (0.25, 0.5, 0.75))
            ax.plot([low, high], [i, i], color=INK, linewidth=3.2, solid_capstyle="round")
            ax.plot([middle], [i], "o", color="white", markeredgecolor=INK, markersize=6)
        ax.set_title(styles([name])[name].label)
        ax.set_xlabel(x_label)
        if kind == "violin":
            ax.set_yticks(range(len(looks)), [look.label for look in looks.values()])
            ax.set_ylim(len(looks) - 0.4, -0.6)
            ax.grid(False, axis="y")
            if logarithmic:
                low, high = (10**edge for edge in ax.dataLim.intervalx)
                ticks = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
                ticks = [tick for tick in ticks if low / 1.2 <= tick <= high * 1.2]
                ax.set_xticks(np.log10(ticks), [f"{tick:g}" for tick in ticks])
        else:
            ax.set_ylabel("share of identities")
            percent_axis(ax, bounded=True)
            if logarithmic:
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                ax.xaxis.set_minor_locator(NullLocator())
    if kind == "ecdf":
        legend_below(figure, axes, columns=3)
    suptitle(figure, title)
    return figure


def difference_plot(
    frame: pd.DataFrame,
    *,
    by: str = "label",
    x_label: str,
    left: str | None = None,
    right: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Paired differences with 95 % intervals against zero, a row each: columns ``by``, value, low, high.

    Filled where the interval excludes 0 (or where a column ``settled`` says so), hollow where nothing is
    established. ``left`` and ``right`` say what the sides mean. With ``by="defence"`` rows are ordered and
    coloured as everywhere.
    """
    require(frame, by, "value", "low", "high")
    names = order(frame[by]) if by == "defence" else list(dict.fromkeys(frame[by]))
    looks = styles(names) if by == "defence" else {}
    ax = axes_or_new(ax, width=7.5, height=1.2 + 0.36 * len(names))
    ax.axvline(0, color=INK, linewidth=1)
    for i, name in enumerate(names):
        rows = frame[frame[by] == name]
        colour = looks[name].colour if name in looks else "#0072b2"
        for j, row in enumerate(rows.itertuples()):
            settled = getattr(row, "settled", row.low > 0 or row.high < 0)
            shift = 0 if len(rows) == 1 else np.linspace(-0.15, 0.15, len(rows))[j]
            ax.errorbar(
                row.value,
                i + shift,
                xerr=interval_errors([row.value], [row.low], [row.high]),
                marker="o",
                color=colour,
                markerfacecolor=colour if settled else "white",
                markersize=7,
                elinewidth=1.5,
                capsize=3,
                markeredgewidth=1.5,
            )
    ax.set_yticks(range(len(names)), [looks[name].label if name in looks else name for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ends = [abs(edge) for edge in (frame["low"].min(), frame["high"].max()) if np.isfinite(edge)]
    reach = 1.1 * max(ends, default=1.0)
    ax.set_xlim(-reach, reach)
    ax.grid(False, axis="y")
    ax.set_xlabel(x_label)
    for x, text, side in ((0.0, left and f"← {left}", "left"), (1.0, right and f"{right} →", "right")):
        if text:
            ax.text(x, 1.01, text, transform=ax.transAxes, ha=side, va="bottom", fontsize=9, color=FAINT)
    if title:
        ax.set_title(title, pad=20 if left or right else 8)
    return ax
