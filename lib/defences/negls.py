"""Negative label smoothing (NegLS): the loss rewards the target logit beyond certainty and pushes all others down.

Source: Struppek et al., Be Careful What You Smooth For (ICLR 2024).
"""

from __future__ import annotations

from lib.defences._checks import number
from lib.defences._smoothing import Smoothing


class NegativeSmoothing(Smoothing):
    """``negls(alpha)``: per photo (1-alpha)(-log p_y) + alpha/C sum_c (-log p_c), with alpha <= 0.

    The loss has no lower bound: logits grow for as long as training runs, so the length, the weight decay and
    the last learning rate are part of the defence. It replaces the recipe's own label smoothing.

    Args:
        alpha: in [-1, 0]; the authors' is -0.05.
        schedule: ``ramp``, the paper's: from zero, in the second half of the epochs. ``constant`` is what the
            public code did until August 2024 (it built the schedule and did not use it); accuracy suffers.

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, alpha: float, *, schedule: str) -> None:
        super().__init__(number("negls alpha", alpha, -1, 0, usage="negls(-0.05)"), schedule)
