"""Cutout, a control: a square around a uniform centre is blacked out, clipped at the borders.

Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout (arXiv:1708.04552);
the classifiers of VMI, among them BiDO's and MID's there, are trained with it at p = 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.defences._checks import number
from lib.defences._mean import Mean
from lib.erasing import View
from lib.training.interface import Defence, History


class Cutout(Defence):
    """``cutout(p)``: with probability p, in (0, 1], a square of half the image's side is overwritten.

    Unlike RE's, it has a fixed size, may stand out of the image and so hides corners and middle more alike.
    torchvision has no transform that does this.

    Args:
        side: of the square, as a share of the image's, in (0, 1].
        value: what is written, in pixel space, in [0, 1].

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, p: float, *, side: float, value: float) -> None:
        self.p = number("cutout p", p, 0, 1, usage="cutout(0.5)", ends="(]")
        self.side = number("cutout side", side, 0, 1, usage="side=0.5", ends="(]")
        self.value = number("cutout value", value, 0, 1, usage="value=0")
        self._area = Mean()

    def phase(self, epoch: int, epochs: int) -> None:
        self._area.restart()

    def input(self, images: Tensor, index: Tensor, generator: torch.Generator) -> View:
        """The squares of this step, for images (B,3,S,S) in [0, 1]."""
        count, size = len(images), images.shape[-1]
        half = max(1, round(self.side * size / 2))
        draws = torch.rand(count, 3, generator=generator, device=images.device)
        centre = (draws[:, :2] * size).long()[..., None]
        line = torch.arange(size, device=images.device)
        inside = (line >= centre - half) & (line < centre + half)
        mask = inside[:, 0, :, None] & inside[:, 1, None, :] & (draws[:, 2] < self.p)[:, None, None]
        self._area.add(mask)
        return View(mask, lambda x: torch.full((), self.value, dtype=x.dtype, device=x.device))

    def diagnostics(self) -> dict[str, float]:
        """``area``: mean share of the image area hidden in the last epoch."""
        return {"area": self._area.value}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether anything was hidden."""
        return history[-1]["area"] > 0
