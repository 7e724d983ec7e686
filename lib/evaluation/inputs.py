"""Checks shared by the metrics: a wrong shape must stop before it becomes a plausible number."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.errors import UserError


def matrix(values: Tensor, name: str, *, width: int | None = None) -> Tensor:
    """A finite, non-empty (N, d) matrix in the precision distances need: float64, float32 where the
    device (MPS) has no float64. Squared distances of near points cancel badly in float32.

    Raises:
        UserError: if the shape is wrong, there are no rows, or a value is not finite.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise UserError(f"{name}: expected a non-empty (N, d) tensor, got {tuple(values.shape)}; flatten it")
    if width is not None and values.shape[1] != width:
        raise UserError(
            f"{name}: expected width {width}, got {values.shape[1]}; use one network for both sides"
        )
    values = values.detach()
    values = values.float() if values.device.type == "mps" else values.double()
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{name}: expected finite values, got NaN or infinity; look for a diverged network")
    return values


def aligned(values: Tensor, labels: Tensor, name: str) -> Tensor:
    """``labels`` as (N,) int64 on the device of ``values`` (N, ...).

    Raises:
        UserError: if the lengths differ or labels are not integers.
    """
    if labels.ndim != 1 or len(labels) != len(values):
        raise UserError(
            f"{name}: expected {len(values)} labels, one a row, got shape {tuple(labels.shape)}; align them"
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise UserError(f"{name}: expected integer labels, got {labels.dtype}; pass class numbers")
    return labels.to(device=values.device, dtype=torch.int64)
