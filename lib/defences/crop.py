"""Random resized crop, a control: only a part of the photo is seen, enlarged to its size."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.defences._checks import number
from lib.defences._mean import Mean
from lib.training.interface import Defence, History, View

DRAWS = 10


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """What torchvision's ``resized_crop`` gives at the images' own size, of each image by a box of its own.

    Args:
        images: (B,3,S,S). boxes: (B,4) top, left, height and width in whole pixels, within the image.
    """
    size = images.shape[-1]
    boxes = boxes.to(images.dtype)
    start, extent = boxes[:, :2, None], boxes[:, 2:, None]
    middle = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
    inside = (middle / size * extent - 0.5).clamp_min(0).minimum(extent - 1)  # nothing from beyond the box
    rows, columns = ((2 * (start + inside) + 1) / size - 1).unbind(1)
    grid = torch.stack([columns[:, None].expand(-1, size, -1), rows[..., None].expand(-1, -1, size)], -1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class RandomCrop(Defence):
    """``crop(scale)``: each visit sees a random box of ``scale`` to all of the image's area and nothing else.

    The law is torchvision's ``RandomResizedCrop``, which draws one box for all images of a tensor; here every
    image has its own, in one pass.

    Args:
        scale: smallest share of the area, in (0, 1].
        ratio: r >= 1; width / height is log-uniform in [1/r, r]. A box that does not fit is drawn again, ten
            times, then the whole image is taken.

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, scale: float, *, ratio: float) -> None:
        self.scale = number("crop scale", scale, 0, 1, usage="crop(0.5)", ends="(]")
        self.ratio = number("crop ratio", ratio, 1, 100, usage="ratio=1")
        self._area = Mean()

    def phase(self, epoch: int, epochs: int) -> None:
        self._area.restart()

    def boxes(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """(count,4) int64: top, left, height and width."""
        draws = torch.rand(count, DRAWS, 2, generator=generator, device=generator.device)
        area = (self.scale + (1 - self.scale) * draws[..., 0]) * size**2
        ratio = torch.exp((2 * draws[..., 1] - 1) * math.log(self.ratio))
        sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], -1).round().long()
        fits = ((sides > 0) & (sides <= size)).all(-1)
        first = fits.int().argmax(1)
        sides = sides[torch.arange(count, device=sides.device), first]
        sides = torch.where(fits.any(1, keepdim=True), sides, size)
        corner = torch.rand(count, 2, generator=generator, device=generator.device)
        return torch.cat([(corner * (size - sides + 1)).long(), sides], 1)

    def input(self, images: Tensor, index: Tensor, generator: torch.Generator) -> View:
        """The boxes of this step, for images (B,3,S,S)."""
        size = images.shape[-1]
        boxes = self.boxes(len(images), size, generator)
        self._area.add(boxes[:, 2] * boxes[:, 3] / size**2)
        return lambda x: resized_crop(x, boxes)

    def diagnostics(self) -> dict[str, float]:
        """``area``: mean share of the image area seen in the last epoch."""
        return {"area": self._area.value}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether less than the image was seen."""
        return history[-1]["area"] < 1
