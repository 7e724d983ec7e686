"""Mixup, a control: photos and labels are blended with those of another photo.

Source: Zhang et al., mixup: Beyond Empirical Risk Minimization (ICLR 2018).
"""

from __future__ import annotations

from torchvision.transforms import v2

from lib.defences._transforms import Mixing


class Mixup(Mixing):
    """``mixup(alpha)``: lambda x + (1-lambda) x', lambda ~ Beta(alpha, alpha), one per batch as in the authors' code.

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__(v2.MixUp, alpha)
