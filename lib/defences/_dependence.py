"""Kernel measures of the dependence of two batches of vectors, in fp32 and with nothing cancelled away.

Off-diagonal kernel values of images are .985 to .999, so centring takes away almost everything: in bf16 or TF32
what is left is noise. All of this therefore runs with autocast off and full matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIGMA = 5.0  # fixed in the reference; its median rule is never used
SLOPE = 1e-12  # keeps the square root's gradient finite at 0


def gaussian_kernel(rows: Tensor, sigma: float = SIGMA) -> Tensor:
    """(m,m): exp(-|u_a - u_b|^2 / (2 sigma^2 D)) of vectors u of D entries, ``rows`` (m, ...) flattened."""
    # channels last, as the network lays them out: no copy, and distances know no order of entries
    u = (rows.movedim(1, -1) if rows.ndim == 4 else rows).flatten(1)
    # the mean shrinks what a distance is a difference of; it moves no distance, so no gradient need pass it
    u = u - u.mean(0).detach()
    products = _products(u)
    squares = products.diagonal()
    distances = (squares[:, None] + squares - 2 * products).clamp_min(0)
    return (distances / (-2 * sigma**2 * u.shape[1])).exp()


def _products(u: Tensor) -> Tensor:
    """u u^T with its exact first derivative, of which one factor is differentiated and the other follows from
    symmetry: one large product backward instead of two."""
    half = u @ u.detach().T
    return half + half.T - half.detach()


def label_kernel(labels: Tensor) -> Tensor:
    """(m,m): the linear kernel Y Y^T of labels (m,) int64, one-hot, or (m,C) probabilities."""
    if labels.ndim == 2:
        return labels.float() @ labels.float().T
    return (labels[:, None] == labels).float()


def centred(kernel: Tensor) -> Tensor:
    """H K H with H = I - 11^T/m."""
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def normalised(kernel: Tensor, epsilon: float) -> Tensor:
    """(m,m): R = K~ (K~ + eps m I)^-1 of the centred kernel K~, symmetric with eigenvalues in [0, 1)."""
    m = len(kernel)
    k = centred(kernel)
    k = (k + k.T) / 2
    factor, _ = torch.linalg.cholesky_ex(k + epsilon * m * torch.eye(m, device=k.device, dtype=k.dtype))
    return torch.cholesky_solve(k, factor)


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """tr(R_u R_v) of two normalised kernels: the number of directions in which u and v vary together."""
    return (first * second).sum()


def coco(first: Tensor, second: Tensor) -> Tensor:
    """sqrt(|K~_u K~_v|_F) / m of two centred kernels."""
    return (torch.linalg.matrix_norm(first @ second) + SLOPE).sqrt() / len(first)
