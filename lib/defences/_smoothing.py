"""Label smoothing of either sign, written out: what negative and positive smoothing share."""

from __future__ import annotations

from torch import Tensor

from lib.defences._checks import word
from lib.defences._mean import Mean
from lib.training.interface import Defence, History, probabilities

SCHEDULES = ("ramp", "constant")
START, JUMP = 0.5, 0.75  # shares of the epochs


def ramp(epoch: int, epochs: int) -> float:
    """The share of alpha that is applied in an epoch (counted from 0): nothing in the first half, then rising
    evenly to a half at three quarters of the run, then all of it. The published schedule (100 epochs: from 50,
    all from 75) by fractions; a run of one epoch never gets to it."""
    done = epoch / epochs
    if done < START:
        return 0.0
    return (epoch + 1) / epochs / START - 1 if done < JUMP else 1.0


def smoothed(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """(B,): cross-entropy to the labels (1 - alpha) plus to the uniform distribution (alpha), of any sign.

    Args:
        logits: (B,C), taken to fp32: in bf16 the small uniform part is lost.
        labels: (B,) int64 or (B,C) probabilities.
    """
    logits = logits.float()
    log_p = logits - logits.logsumexp(1, keepdim=True)
    return -(1 - alpha) * (probabilities(labels, log_p) * log_p).sum(1) - alpha * log_p.mean(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): the target logit minus the mean of the others, M; smoothing adds alpha (C-1)/C M to cross-entropy."""
    q = probabilities(labels, logits)
    return (q * logits).sum(1) - ((1 - q) * logits).sum(1) / (logits.shape[1] - 1)


class Smoothing(Defence):
    """Base of the defences that smooth labels: replaces the classification loss.

    Args:
        alpha: the smoothing factor of the last epochs.
        schedule: ``ramp`` (see :func:`ramp`) or ``constant``, alpha from the first step.
    """

    def __init__(self, alpha: float, schedule: str) -> None:
        self.alpha = alpha
        self.schedule = word(f"{type(self).__module__.rpartition('.')[2]} schedule", schedule, SCHEDULES)
        self.applied = 0.0
        self._margin = Mean()

    def phase(self, epoch: int, epochs: int) -> None:
        self.applied = self.alpha * (1.0 if self.schedule == "constant" else ramp(epoch, epochs))
        self._margin.restart()

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,): :func:`smoothed` with the alpha of this epoch."""
        self._margin.add(margin(logits, labels))
        return smoothed(logits, labels, self.applied)

    def diagnostics(self) -> dict[str, float]:
        """``alpha``: the factor last applied; ``margin``: mean target-logit margin in the last epoch."""
        return {"alpha": self.applied, "margin": self._margin.value}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether labels were changed at the end."""
        return history[-1]["alpha"] != 0
