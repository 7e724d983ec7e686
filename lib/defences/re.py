"""Random erasing (RE, MIDRE): every training image has a random part overwritten; test images are intact."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lib.defences._checks import number
from lib.defences._erasing import Erasing, law_from
from lib.erasing import View
from lib.errors import UserError


class RandomErasing(Erasing):
    """``re(low,high)``: erase, anew at each visit, a square of ``low`` to ``high`` of the image area.

    Erasing is the last step before the network, and the view is fixed within a step, so other terms of the
    loss see the very same mask. The reference code uses [.1, .4] and [.1, .8] with p = 1.

    Args:
        low, high: bounds of the erased fraction, in (0, 1).
        p: probability that an image is erased.
        ratio: r >= 1; height / width is log-uniform in [1/r, r]; with ``shape=rectangle``.
        value, location, shape, count, mean: see :class:`lib.erasing.ErasingLaw`; ``value=grey`` is what the reference
            code writes, the colour (.743, .728, .703).
        curriculum: share of the epochs, in [0, 1], over which the upper bound grows evenly from ``low``, in the
            first epoch, to ``high``. 0, as published: ``high`` from the first step.

    Raises:
        UserError: for values out of range; a curriculum between equal bounds.
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
        curriculum: float,
    ) -> None:
        self.curriculum = number("re curriculum", curriculum, 0, 1, usage="curriculum=0.5")
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

        self.high = self.law.scale[1]
        if self.curriculum and low == high:
            raise UserError(
                f"defence re curriculum: expected 0 or low < high, got low = high = {low:g}; nothing can grow "
                "between equal bounds"
            )

    def phase(self, epoch: int, epochs: int) -> None:
        """The upper bound of this epoch."""
        if self.curriculum:
            low, grown = self.law.scale[0], min(1.0, epoch / (self.curriculum * epochs))
            self.law = dataclasses.replace(self.law, scale=(low, low + grown * (self.high - low)))

    def input(self, images: Tensor, index: Tensor, generator: torch.Generator) -> View:
        """The erasing of this step, for images (B, 3, S, S) in [0, 1]."""
        return self.draw(images, index, generator)

    def diagnostics(self) -> dict[str, float]:
        """With a curriculum also ``re_a_h``: the upper bound of the last epoch."""
        grown = {"re_a_h": self.law.scale[1]} if self.curriculum else {}
        return {**super().diagnostics(), **grown}
