"""Fréchet distance of two Gaussians fitted to features (FID, Heusel et al. 2017, arXiv 1706.08500).

Strongly biased upwards in small samples (metrics specification, section 5: 748 for identical laws with
512 dimensions and 60 images), so compare equal sample sizes and print :func:`frechet_null` beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.errors import UserError
from lib.evaluation.inputs import matrix


def frechet_from_moments(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> Tensor:
    """||mu - nu||^2 + tr(S + R - 2 (S R)^{1/2}); means (d,), covariances (d, d), scalar result."""
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # The eigenvalues of S R equal those of S^1/2 R S^1/2, which is symmetric: no complex square root.
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    return (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of the features (N, d) and (M, d).

    Raises:
        UserError: if shapes disagree, values are not finite, or a side has one row.
    """
    first = matrix(first, "first")
    second = matrix(second, "second", width=first.shape[1])
    if min(len(first), len(second)) < 2:
        raise UserError(
            f"Fréchet distance: expected two rows or more, got {len(first)} and {len(second)}; add images"
        )
    moments = [
        moment
        for rows in (first, second)
        for moment in (rows.mean(0), torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]))
    ]
    return float(frechet_from_moments(*moments))


def frechet_null(features: Tensor, *, seed: int = 0) -> float:
    """What two random halves of one set (N, d) give: pure bias. Compare with sets of N / 2 images."""
    features = matrix(features, "features")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).to(features.device)
    half = len(features) // 2
    return frechet_distance(features[order[:half]], features[order[half : 2 * half]])
