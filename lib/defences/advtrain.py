"""Adversarial training, the control of AT-AT: a network that resists small perturbations.

Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (ICLR 2018).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lib.defences._activity import fell
from lib.defences._adversarial import Adversarial
from lib.training.interface import History, View


class AdversarialTraining(Adversarial):
    """``advtrain(eps)``: CE(f(x'), y) alone, x' = untargeted PGD from x. AT-AT's code, with weights 0 and 1: eps 0.01,
    10 steps of 0.001, on a scale of [-1, 1]; pixels here are in [0, 1], so 0.01 moves them by at most 0.005.

    Args:
        eps: largest change of a pixel, in [1e-6, 2]; 0.0627 is the usual 8/255 of a pixel.
        steps, step, bn_inner: see :class:`lib.defences._adversarial.Adversarial`.

    Raises:
        UserError: for values out of range; when it meets another defence's batch.
    """

    def __init__(self, eps: float, *, steps: int, step: float, bn_inner: str) -> None:
        super().__init__(eps, steps=steps, step=step, bn_inner=bn_inner, targeted=False)

    def before(
        self, model: nn.Module, view: View, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """x'."""
        return self.craft(model, view, images, labels, generator)

    @staticmethod
    def acted(history: History) -> bool:
        """Whether moving photos ever misled the network, and misled it less at the end than at first."""
        return max(row["gained"] for row in history) > 0 and fell(history, "success")

    def batch(self, images: Tensor, labels: Tensor, extras: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The moved photos in place of the photos."""
        return extras, labels, extras.new_ones(len(extras))
