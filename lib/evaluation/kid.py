"""Kernel distance of two sets of features (KID, Binkowski et al. 2018, arXiv 1801.01401).

The unbiased squared MMD with the kernel (x.y / d + 1)^3. Unlike FID it has no bias in small samples, which
is why it is the distribution metric here. It says how natural images look, not whom they show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.errors import UserError
from lib.evaluation.inputs import matrix


@dataclass(frozen=True)
class KernelDistance:
    """``value``: mean over the subsets; ``spread``: their standard deviation (no standard error: subsets
    overlap); ``estimates`` (subsets,); ``subset_size``. May be slightly negative: it is unbiased around 0."""

    value: float
    spread: float
    estimates: Tensor
    subset_size: int


def squared_mmd(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased squared MMD of (..., N, d) and (..., M, d) with the cubic polynomial kernel; shape (...).

    Raises:
        UserError: if a side has fewer than two rows or the widths differ.
    """
    n, m, width = first.shape[-2], second.shape[-2], first.shape[-1]
    if min(n, m) < 2 or second.shape[-1] != width:
        raise UserError(
            f"kernel distance: expected two rows or more of one width, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}; add images or use one network"
        )
    within_first = _without_diagonal(kernel(first, first)) / (n * (n - 1))
    within_second = _without_diagonal(kernel(second, second)) / (m * (m - 1))
    return within_first + within_second - 2 * kernel(first, second).mean((-2, -1))


def kernel_distance(
    first: Tensor, second: Tensor, *, subset_size: int = 100, subsets: int = 100, seed: int = 0
) -> KernelDistance:
    """KID over random subsets drawn without replacement; the size is lowered to that of the smaller set.

    Args:
        first: (N, d) features. second: (M, d).

    Raises:
        UserError: if shapes disagree, values are not finite, or there are fewer than two rows or subsets.
    """
    first = matrix(first, "first")
    second = matrix(second, "second", width=first.shape[1])
    size = min(subset_size, len(first), len(second))
    if size < 2 or subsets < 2:
        raise UserError(
            f"kernel distance: expected two subsets of two images or more, got {subsets} of {size}"
        )
    generator = torch.Generator().manual_seed(seed)
    estimates = torch.stack(
        [
            squared_mmd(_subset(first, size, generator), _subset(second, size, generator))
            for _ in range(subsets)
        ]
    ).cpu()
    return KernelDistance(float(estimates.mean()), float(estimates.std()), estimates, size)


def kernel(first: Tensor, second: Tensor) -> Tensor:
    """(..., N, M): (x.y / d + 1)^3 of all pairs of (..., N, d) and (..., M, d)."""
    return (first @ second.transpose(-2, -1) / first.shape[-1] + 1) ** 3


def _without_diagonal(kernel: Tensor) -> Tensor:
    return kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)


def _subset(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)]
