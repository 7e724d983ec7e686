"""CutMix, a control: a rectangle of another photo is pasted, and the label shared by area.

Source: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers (ICCV 2019).
"""

from __future__ import annotations

from torchvision.transforms import v2

from lib.defences._transforms import Mixing


class Cutmix(Mixing):
    """``cutmix(alpha)``: a rectangle of area 1-lambda, lambda ~ Beta(alpha, alpha), around a uniform centre and
    clipped at the borders; one per batch, as in the authors' code. Published: alpha = 1.

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__(v2.CutMix, alpha)
