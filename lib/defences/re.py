"""Random erasing (RE, MIDRE): every training image has a random part overwritten; test images are intact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib.defences._erasing import Erasing, law_from
from lib.erasing import View


class RandomErasing(Erasing):
    """``re(low,high)``: erase, anew at each visit, a square of ``low`` to ``high`` of the image area.

    Erasing is the last step before the network, and the view is fixed within a step, so other terms of the
    loss see the very same mask. The reference code uses [.1, .4] and [.1, .8] with p = 1.

    Args:
        low, high: bounds of the erased fraction, in (0, 1).
        p: probability that an image is erased.
        ratio: r >= 1; height / width is log-uniform in [1/r, r]; with ``shape=rectangle``.
        value, location, shape, count, mean: see :class:`lib.erasing.ErasingLaw`.

    Raises:
        UserError: for values out of range.
    """

    def __init__(
        self,
        low: float,
        high: float,
        *,
        p: float,
        ratio: float,
        value: str | float,
        location: str,
        shape: str,
        count: int,
        mean: Any,
    ) -> None:
        super().__init__(
            law_from(
                low,
                high,
                p=p,
                ratio=ratio,
                value=value,
                location=location,
                shape=shape,
                count=count,
                mean=mean,
            )
        )

    def input(self, images: Tensor, index: Tensor, generator: torch.Generator) -> View:
        """The erasing of this step, for images (B, 3, S, S) in [0, 1]."""
        return self.draw(images, index, generator)
