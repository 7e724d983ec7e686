"""Label smoothing of either sign, written out: what negative and positive smoothing share."""

from __future__ import annotations

from torch import Tensor

from lib.defences._checks import number, word
from lib.defences._mean import Mean
from lib.training.interface import Defence, History, probabilities

SCHEDULES = ("ramp", "constant")


def ramp(epoch: int, epochs: int, *, start: float, full: float) -> float:
    """The share of alpha that is applied in an epoch (counted from 0): nothing before the share ``start`` of the run,
    then rising evenly, by what would take it to all of it at the end, and all of it from ``full`` on. The published
    schedule (100 epochs: from 50, all from 75) by fractions; a run of one epoch never gets to it."""
    done = epoch / epochs
    if done < start:
        return 0.0
    return ((epoch + 1) / epochs - start) / (1 - start) if done < full else 1.0


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
        start, full: shares of the epochs, of the ramp.
    """

    def __init__(self, alpha: float, *, schedule: str, start: float, full: float) -> None:
        name = type(self).__module__.rpartition(".")[2]
        self.alpha = alpha
        self.schedule = word(f"{name} schedule", schedule, SCHEDULES)
        self.start = number(f"{name} start", start, 0, 1, usage="start=0.5", ends="[)")
        self.full = number(f"{name} full", full, self.start, 1, usage="full=0.75")
        self.applied = 0.0
        self._margin = Mean()

    def phase(self, epoch: int, epochs: int) -> None:
        ramped = self.schedule == "ramp"
        self.applied = self.alpha * (ramp(epoch, epochs, start=self.start, full=self.full) if ramped else 1.0)
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
