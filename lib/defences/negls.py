"""Negative label smoothing (NegLS): the loss rewards the target logit beyond certainty and pushes all others down.

Source: Struppek et al., Be Careful What You Smooth For (ICLR 2024).
"""

from __future__ import annotations

from lib.defences._activity import rose
from lib.defences._checks import number
from lib.defences._smoothing import Smoothing
from lib.training.interface import History


class NegativeSmoothing(Smoothing):
    """``negls(alpha)``: per photo (1-alpha)(-log p_y) + alpha/C sum_c (-log p_c), with alpha <= 0.

    The loss has no lower bound: logits grow for as long as training runs, so the length, the weight decay and
    the last learning rate are part of the defence. It replaces the recipe's own label smoothing.

    Args:
        alpha: in [-1, 0]; the authors' is -0.05.
        schedule: ``ramp``, the paper's: from zero, in the second half of the epochs. ``constant`` is what the
            public code did until August 2024 (it built the schedule and did not use it); accuracy suffers.
        start, full: shares of the epochs from which on there is some of alpha, and all of it.

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, alpha: float, *, schedule: str, start: float, full: float) -> None:
        alpha = number("negls alpha", alpha, -1, 0, usage="negls(-0.05)")
        super().__init__(alpha, schedule=schedule, start=start, full=full)

    @staticmethod
    def acted(history: History) -> bool:
        """Whether labels were changed at the end and the target logit stands out more than in the first epoch. It comes
        to stand out without the defence, too, as ``ls(0)`` shows, which only measures: tests ask for more than
        that."""
        return Smoothing.acted(history) and rose(history, "margin")
