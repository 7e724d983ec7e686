"""Sheets of faces: one mosaic a figure, so that a hundred faces cost one image artist and stay crisp."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from lib.errors import UserError
from lib.plots.style import DPI, FAINT, WIDTH, grid, new_figure, suptitle

RIGHT, WRONG = "#009e73", "#d55e00"
"""Frame colours of reconstructions that a judge does and does not take for the person."""
LARGEST, BOLD = 10, 0.65
"""Points of a heading at most, and how wide a bold letter is as a share of its points."""


def as_array(images) -> np.ndarray:
    """Tensors or arrays (n, 3, S, S), or (n, S, S) grey, in [0, 1] to float32 (n, S, S, 3)."""
    if hasattr(images, "detach"):
        images = images.detach().cpu().float().numpy()
    images = np.asarray(images, dtype=np.float32)
    if images.ndim == 3:
        images = images[:, None].repeat(3, axis=1)
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"expected images (n, 3, S, S), got {images.shape}; add the batch axis or move the channels"
        )
    if images.size and not -0.01 <= images.min() <= images.max() <= 1.01:
        raise UserError(
            f"expected pixels in [0, 1], got {images.min():.3g} to {images.max():.3g}; divide uint8 by 255"
        )
    return images.transpose(0, 2, 3, 1).clip(0, 1)


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    if image.shape[0] == side:
        return image
    method = Image.Resampling.NEAREST if image.shape[0] <= 32 else Image.Resampling.LANCZOS
    picture = Image.fromarray((image * 255).round().astype(np.uint8))
    return np.asarray(picture.resize((side, side), method), dtype=np.float32) / 255


def _draw(
    ax: Axes,
    rows: Sequence[np.ndarray],
    *,
    breaks: Sequence[int],
    tile: int,
    marks: Sequence | None,
    captions: Sequence | None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw rows of tiles; wider gaps before the columns in ``breaks``. Returns column and row centres and
    width."""
    columns = max(len(row) for row in rows)
    gap, wide = max(3, tile // 24), tile // 4
    text = 15 if captions is not None else 0
    left = (
        np.arange(columns) * (tile + gap)
        + np.array([sum(b <= c for b in breaks) for c in range(columns)]) * wide
    )
    top = np.arange(len(rows)) * (tile + gap + text)
    canvas = np.ones((top[-1] + tile + text, left[-1] + tile, 3), dtype=np.float32)
    for y, row in zip(top, rows, strict=True):
        for x, image in zip(left, row, strict=False):
            canvas[y : y + tile, x : x + tile] = _resized(image, tile)
    ax.imshow(canvas, interpolation="antialiased", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    for i, row in enumerate(rows):
        for j in range(len(row)):
            mark = None if marks is None or marks[i] is None else marks[i][j]
            if mark is not None:
                frame = Rectangle(
                    (left[j] + 1, top[i] + 1),
                    tile - 2,
                    tile - 2,
                    fill=False,
                    linewidth=2.6,
                    edgecolor=RIGHT if mark else WRONG,
                )
                ax.add_patch(frame)
            if captions is not None and captions[i] is not None and captions[i][j]:
                ax.text(
                    left[j] + tile / 2, top[i] + tile + 2, captions[i][j], ha="center", va="top", fontsize=8
                )
    ax.set(xlim=(-2, canvas.shape[1] + 2), ylim=(canvas.shape[0] + 2, -2))
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    return left + tile / 2, top + tile / 2, float(canvas.shape[1])


def _canvas(
    rows: int, columns: int, *, width: float, labels: float, header: float, text: bool
) -> tuple[Figure, int]:
    """A figure whose tiles fill the width (at most 110 px each) beside row labels of ``labels`` inches."""
    tile = int(min(110, (width - labels) * DPI / max(columns, 1) * 0.95))
    height = rows * (tile * 1.06 + (15 if text else 0)) / DPI + header
    return new_figure(min(width, columns * tile * 1.08 / DPI + labels + 0.3), height), tile


def contact_sheet(
    rows: Mapping[str, object],
    *,
    column_labels: Sequence[str] | None = None,
    marks: Mapping[str, Sequence[bool | None]] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    title: str | None = None,
    width: float = WIDTH,
    ax: Axes | None = None,
) -> Axes:
    """Rows of images under their labels: ``{label: images (n, 3, S, S) in [0, 1]}``; rows may differ in n.

    ``marks[label][i]`` frames an image green (True) or orange (False); ``captions[label][i]`` is printed
    below it.
    """
    images = [as_array(row) for row in rows.values()]
    if not images or not max(map(len, images)):
        raise UserError("expected at least one image, got none; pass rows with images")
    columns = max(len(row) for row in images)
    if ax is None:
        longest = max(len(line) for name in rows for line in name.split("\n"))
        header = 0.25 + (0.3 if title else 0) + (0.25 if column_labels else 0)
        figure, tile = _canvas(
            len(images),
            columns,
            width=width,
            labels=0.085 * longest + 0.15,
            header=header,
            text=captions is not None,
        )
        ax = figure.subplots()
    else:
        tile = 96
    x, y, _ = _draw(
        ax,
        images,
        breaks=(),
        tile=tile,
        marks=None if marks is None else [marks.get(name) for name in rows],
        captions=None if captions is None else [captions.get(name) for name in rows],
    )
    ax.set_yticks(y, list(rows))
    ax.xaxis.tick_top()
    ax.set_xticks(x if column_labels else [], list(column_labels or []))
    if title:
        ax.set_title(title)
    return ax


def side_by_side(
    private: Sequence,
    reconstructed: Sequence | Mapping[str, Sequence],
    people: Sequence[str],
    *,
    marks: Sequence[Sequence[bool]] | Mapping[str, Sequence[Sequence[bool]]] | None = None,
    heading: str = "private photos",
    title: str | None = None,
    width: float = WIDTH,
) -> Axes:
    """People in rows: their private photos left, reconstructions right, of one model or ``{model label:
    ...}``.

    ``private[i]`` and ``reconstructed[i]`` (or ``reconstructed[model][i]``) are the images (n, 3, S, S) of
    person i; ``marks`` has the shape of ``reconstructed``: green where a judge takes the image for the
    person, orange where not.
    """
    if not isinstance(reconstructed, Mapping):
        reconstructed = {"reconstructed by the attack": reconstructed}
        marks = None if marks is None else {"reconstructed by the attack": marks}
    groups = [[as_array(p) for p in private]] + [[as_array(p) for p in g] for g in reconstructed.values()]
    if any(len(group) != len(people) for group in groups):
        raise UserError(
            f"expected {len(people)} people in every group, got {[len(g) for g in groups]}; align them"
        )
    widths = [max(len(person) for person in group) for group in groups]
    side = groups[0][0].shape[1]
    starts = np.cumsum([0, *widths])
    rows, frames = [], []
    for i in range(len(people)):
        row = np.ones((starts[-1], side, side, 3), dtype=np.float32)
        frame: list[bool | None] = [None] * starts[-1]
        for start, group, name in zip(starts, groups, [None, *reconstructed], strict=False):
            row[start : start + len(group[i])] = [_resized(image, side) for image in group[i]]
            if marks is not None and name in marks:
                frame[start : start + len(group[i])] = list(marks[name][i])
        rows.append(row)
        frames.append(frame)
    longest = max(len(name) for name in people)
    header = 0.55 + (0.3 if title else 0)
    columns = int(starts[-1])
    figure, tile = _canvas(
        len(rows),
        columns + len(widths) // 4,
        width=width,
        labels=0.085 * longest + 0.15,
        header=header,
        text=False,
    )
    ax = figure.subplots()
    x, y, _ = _draw(ax, rows, breaks=starts[1:-1].tolist(), tile=tile, marks=frames, captions=None)
    ax.set_yticks(y, list(people))
    ax.xaxis.tick_top()
    centres = [x[a:b].mean() for a, b in zip(starts[:-1], starts[1:], strict=True)]
    headings = [heading, *reconstructed]
    room = min(
        count * tile / DPI * 72 / max(map(len, name.split("\n")))
        for count, name in zip(widths, headings, strict=True)
    )
    # else headings run into each other
    ax.set_xticks(centres, headings, fontweight="bold", fontsize=min(LARGEST, room / BOLD))
    if title:
        ax.set_title(title)
    if marks is not None:
        for colour, text in ((RIGHT, "taken for the person"), (WRONG, "not taken for the person")):
            ax.plot(
                [],
                [],
                marker="s",
                linestyle="",
                markersize=9,
                markerfacecolor="white",
                markeredgecolor=colour,
                markeredgewidth=2.2,
                label=text,
            )
        figure.legend(loc="outside lower center", ncols=2)
    return ax


def sample_sheet(
    images, *, columns: int = 10, title: str | None = None, width: float = WIDTH, ax: Axes | None = None
) -> Axes:
    """Images (n, 3, S, S) in rows of ``columns``, without labels."""
    images = as_array(images)
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    if ax is None:
        figure, tile = _canvas(
            len(rows),
            min(columns, len(images)),
            width=width,
            labels=0.0,
            header=0.45 if title else 0.1,
            text=False,
        )
        ax = figure.subplots()
    else:
        tile = 96
    _draw(ax, rows, breaks=(), tile=tile, marks=None, captions=None)
    ax.set(xticks=[], yticks=[])
    if title:
        ax.set_title(title)
    return ax


def people_sheet(
    photos: Sequence,
    people: Sequence[str],
    *,
    columns: int = 4,
    title: str | None = None,
    width: float = WIDTH,
) -> Axes:
    """A few photos of each person side by side, ``columns`` people a row, with the name below.

    ``photos[i]`` are the images (n, 3, S, S) of person i; everybody needs equally many.
    """
    sheets = [as_array(images) for images in photos]
    each = {len(images) for images in sheets}
    if len(each) != 1 or len(sheets) != len(people):
        raise UserError(
            f"expected equally many images of {len(people)} people, got {[len(x) for x in sheets]}; take as many"
        )
    (count,) = each
    columns = min(columns, len(people))
    rows = [np.concatenate(sheets[i : i + columns]) for i in range(0, len(sheets), columns)]
    figure, tile = _canvas(
        len(rows), columns * count + columns // 4, width=width, labels=0.0, header=0.45, text=True
    )
    ax = figure.subplots()
    breaks = [count * i for i in range(1, columns)]
    blank = [[""] * len(row) for row in rows]
    x, y, _ = _draw(ax, rows, breaks=breaks, tile=tile, marks=None, captions=blank)
    for i, name in enumerate(people):
        first = i % columns * count
        centre = x[first : first + count].mean()
        ax.text(centre, y[i // columns] + tile / 2 + 2, name, ha="center", va="top", fontsize=9)
    ax.set(xticks=[], yticks=[])
    if title:
        ax.set_title(title)
    return ax


def mean_faces(
    sets: Mapping[str, object],
    *,
    counts: Sequence[int] | None = None,
    title: str | None = None,
    width: float = WIDTH,
) -> Figure:
    """Mean image of each set ``{label: images (n, 3, S, S)}`` side by side; with two sets also their
    difference.

    Equal framing shows as a flat difference map; a shifted or scaled crop as dark and bright edges. A set may
    be given as its mean (1, 3, S, S); ``counts`` then says how many images each mean is of.
    """
    means = {name: as_array(images).mean(0) for name, images in sets.items()}
    counts = counts or [len(images) for images in sets.values()]
    panels = len(means) + (len(means) == 2)
    figure, axes = grid(panels, columns=panels, width=min(width, 2.5 * panels), height=2.75)
    for ax, (name, mean), count in zip(axes, means.items(), counts, strict=False):
        ax.imshow(mean, interpolation="lanczos")
        ax.set_title(f"{name}\n", fontsize=10.5)
        ax.text(0, 1.03, f"mean of {count:,} images", transform=ax.transAxes, fontsize=9, color=FAINT)
    if len(means) == 2:
        first, second = (mean.mean(2) for mean in means.values())
        difference = second - first
        limit = max(0.1, float(np.abs(difference).max()))
        picture = axes[-1].imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        names = list(means)
        axes[-1].set_title(f"{names[1]} - {names[0]}\n", fontsize=10.5)
        axes[-1].text(
            0, 1.03, "difference in brightness", transform=axes[-1].transAxes, fontsize=9, color=FAINT
        )
        figure.colorbar(picture, ax=axes[-1], fraction=0.046, pad=0.03)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    if title:
        suptitle(figure, title)
    return figure
