"""A running mean that no training step has to wait for."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Mean:
    """Mean of all numbers added since :meth:`restart`, summed where they are computed.

    Defences restart theirs at every epoch, so that a diagnostic is of the last epoch and a resumed run, which
    begins at an epoch's start, reports what an uninterrupted one does.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._total: Tensor | float = 0.0
        self._count = 0

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Add every entry of ``values``, of any shape."""
        self._total = self._total + values.detach().float().sum()
        self._count += values.numel()

    @property
    def value(self) -> float:
        """The mean; NaN before the first number."""
        return float(self._total) / self._count if self._count else math.nan
