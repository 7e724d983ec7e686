"""LOMMA on KEDMI, re-thinking model inversion (Nguyen et al., CVPR 2023): KEDMI with :mod:`lib.attacks.lomma`'s
loss."""

from __future__ import annotations

from dataclasses import dataclass

from lib.attacks import kedmi
from lib.attacks.kedmi import KedmiBudget
from lib.attacks.lomma import STATISTICS_IMAGES, Options, lomma_on

NAME = "lomma_kedmi"
NEEDS = ("public", "students")
IMAGES = STATISTICS_IMAGES  # pass the target for p_reg
PRIOR = "inversion_gan"


@dataclass(frozen=True, kw_only=True)
class LommaKedmiBudget(Options, KedmiBudget):
    """Defaults: the published code, which clamps latents in the graph."""

    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()


Budget = LommaKedmiBudget
invert = lomma_on(kedmi.invert, NAME, kind=PRIOR)
