"""Differentiable augmentation of real and generated images (Zhao et al. 2020, 'Differentiable augmentation
for data-efficient GAN training'). Each kind has a probability below one, so that untouched images stay
frequent and augmentations do not leak into the generator (Karras et al. 2020, 'Training GANs with limited
data', section 2.2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TRANSLATION = 0.125
CUTOUT = 0.4
BRIGHTNESS = 0.2
SATURATION = 1.0
CONTRAST = 0.5


def augment(images: Tensor, probability: float, *, generator: torch.Generator) -> Tensor:
    """Colour, translation (by up to an eighth) and cutout (a square of 0.4 sides), each with ``probability``.

    Args:
        images: (n, 3, S, S) around [0, 1]; not clamped, so that gradients pass.

    Returns:
        Images of the same shape. Pixels moved in or cut out are mid-grey.
    """
    if probability == 0:
        return images
    n, device = len(images), images.device
    draws = torch.rand(3 + 3 + 2 + 2, n, 1, 1, 1, generator=generator, device=device)
    apply = (draws[:3] < probability).to(images.dtype)
    uniform = draws[3:] * 2 - 1  # in [-1, 1)
    x = images - 0.5
    x = _colour(x, uniform[:3] * apply[0])
    x = _translate(x, (uniform[3:5] * apply[1]).flatten(1))
    return _cut(x, uniform[5:7], apply[2]) + 0.5


def _colour(x: Tensor, amount: Tensor) -> Tensor:
    brightness, saturation, contrast = (
        amount[0] * BRIGHTNESS,
        1 + amount[1] * SATURATION,
        1 + amount[2] * CONTRAST,
    )
    grey = x.mean(1, keepdim=True)
    mean = x.mean((1, 2, 3), keepdim=True)
    # saturation keeps each pixel's grey value and contrast the image's mean
    return (grey + (x - grey) * saturation - mean) * contrast + mean + brightness


def _translate(x: Tensor, amount: Tensor) -> Tensor:
    size = x.shape[-1]
    whole = (amount * (TRANSLATION * size)).round() * (2 / size)  # grid_sample's unit is half an image
    theta = torch.eye(2, 3, device=x.device, dtype=x.dtype).repeat(x.shape[0], 1, 1)
    theta[:, :, 2] = whole.t()
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _cut(x: Tensor, centre: Tensor, apply: Tensor) -> Tensor:
    position = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)
    rows = (position.view(1, 1, -1, 1) - centre[0]).abs() < CUTOUT
    columns = (position.view(1, 1, 1, -1) - centre[1]).abs() < CUTOUT
    return x * (1 - (rows & columns).to(x.dtype) * apply)
