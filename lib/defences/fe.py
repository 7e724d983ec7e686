"""Fixed erasing (FE): the part of each image that is hidden never changes, so it is never seen at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib.defences._erasing import Erasing, law_from
from lib.erasing import View
from lib.errors import UserError

FRAMES = ("source", "output")


class FixedErasing(Erasing):
    """``fe(area)``: erase ``area`` of each image at a place that depends on seed and image only.

    Args:
        area: erased fraction of the image, in (0, 1).
        frame: ``source`` erases before crop and flip, so that the content is truly never seen; ``output``
            erases last, where a flip or shift can reveal what another visit hid. The paper does not say.
        ratio, value, shape, count, mean: see :class:`lib.defences.re.RandomErasing`.

    Raises:
        UserError: for values out of range.
    """

    def __init__(
        self, area: float, *, frame: str, ratio: float, value: str | float, shape: str, count: int, mean: Any
    ) -> None:
        if frame not in FRAMES:
            raise UserError(f"defence fe: expected frame source or output, got {frame!r}; use frame=source")
        self.frame = frame
        super().__init__(
            law_from(
                area,
                area,
                ratio=ratio,
                value=value,
                location="per_image",
                shape=shape,
                count=count,
                mean=mean,
            )
        )

    def source(self, images: Tensor, index: Tensor, seed: int) -> Tensor:
        """Source images (B, 3, S, S) in [0, 1] with their fixed part hidden, in the source frame."""
        images = super().source(images, index, seed)
        return self.draw(images, index, None)(images) if self.frame == "source" else images

    def input(self, images: Tensor, index: Tensor, generator: torch.Generator) -> View | None:
        """The view of this step in the output frame, None in the source frame."""
        return self.draw(images, index, generator) if self.frame == "output" else None
