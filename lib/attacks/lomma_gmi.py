"""LOMMA on GMI, re-thinking model inversion (Nguyen et al., CVPR 2023): GMI with :mod:`lib.attacks.lomma`'s loss."""

from __future__ import annotations

from dataclasses import dataclass

from lib.attacks import gmi
from lib.attacks.gmi import GmiBudget
from lib.attacks.lomma import STATISTICS_IMAGES, Options, lomma_on

NAME = "lomma_gmi"
NEEDS = ("public", "students")
IMAGES = STATISTICS_IMAGES  # pass the target for p_reg


@dataclass(frozen=True, kw_only=True)
class LommaGmiBudget(Options, GmiBudget):
    """Defaults: the published code (2400 steps), but for what is kept: GMI's choice among restarts, where that code
    keeps them all (``keep`` as many as ``candidates``)."""

    steps: int = 2400

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()


Budget = LommaGmiBudget
invert = lomma_on(gmi.invert, NAME)
