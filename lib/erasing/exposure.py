"""How often each position is hidden: estimated for any law, exact for the simple ones."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.erasing.law import ErasingLaw
from lib.erasing.masks import REDRAWS, draw_mask
from lib.errors import UserError

_CHUNK_PIXELS = 2**23


def exposure(
    law: ErasingLaw,
    size: int,
    *,
    draws: int = 4096,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Estimate the probability that a position is erased.

    Args:
        law: what to erase.
        size: side S of the images in pixels.
        draws: number of masks; the standard error of a probability q is sqrt(q (1 - q) / draws).
        generator, seed: see :func:`lib.erasing.draw_mask`. A ``per_image`` law is averaged over the images
            0, ..., draws - 1; a ``fixed`` law gives the one mask of its seed, zeros and ones.

    Returns:
        (S, S) float64 in [0, 1], on the generator's device.

    Raises:
        UserError: if draws is not positive, or a source of randomness is missing.
    """
    if draws < 1:
        raise UserError(f"exposure draws: expected a positive number, got {draws}; use 4096")
    device = torch.device("cpu") if generator is None else generator.device
    total = torch.zeros(size, size, dtype=torch.int64, device=device)
    chunk = max(1, _CHUNK_PIXELS // size**2)
    for start in range(0, draws, chunk):
        index = torch.arange(start, min(start + chunk, draws), device=device)
        total += draw_mask(law, index, size, generator=generator, seed=seed).sum(0)
    return (total.double() if device.type != "mps" else total.cpu().double()) / draws


def expected_exposure(law: ErasingLaw, size: int) -> Tensor:
    """The exact probability that a position is erased, over draws and, for fixed locations, over seeds.

    A square of side s, in bounds, covers a row in c_s of its S - s + 1 places, and rows and columns are
    independent; s is drawn by rounding, with up to ten redraws of sides that do not fit.

    Args:
        law: with shape ``square`` or ``pixels``.
        size: side S of the images in pixels.

    Returns:
        (S, S) float64 in [0, 1].

    Raises:
        UserError: for other shapes.
    """
    if law.shape == "pixels":
        counts, weights = _rounded(law.scale, size, power=1)
        return torch.full(
            (size, size), law.p * float((counts * weights).sum()) / size**2, dtype=torch.float64
        )
    if law.shape != "square":
        raise UserError(
            f"expected_exposure: expected shape square or pixels, got {law.shape}; estimate with exposure()"
        )
    sides, weights = _rounded(law.scale, size, power=2)
    fits = sides < size
    missed = weights[~fits].sum()
    # A weighted sum over the redraws: a square comes out unless all ten were too large.
    sides, weights = sides[fits], weights[fits] * sum(missed**k for k in range(REDRAWS))
    if law.location == "toroidal":
        covered = (sides / size)[:, None].expand(-1, size)
    else:
        line = torch.arange(size, dtype=torch.float64)
        last = size - sides[:, None]
        places = torch.minimum(line, last) - torch.clamp(line - sides[:, None] + 1, min=0) + 1
        covered = places / (last + 1)
    return law.p * torch.einsum("s,si,sj->ij", weights, covered, covered)


def mean_area(law: ErasingLaw, size: int) -> float:
    """The exact mean erased fraction of an image; see :func:`expected_exposure`."""
    return float(expected_exposure(law, size).mean())


def _rounded(scale: tuple[float, float], size: int, *, power: int) -> tuple[Tensor, Tensor]:
    """Values and probabilities (float64) of round((u S^2)^(1/power)) for u uniform between the bounds."""
    low, high = scale
    values = torch.arange(size ** (2 // power) + 1, dtype=torch.float64)
    if low == high:
        return torch.tensor(float(low * size**2)).double().pow(1 / power).round()[None], values.new_ones(1)
    lower = ((values - 0.5).clamp(min=0) ** power / size**2).clamp(low, high)
    upper = ((values + 0.5) ** power / size**2).clamp(low, high)
    return values, (upper - lower) / (high - low)
