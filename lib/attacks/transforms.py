"""Random resized crop and mirror, differentiable, another draw for every sample, as two matrix products.

A resized crop of an image is ``rows @ image @ columns^T`` with two bilinear interpolation matrices. This is
one batched product per axis, and unlike ``grid_sample`` its backward pass is deterministic on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lib.errors import UserError

ATTEMPTS = 10
FIELDS = 5  # top, left, height, width as fractions of the side; mirrored (0 or 1)


def draw_crops(
    *shape: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (1.0, 1.0),
    mirror: float = 0.0,
    generator: torch.Generator,
    whole_pixels: int | None = None,
) -> Tensor:
    """Draw crops with torchvision's ``RandomResizedCrop`` law: uniform area, log-uniform aspect ratio,
    uniform position; after ten attempts that do not fit, the whole image.

    Args:
        scale: lowest and highest area as a fraction of the image.
        ratio: lowest and highest width / height.
        mirror: probability of a horizontal flip.
        whole_pixels: side of the image when boxes are to be rounded to pixels, as torchvision does;
            by default they are continuous, which matters at 64 pixels.

    Returns:
        (*shape, 5) fp32 on the generator's device: top, left, height, width, mirrored.

    Raises:
        UserError: impossible ranges.
    """
    check_crop(scale, ratio)
    draws = torch.rand(*shape, 2 * ATTEMPTS + 3, generator=generator, device=generator.device)
    area = scale[0] + (scale[1] - scale[0]) * draws[..., :ATTEMPTS]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (log_low + (log_high - log_low) * draws[..., ATTEMPTS : 2 * ATTEMPTS]).exp()
    height, width = (area / aspect).sqrt(), (area * aspect).sqrt()
    if whole_pixels:
        height, width = (side.mul(whole_pixels).round() / whole_pixels for side in (height, width))
    fits = (height <= 1) & (width <= 1) & (height > 0) & (width > 0)
    first = fits.int().argmax(-1, keepdim=True)
    any_fits = fits.any(-1)
    height = torch.where(any_fits, height.gather(-1, first)[..., 0], 1.0)
    width = torch.where(any_fits, width.gather(-1, first)[..., 0], 1.0)
    top, left = draws[..., -3] * (1 - height), draws[..., -2] * (1 - width)
    if whole_pixels:
        # every whole offset 0..size - side equally likely
        top, left = (
            (at * whole_pixels + share).floor() / whole_pixels
            for at, share in ((top, draws[..., -3]), (left, draws[..., -2]))
        )
    mirrored = (draws[..., -1] < mirror).float()
    return torch.stack([top, left, height, width, mirrored], -1)


def apply_crops(images: Tensor, crops: Tensor) -> Tensor:
    """Cut each crop out of its image and resize it bilinearly to the full size.

    For whole-pixel boxes this equals torchvision's ``resized_crop`` (bilinear; antialiasing changes
    nothing, since a crop is never larger than the image).

    Args:
        images: (B, C, S, S).
        crops: (B, 5), or (1, 5) for the same crop everywhere (:func:`draw_crops`).

    Returns:
        (B, C, S, S), differentiable in ``images``.
    """
    size = images.shape[-1]
    crops = crops.to(images.device)
    rows = _interpolation(crops[:, 0], crops[:, 2], size)
    columns = _interpolation(crops[:, 1], crops[:, 3], size)
    columns = torch.where(crops[:, 4, None, None] > 0.5, columns.flip(1), columns)
    rows, columns = rows.to(images.dtype), columns.to(images.dtype)
    return rows[:, None] @ (images @ columns[:, None].transpose(-1, -2))


def check_crop(scale: tuple[float, float], ratio: tuple[float, float] = (1.0, 1.0)) -> None:
    """Raises: UserError for a range no crop can have."""
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"crop scale: expected 0 < low <= high <= 1, got {tuple(scale)}; use e.g. (0.9, 1.0)")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"crop ratio: expected 0 < low <= high, got {tuple(ratio)}; use e.g. (0.8, 1.2)")


def _interpolation(start: Tensor, extent: Tensor, size: int) -> Tensor:
    """(B, S, S): row i holds the two bilinear weights of output pixel i. Positions are clamped to the
    centres of the crop's edge pixels, as when the crop is cut out first and resized then."""
    index = torch.arange(size, device=start.device, dtype=torch.float32)
    start, extent = start[:, None] * size, extent[:, None] * size
    inside = (index + 0.5) / size * extent - 0.5
    position = start + torch.minimum(inside.clamp_min(0.0), extent - 1.0)
    position = position.clamp(0.0, size - 1.0)
    return (1.0 - (position[:, :, None] - index).abs()).clamp_min(0.0)
