"""What the defences share that change or lengthen the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.training.interface import probabilities


def claim_batch(model: nn.Module, name: str, *, weighs: bool = True) -> None:
    """Note on the network whose batch it is trained on: each of these defences weighs the rows of its own, or
    (not ``weighs``) needs them as they are.

    Raises:
        UserError: another defence was first.
    """
    other = getattr(model, "batch_of", None)
    if other:
        raise UserError(
            f"{name}: expected a batch that no other defence lengthens or replaces, got that of {other}; drop one"
        )
    model.batch_of = name
    model.weighed_by = name if weighs else None


def joined(labels: Tensor, more: Tensor, classes: int) -> Tensor:
    """(B+A,) int64 of two such, or (B+A,C) where ``labels`` are probabilities; ``more`` is (A,) int64."""
    if labels.ndim == 1:
        return torch.cat([labels, more])
    return torch.cat([labels, probabilities(more, labels.new_empty(0, classes))])


def main_classes(labels: Tensor) -> Tensor:
    """(B,) int64: the labels, or the likeliest class of each row of probabilities."""
    return labels if labels.ndim == 1 else labels.argmax(1)
