"""Label smoothing (LS) of the usual, positive sign: NegLS's counterpart, known to make inversion easier.

Source: Struppek et al., Be Careful What You Smooth For (ICLR 2024).
"""

from __future__ import annotations

from lib.defences._checks import number
from lib.defences._smoothing import Smoothing


class PositiveSmoothing(Smoothing):
    """``ls(alpha)``: per photo (1-alpha)(-log p_y) + alpha/C sum_c (-log p_c), with alpha >= 0.

    Args:
        alpha: in [0, 1).
        schedule: ``constant``, as label smoothing is commonly used; ``ramp`` is NegLS's, to compare signs alone.
        start, full: shares of the epochs from which on a ramp gives some of alpha, and all of it.

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, alpha: float, *, schedule: str, start: float, full: float) -> None:
        alpha = number("ls alpha", alpha, 0, 1, usage="ls(0.1)", ends="[)")
        super().__init__(alpha, schedule=schedule, start=start, full=full)
