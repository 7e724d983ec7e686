"""Which pixels go: boolean masks drawn per image, without a loop over images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib.erasing.draws import Uniforms, whole
from lib.erasing.law import ErasingLaw
from lib.errors import UserError

REDRAWS = 10


def draw_mask(
    law: ErasingLaw,
    index: Tensor,
    size: int,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Draw one mask for each image.

    Args:
        law: what to erase.
        index: (B,) int64, positions of the images in their data set; only ``per_image`` uses the values, and
            the masks are made on its device.
        size: side S of the images in pixels.
        generator: needed by ``random`` and ``toroidal``.
        seed: needed by ``per_image`` and ``fixed``.

    Returns:
        (B, S, S) bool; true = erased. Rows and columns in image order.

    Raises:
        UserError: when the source of randomness that the law needs is missing.
    """
    draws = Uniforms(law, len(index), index.device, index=index, generator=generator, seed=seed)
    return mask_from(law, draws, size).expand(len(index), -1, -1)


def mask_from(law: ErasingLaw, draws: Uniforms, size: int) -> Tensor:
    """(rows, S, S) bool masks from a source of uniforms; see :func:`draw_mask`."""
    if size < 2:
        raise UserError(f"erasing: expected images of side 2 or more, got {size}; check the image size")
    happens = draws(1)[:, 0] < law.p
    mask = _SHAPES[law.shape](law, draws, size)
    return mask & happens[:, None, None]


def _areas(law: ErasingLaw, draws: Uniforms, size: int, columns: int) -> Tensor:
    """(rows, columns) areas in pixels, uniform within the law's bounds."""
    low, high = law.scale
    return (low + (high - low) * draws(columns)) * size**2


def _first_that_fits(height: Tensor, width: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first of the redraws (rows, REDRAWS) that is smaller than the image both ways; zero extent, that is
    an intact image, where none is (torchvision's rule)."""
    fits = (height < size) & (width < size)
    first = fits.int().argmax(1, keepdim=True)
    return tuple((side.gather(1, first) * fits.any(1, keepdim=True))[:, 0] for side in (height, width))


def _band(start: Tensor, extent: Tensor, size: int) -> Tensor:
    """(..., S) bool: positions start, ..., start + extent - 1, modulo S. In-bounds bands never wrap."""
    line = torch.arange(size, device=start.device)
    return (line - start[..., None]).remainder(size) < extent[..., None]


def _rectangle(law: ErasingLaw, draws: Uniforms, size: int) -> Tensor:
    area = _areas(law, draws, size, REDRAWS)
    low, high = (math.log(bound) for bound in law.ratio)
    ratio = torch.exp(low + (high - low) * draws(REDRAWS)) if high > low else math.exp(low)
    sides = torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long()
    height, width = _first_that_fits(*sides, size)
    corner = draws(2)
    if law.location == "toroidal":
        top, left = whole(corner, size).unbind(1)
    else:
        top, left = whole(corner[:, 0], size - height + 1), whole(corner[:, 1], size - width + 1)
    return _band(top, height, size)[:, :, None] & _band(left, width, size)[:, None, :]


def _disc(law: ErasingLaw, draws: Uniforms, size: int) -> Tensor:
    """Pixels whose middle is within the radius of a centre that is not bound to the pixel grid; for
    ``toroidal`` this makes a position's erasure probability exactly the drawn area."""
    area = _areas(law, draws, size, REDRAWS)
    diameter, _ = _first_that_fits(2 * torch.sqrt(area / math.pi), torch.zeros_like(area), size)
    radius = (diameter / 2)[:, None]
    centre = draws(2)
    centre = centre * size if law.location == "toroidal" else radius + centre * (size - 2 * radius)
    middle = torch.arange(size, device=centre.device) + 0.5
    distance = (middle - centre[..., None]).abs()
    if law.location == "toroidal":
        distance = torch.minimum(distance, size - distance)
    squared = distance[:, 0, :, None].square() + distance[:, 1, None, :].square()
    return squared < radius[..., None].square()


def _squares(law: ErasingLaw, draws: Uniforms, size: int) -> Tensor:
    """``count`` squares of one side, the one whose union comes nearest to the drawn area (they may overlap).

    For fixed uniforms the squares of side s lie inside those of side s + 1, so the union grows with s and the
    side is found by bisection, for all images at once.
    """
    target = _areas(law, draws, size, 1)[:, 0]
    places = draws(2 * law.count).reshape(-1, 2, law.count)

    def union(side: Tensor) -> Tensor:
        extent = side[:, None, None].expand_as(places)
        if law.location == "toroidal":
            start = torch.floor(places * size - extent / 2).long()
        else:
            start = whole(places, size - extent + 1)
        rows, columns = _band(start, extent, size).float().unbind(1)
        return torch.bmm(rows.transpose(1, 2), columns) > 0

    low = torch.zeros_like(target, dtype=torch.int64)
    high = torch.full_like(low, size - 1)
    for _ in range(math.ceil(math.log2(size))):
        middle = (low + high + 1) // 2
        within = union(middle).sum((1, 2)) <= target
        low, high = torch.where(within, middle, low), torch.where(within, high, middle - 1)
    smaller, larger = union(low), union((low + 1).clamp(max=size - 1))
    nearer = target - smaller.sum((1, 2)) <= larger.sum((1, 2)) - target
    # The largest side that is allowed has no larger one to compare with.
    return torch.where((nearer | (low == size - 1))[:, None, None], smaller, larger)


def _pixels(law: ErasingLaw, draws: Uniforms, size: int) -> Tensor:
    count = _areas(law, draws, size, 1).round().long()
    order = draws(size * size).argsort(1)
    taken = torch.arange(size * size, device=order.device) < count
    return torch.zeros_like(taken).scatter(1, order, taken).reshape(-1, size, size)


_SHAPES: dict[str, Callable[[ErasingLaw, Uniforms, int], Tensor]] = {
    "square": _rectangle,
    "rectangle": _rectangle,
    "disc": _disc,
    "squares": _squares,
    "pixels": _pixels,
}
