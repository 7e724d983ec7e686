"""Batched augmentation: one sampling grid for all geometry, one affine map of colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.training.interface import Augmentation

LUMA = (0.299, 0.587, 0.114)


def augment(images: Tensor, law: Augmentation, *, generator: torch.Generator) -> Tensor:
    """Rotate, shift, zoom, mirror and recolour each image independently.

    Args:
        images: (B,3,S,S) in [0,1].

    Returns:
        (B,3,S,S) in [0,1]; borders are reflected.
    """
    count, device = len(images), images.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) * 2 - 1

    angle = uniform(count) * math.radians(law.rotation)
    zoom = torch.exp(uniform(count) * law.scale)
    mirror = torch.where(uniform(count) < 2 * law.flip - 1, -1.0, 1.0)
    shift = uniform(count, 2) * law.translation * 2
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    rows = [
        torch.stack([mirror * cosine, -sine, shift[:, 0]], 1),
        torch.stack([mirror * sine, cosine, shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    grey = torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))[:, None]
    images = grey + (images - grey) * (1 + law.saturation * uniform(count, 1, 1, 1))
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + law.contrast * uniform(count, 1, 1, 1))
    return (images * (1 + law.brightness * uniform(count, 1, 1, 1))).clamp(0, 1)
