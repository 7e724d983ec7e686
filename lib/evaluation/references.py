"""Equally many references for every person.

The nearest of many references is nearer than the nearest of few (metrics specification, section 4), so
people with many photos would look more leaked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.errors import UserError


def balanced_references(labels: Tensor, *, count: int | None = None, seed: int = 0) -> Tensor:
    """Indices of the same number of references for each class, chosen by ``seed`` alone.

    Args:
        labels: (M,) class of each reference.
        count: references a class; None takes the size of the smallest class.

    Returns:
        (classes * count,) int64 ascending indices into ``labels``.

    Raises:
        UserError: if there are no labels, or a class has fewer than ``count``.
    """
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(
            f"references: expected (M,) labels with M > 0, got {tuple(labels.shape)}; enrol some photos"
        )
    classes, inverse, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    smallest = int(sizes.min())
    count = smallest if count is None else count
    if not 1 <= count <= smallest:
        raise UserError(
            f"references: expected 1 to {smallest} a class (class {int(classes[sizes.argmin()])} has the "
            f"fewest), got {count}; lower the count"
        )
    shuffle = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    by_class = shuffle[torch.argsort(inverse[shuffle], stable=True)]
    first = torch.cumsum(sizes, 0) - sizes
    chosen = by_class[(first[:, None] + torch.arange(count, device=labels.device)).flatten()]
    return chosen.sort().values
