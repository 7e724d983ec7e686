"""Gaussian pixel noise, a control."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.defences._checks import number
from lib.defences._mean import Mean
from lib.training.interface import Defence, History, View


class PixelNoise(Defence):
    """``noise(std)``: x + std eps, eps ~ N(0, 1) per pixel and channel, clipped to [0, 1].

    torchvision's ``GaussianNoise`` draws anew whenever it is called; within a step the noise has to stay.

    Args:
        std: in (0, 1], of pixels in [0, 1].

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, std: float) -> None:
        self.std = number("noise std", std, 0, 1, usage="noise(0.1)", ends="(]")
        self._power = Mean()

    def phase(self, epoch: int, epochs: int) -> None:
        self._power.restart()

    def input(self, images: Tensor, index: Tensor, generator: torch.Generator) -> View:
        """The noise of this step, for images (B,3,S,S) in [0, 1]."""
        noise = self.std * torch.randn(images.shape, generator=generator, device=images.device)
        self._power.add(((images + noise).clamp(0, 1) - images).square())
        return lambda x: (x + noise).clamp(0, 1)

    def diagnostics(self) -> dict[str, float]:
        """``rms``: root mean square change of a pixel in the last epoch; below std where it was clipped."""
        return {"rms": self._power.value**0.5}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether pixels changed."""
        return history[-1]["rms"] > 0
