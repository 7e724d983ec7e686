"""What random erasing does to images, and how often it covers each pixel."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.errors import UserError
from lib.plots.faces import contact_sheet
from lib.plots.style import FAINT, WIDTH, axes_or_new, grid, percent_axis, styles, suptitle


def erasing_gallery(
    variants: Mapping[str, object],
    *,
    original=None,
    title: str | None = None,
    width: float = WIDTH,
) -> Axes:
    """One row of erased images (n, 3, S, S) per variant ``{label: images}``, under the untouched ``original``
    row."""
    rows = {"untouched": original} if original is not None else {}
    return contact_sheet({**rows, **variants}, title=title, width=width)


def _array(values) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)


def exposure_maps(
    maps: Mapping[str, object], *, columns: int = 4, title: str | None = None, width: float = WIDTH
) -> Figure:
    """Erasure probability per pixel, ``{label: (S, S) in [0, 1]}``, on one colour scale with centre and
    corner values."""
    figure, axes = grid(
        len(maps), columns=columns, width=width, height=width / min(columns, len(maps), 4) + 0.35
    )
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        values = _array(values)
        if values.ndim != 2 or values.min() < 0 or values.max() > 1:
            raise UserError(
                f"expected a map (S, S) in [0, 1] for {name}, got {values.shape}; average the masks"
            )
        side = values.shape[0]
        picture = ax.imshow(values, cmap="mako", vmin=0, vmax=1, interpolation="nearest")
        for place, at in {"centre": (side // 2, side // 2), "corner": (0, 0)}.items():
            share = values[at]
            offset = (0, 0) if place == "centre" else (side * 0.03, side * 0.03)
            ax.text(
                at[1] + offset[1],
                at[0] + offset[0],
                f"{share:.0%}",
                color="white" if share < 0.6 else "black",
                fontsize=9.5,
                ha="center" if place == "centre" else "left",
                va="center" if place == "centre" else "top",
            )
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=10)
        ax.set_xlabel(f"mean {values.mean():.0%}", fontsize=9, color=FAINT)
        ax.grid(False)
    bar = figure.colorbar(picture, ax=list(axes), fraction=0.025, pad=0.015, aspect=22)
    bar.set_label("share of draws\nthat erase the pixel", fontsize=9.5)
    percent_axis(bar.ax)
    suptitle(figure, title)
    return figure


def by_exposure(exposure, bins: int) -> list[np.ndarray]:
    """Flat indices of the pixels of ``exposure`` (S, S) in ``bins`` groups of equal count, from seldom erased to
    often."""
    return np.array_split(np.argsort(_array(exposure).ravel(), kind="stable"), bins)


def exposure_against_error(
    exposure,
    errors: Mapping[str, object],
    *,
    bins: int = 10,
    x_label: str = "share of training draws that erase the pixel",
    y_label: str = "mean reconstruction error",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Does erasing a pixel more often make its reconstruction worse? Errors ``{label: (S, S)}`` by exposure
    (S, S).

    Pixels are grouped into ``bins`` of equal count; the band spans the middle half of the pixels of a bin.
    """
    ax = axes_or_new(ax, width=6.5, height=3.8)
    groups = by_exposure(exposure, bins)
    exposure = _array(exposure).ravel()
    centre = np.array([exposure[group].mean() for group in groups])
    looks = styles(errors)
    for name, look in looks.items():
        values = _array(errors[name]).ravel()
        quartiles = np.array([np.quantile(values[group], (0.25, 0.75)) for group in groups])
        ax.plot(
            centre,
            [values[group].mean() for group in groups],
            marker=look.marker,
            color=look.colour,
            label=look.label,
            markersize=5,
        )
        ax.fill_between(centre, *quartiles.T, color=look.colour, alpha=0.15, linewidth=0)
    percent_axis(ax, "x")
    note = f"line: mean of a group of pixels, {bins} of equal count; band: their middle half"
    ax.set(xlabel=f"{x_label}\n({note})", ylabel=y_label, title=title or "")
    if len(errors) > 1:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax
