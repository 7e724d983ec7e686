"""Face verification by an embedding whose training people are none of the private people.

Metrics specification, section 8, proxies 2 and 4. Unlike an evaluator it does not share the target's task,
so an adversarial image that fools the target has no reason to fool it.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lib.errors import UserError
from lib.evaluation.inputs import aligned, matrix


class Scores(NamedTuple):
    """Cosine similarity ``values`` (N, K) of N images to K enrolled people ``identity`` (K,), ascending."""

    values: Tensor
    identity: Tensor


def gallery_scores(
    embeddings: Tensor,
    gallery: Tensor,
    gallery_identity: Tensor,
    *,
    reduce: Literal["max", "mean"] = "max",
) -> Scores:
    """Cosine of each image to each enrolled person: to the most similar enrolled photo, or the mean of them.

    Args:
        embeddings: (N, d). gallery: (G, d) enrolled photos. gallery_identity: (G,) who they show.
            With "max" enrol equally many a person (:func:`lib.evaluation.balanced_references`).

    Raises:
        UserError: if shapes disagree, values are not finite, or an embedding is zero.
    """
    if reduce not in ("max", "mean"):
        raise UserError(f"reduce: expected 'max' or 'mean', got {reduce!r}; choose one")
    gallery = matrix(gallery, "gallery")
    embeddings = matrix(embeddings, "embeddings", width=gallery.shape[1])
    gallery_identity = aligned(gallery, gallery_identity, "gallery")
    for name, rows in (("embeddings", embeddings), ("gallery", gallery)):
        if bool((rows == 0).all(1).any()):
            raise UserError(
                f"{name}: expected non-zero rows, got a zero vector without direction; check the verifier"
            )
    cosine = functional.normalize(embeddings, dim=1) @ functional.normalize(gallery, dim=1).T
    people, column = torch.unique(gallery_identity, return_inverse=True)
    empty = cosine.new_zeros(len(cosine), len(people))
    reduction = "amax" if reduce == "max" else "mean"
    values = empty.scatter_reduce(1, column.expand(len(cosine), -1), cosine, reduction, include_self=False)
    return Scores(values, people)


def genuine_and_impostor(scores: Scores, identity: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of *natural* photos outside the gallery: to their own person (N,), to all others (N * (K - 1),).

    Raises:
        UserError: if a person is not enrolled or there is nobody else.
    """
    own = _columns(scores, identity)
    if len(scores.identity) < 2:
        raise UserError("gallery: expected at least two people, got one; impostor pairs need somebody else")
    others = torch.ones_like(scores.values, dtype=torch.bool).scatter_(1, own[:, None], False)
    return scores.values.gather(1, own[:, None])[:, 0], scores.values[others]


def threshold_at(impostor: Tensor, *, false_accept_rate: float) -> float:
    """The threshold above which at most ``false_accept_rate`` of the impostor scores lie.

    Accept means ``score > threshold``. Impostor pairs share photos, so the rate is less certain than
    their number suggests.

    Args:
        impostor: (P,) scores of natural pairs of different people.

    Raises:
        UserError: if the rate is outside (0, 1) or there are fewer than 1 / rate pairs to fix it by.
    """
    if not 0 < false_accept_rate < 1:
        raise UserError(
            f"false accept rate: expected inside (0, 1), got {false_accept_rate}; use 0.01, for instance"
        )
    accepted = math.floor(false_accept_rate * impostor.numel() + 1e-9)
    if accepted < 1:
        raise UserError(
            f"impostor pairs: expected at least {math.ceil(1 / false_accept_rate)} for a false accept rate "
            f"of {false_accept_rate}, got {impostor.numel()}; raise the rate or enrol more people"
        )
    return float(impostor.flatten().topk(accepted + 1).values[-1])


def matches(scores: Scores, claimed: Tensor, *, threshold: float) -> Tensor:
    """Whether each image passes as the claimed person; (N,) bool. The mean is VAcc at that rate."""
    return scores.values.gather(1, _columns(scores, claimed)[:, None])[:, 0] > threshold


def rank_one(scores: Scores, claimed: Tensor) -> Tensor:
    """Whether the claimed person is the most similar enrolled one; (N,) bool (ties: the lower identity)."""
    return scores.values.argmax(1) == _columns(scores, claimed)


def proxy_false_positives(evaluator_hits: Tensor, verified: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluator answers on the images the verifier rejects.

    The mean is the proxy false-positive rate P(evaluator says k | verifier says not k). Far above the same
    rate for natural photos of other people it is the signature of Type-I adversarial reconstructions.

    Args:
        evaluator_hits, verified: (N,) bool of the same images.

    Returns:
        (M,) bool answers and (M,) int64 indices of the rejected images (for their identities).
        M may be 0: then there is no rate.

    Raises:
        UserError: if the shapes differ.
    """
    if evaluator_hits.shape != verified.shape or verified.ndim != 1:
        raise UserError(
            f"verified: expected the shape of the hits {tuple(evaluator_hits.shape)}, got "
            f"{tuple(verified.shape)}; judge the same images"
        )
    rejected = torch.nonzero(~verified.bool())[:, 0]
    return evaluator_hits.bool()[rejected.to(evaluator_hits.device)], rejected


def _columns(scores: Scores, identity: Tensor) -> Tensor:
    identity = aligned(scores.values, identity, "scores")
    column = torch.searchsorted(scores.identity, identity).clamp(max=len(scores.identity) - 1)
    unknown = identity[scores.identity[column] != identity]
    if len(unknown):
        raise UserError(
            f"gallery: expected every claimed person enrolled, {int(unknown[0])} is not; enrol their photos"
        )
    return column
