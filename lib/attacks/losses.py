"""Identity losses: how far the target's logits are from saying "this is person y". One value per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.priors.guidance import max_margin as max_margin  # beside the others for those who look here

if TYPE_CHECKING:
    from lib.attacks.access import Access

Identity = Callable[["Access", Tensor, Tensor], tuple[Tensor, Tensor]]
"""(access, images (B, 3, S, S), labels (B,)) to (loss (B,), the target's logits (B, C)): what GMI and KEDMI let
others replace."""

XI = 1e-4
TINY_NORM = 1e-6
TINY_GAP = 1e-7


def poincare(logits: Tensor, labels: Tensor) -> Tensor:
    """Hyperbolic distance between the l1-normalised logits and a corner of the unit ball.

    With u = o / ||o||_1 and v = max(onehot(y) - 1e-4, 0) it is
    arccosh(1 + 2 ||u - v||^2 / ((1 - ||u||^2) (1 - ||v||^2))), norms l2 (Struppek et al., Plug & Play
    Attacks, ICML 2022, eq. 4). Invariant to the scale of the logits; about 9.9 for random ones.

    The distance is infinite where u is exactly a corner and undefined where all logits are 0; there the
    denominators are held away from 0, so that value and gradient stay finite.

    Args:
        logits: (B, C), any floating type; computed in fp32.
        labels: (B,) int64.

    Returns:
        (B,) fp32, at least 0.
    """
    logits = logits.float()
    u = logits / logits.abs().sum(1, keepdim=True).clamp_min(TINY_NORM)
    v = torch.zeros_like(u).scatter_(1, labels[:, None], 1.0 - XI)
    gap_u = (1.0 - u.square().sum(1)).clamp_min(TINY_GAP)
    gap_v = XI * (2.0 - XI)  # 1 - (1 - XI)^2 without cancellation
    excess = 2.0 * (u - v).square().sum(1) / (gap_u * gap_v)
    return torch.log1p(excess + (excess * (excess + 2.0)).sqrt())  # arccosh(1 + excess), exact near 0


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y per sample: (B, C) and (B,) to (B,), in fp32."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def by_cross_entropy(access: Access, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The identity loss of GMI and KEDMI."""
    logits = access.logits(images)
    return cross_entropy(logits, labels), logits
