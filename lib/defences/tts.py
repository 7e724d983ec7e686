"""TTS: the last stage loses its skip connections after a warm start with them.

Source: Koh et al., On the Vulnerability of Skip Connections to Model Inversion Attacks (ECCV 2024).
"""

from __future__ import annotations

from lib.defences._checks import number
from lib.defences._skips import SkipScale


class TwoStageTraining(SkipScale):
    """``tts``: k = 1 in the first epochs, 0 from then on; one optimiser and one schedule throughout.

    The published code does not have it and the paper does not say whether the learning rate starts anew for the
    second stage: here it goes on.

    Args:
        warm: share of the epochs, in (0, 1), that begin with skips; published: 5 of 100. At least
            one epoch does.

    Raises:
        UserError: for values out of range; when it meets a network without skips.
    """

    def __init__(self, *, warm: float, cut: float) -> None:
        self.warm = number("tts warm", warm, 0, 1, usage="tts(warm=0.05)", ends="()")
        super().__init__(1.0, cut=cut)

    def phase(self, epoch: int, epochs: int) -> None:
        self.set(1.0 if epoch < max(1, round(self.warm * epochs)) else 0.0)
