"""Attack accuracy (AttAcc): does an evaluator recognise the person a reconstruction was aimed at?

Metrics specification, sections 3 and 8. The same function gives natural accuracy on photographs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from lib.errors import UserError
from lib.evaluation.inputs import aligned


class IdentityMeans(NamedTuple):
    """Means of each identity, ascending: ``identity`` (K,), ``mean`` (K,) float64, ``count`` (K,)."""

    identity: Tensor
    mean: Tensor
    count: Tensor


class PanelVote(NamedTuple):
    """What several evaluators say together; each (N,). ``majority``: strictly more than half of them."""

    votes: Tensor
    majority: Tensor
    any: Tensor
    all: Tensor


def hits(logits: Tensor, labels: Tensor, *, k: int = 1) -> Tensor:
    """Whether the aimed class is among the ``k`` largest logits. Of equal logits the lower class number
    counts as larger, as in ``argmax``, so a constant network does not recognise everybody.

    Args:
        logits: (N, C). labels: (N,) in [0, C).

    Returns:
        (N,) bool.

    Raises:
        UserError: if k is not in [1, C], a label is no class, lengths differ, or a logit is NaN.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise UserError(
            f"logits: expected a non-empty (N, C) tensor, got {tuple(logits.shape)}; pass one row an image"
        )
    labels = aligned(logits, labels, "logits")
    classes = logits.shape[1]
    if not 1 <= k <= classes:
        raise UserError(f"k: expected 1 to {classes} (the number of classes), got {k}; lower k")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise UserError(
            f"labels: expected 0 to {classes - 1}, got {labels.min()} to {labels.max()}; check the evaluator"
        )
    if bool(torch.isnan(logits).any()):
        raise UserError("logits: expected numbers, got NaN; look for a diverged evaluator")
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(classes, device=logits.device) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return rank < k


def identity_means(values: Tensor, identity: Tensor) -> IdentityMeans:
    """Mean of the values (N,) of each identity (N,); identities are the unit of every statistic.

    Raises:
        UserError: if the lengths differ or there are no values.
    """
    if values.ndim != 1 or len(values) == 0:
        raise UserError(
            f"values: expected (N,) with N > 0, got {tuple(values.shape)}; pass one value an image"
        )
    identity = aligned(values, identity, "values")
    names, inverse, count = torch.unique(identity, return_inverse=True, return_counts=True)
    # MPS has no float64; these vectors are short.
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(
        0, inverse.cpu(), values.detach().cpu().double()
    )
    return IdentityMeans(names.cpu(), sums / count.cpu(), count.cpu())


def panel_vote(panel: Tensor) -> PanelVote:
    """Joint verdicts of E evaluators. Unanimity is still an upper bound of true success: evaluators that
    saw the same photographs err together.

    Args:
        panel: (E, N) bool, :func:`hits` of every evaluator on the same images.
    """
    _check_panel(panel)
    votes = panel.sum(0)
    return PanelVote(votes, votes * 2 > len(panel), votes > 0, votes == len(panel))


def pairwise_kappa(panel: Tensor) -> Tensor:
    """Cohen's kappa of each two evaluators, (E, E) float64 with a diagonal of 1. NaN where both evaluators
    give one and the same answer to every image: agreement beyond chance is then undefined."""
    _check_panel(panel)
    answers = panel.cpu().numpy()
    result = torch.eye(len(answers), dtype=torch.float64)
    for i in range(len(answers)):
        for j in range(i):
            constant = (answers[[i, j]] == answers[i, 0]).all()
            kappa = float("nan") if constant else cohen_kappa_score(answers[i], answers[j])
            result[i, j] = result[j, i] = kappa
    return result


def corrected_accuracy(accuracy: float, *, chance: float, ceiling: float) -> float:
    """(accuracy - chance) / (ceiling - chance), to compare evaluators of unlike strength.

    Args:
        accuracy: AttAcc in [0, 1].
        chance: rate at which the evaluator answers the aimed class on unoptimised prior samples.
        ceiling: the evaluator's accuracy on unseen private photographs.

    Returns:
        0 at chance, 1 at the evaluator's own accuracy (more is possible: reconstructions are clean and
        frontal). NaN if the evaluator is no better than chance.

    Raises:
        UserError: if one of them lies outside [0, 1].
    """
    for name, value in (("accuracy", accuracy), ("chance", chance), ("ceiling", ceiling)):
        if not 0 <= value <= 1:
            raise UserError(f"{name}: expected a fraction in [0, 1], got {value}; divide percentages by 100")
    return (accuracy - chance) / (ceiling - chance) if ceiling > chance else float("nan")


def _check_panel(panel: Tensor) -> None:
    if panel.ndim != 2 or 0 in panel.shape or panel.dtype != torch.bool:
        raise UserError(
            f"panel: expected a non-empty bool (evaluators, images) tensor, got {panel.dtype} "
            f"{tuple(panel.shape)}; stack the hits of each evaluator"
        )
