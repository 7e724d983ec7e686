"""Membership inference by a threshold: is this photo one that the target was trained on?

The score is the log odds of the true label, ln p_y / (1 - p_y) (Carlini et al. 2022, section IV, without shadow
models). It is the attack of somebody who knows the person and has the photo; a stronger one trains shadow models, so
what is found here is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lib.errors import UserError
from lib.statistics import Interval, identity_weights, percentile_interval
from lib.statistics.inputs import Floats

FALSE_POSITIVES = 0.01
RESAMPLES = 10_000  # with Holm over ten models a limit is the 25th of them


@dataclass(frozen=True)
class Membership:
    """How well members are told from others: ``auc`` (0.5 is chance), and the share of members found at
    :data:`FALSE_POSITIVES`, ``found`` (that rate is chance); n people. ``draws``: (B,) AUC of the resamples, which are
    of the same people in every model that was asked with the same seed."""

    auc: Interval
    found: Interval
    draws: Floats

    def minus(self, other: Membership, *, tests: int = 1) -> Interval:
        """Difference of two models' AUC, paired by person, at 95 % for all ``tests`` together."""
        value, draws = self.auc.value - other.auc.value, self.draws - other.draws
        return percentile_interval(value, draws, n=self.auc.n, level=1 - 0.05 / tests)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) ln p_y / (1 - p_y) of logits (N,C), C > 1, without cancellation for confident targets."""
    logits = logits.double()
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return own - others


def membership(
    members: ArrayLike, member_people: ArrayLike, others: ArrayLike, other_people: ArrayLike, *, seed: int
) -> Membership:
    """From the scores of training photos and of unseen photos of the same people, people resampled.

    Raises:
        UserError: unless both are of the same people.
    """
    scores = [np.asarray(values, dtype=np.float64) for values in (members, others)]
    people, member_row = np.unique(np.asarray(member_people), return_inverse=True)
    also, other_row = np.unique(np.asarray(other_people), return_inverse=True)
    if not np.array_equal(people, also):
        raise UserError(
            f"membership: expected photos of the same people, got {len(people)} and {len(also)}; leave out those who "
            "have only one kind"
        )
    count = len(people)
    weights = np.concatenate(
        [np.ones((1, count)), identity_weights(count, RESAMPLES, np.random.default_rng(seed))]
    )
    found = _found(*scores, weights[:, member_row], weights[:, other_row])
    auc = _auc(*scores, member_row, other_row, weights)
    return Membership(*(percentile_interval(v[0], v[1:], n=count) for v in (auc, found)), auc[1:])


def _auc(members: Floats, others: Floats, member_row: Floats, other_row: Floats, weights: Floats) -> Floats:
    """(B,): P(member's score > other's) + half the ties, for weights of people (B,K)."""
    count = weights.shape[1]
    above = (members[:, None] > others[None]) + 0.5 * (members[:, None] == others[None])
    one_hot = [np.eye(count)[row] for row in (member_row, other_row)]
    wins = one_hot[0].T @ above @ one_hot[1]  # (K,K): of one person's members over another's unseen photos
    pairs = np.outer(one_hot[0].sum(0), one_hot[1].sum(0))
    return ((weights @ wins) * weights).sum(1) / ((weights @ pairs) * weights).sum(1)


def _found(members: Floats, others: Floats, member_weights: Floats, other_weights: Floats) -> Floats:
    """(B,) share of members above the smallest threshold that at most :data:`FALSE_POSITIVES` of the others exceed."""
    order = np.argsort(-others, kind="stable")
    above = np.cumsum(other_weights[:, order], 1) / other_weights.sum(1, keepdims=True)
    last = (above <= FALSE_POSITIVES).sum(1)  # so many of the others may lie above
    threshold = others[order][np.minimum(last, len(order) - 1)]
    return ((members[None] > threshold[:, None]) * member_weights).sum(1) / member_weights.sum(1)
