"""The numbers both sides end with, from features and logits; the arithmetic is the same for both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib import evaluation


@dataclass(frozen=True)
class Outcome:
    """What one run made of K labels with n candidates, m of them kept.

    ``initial``, ``latents`` (K, n, d); ``selected`` (K, m); ``confidence`` (K, n) of the target over the
    selection's views; ``measures``: name -> value.
    """

    initial: Tensor
    latents: Tensor
    selected: Tensor
    confidence: Tensor
    measures: dict[str, float]


def accuracy(logits: Tensor, labels: Tensor, suffix: str = "") -> dict[str, float]:
    """Attack accuracy and mean p_y of (N, C) logits."""
    p = logits.softmax(1).gather(1, labels[:, None])
    return {
        f"attack_accuracy{suffix}": evaluation.hits(logits, labels).double().mean().item(),
        f"evaluator_confidence{suffix}": p.mean().item(),
    }


def mean_prdc(parts: list[evaluation.Prdc]) -> dict[str, float]:
    """Mean over the classes."""
    names = ("precision", "recall", "density", "coverage")
    return {name: sum(getattr(part, name) for part in parts) / len(parts) for name in names}


def nearest(fakes: Tensor, photos: Tensor) -> Tensor:
    """Squared distance (N,) of (N, d) features to the nearest of (M, d), all of one person."""
    return torch.cdist(fakes.double(), photos.double()).square().amin(1)
