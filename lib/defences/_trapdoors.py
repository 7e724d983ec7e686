"""What Trap-MID needs beside its algorithm: balanced labels, a geometric view that stays, a small discriminator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.training.interface import View

WIDTHS = (32, 64, 128, 256)


class Deck:
    """Classes dealt one after another: all of them in random order, then all again, so that after any number of
    draws no class is two ahead of another."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.restart()

    def restart(self) -> None:
        self._left = torch.empty(0, dtype=torch.int64)

    def deal(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) int64 on the generator's device."""
        left = self._left.to(generator.device)
        while len(left) < count:
            more = torch.randperm(self.classes, generator=generator, device=generator.device)
            left = torch.cat([left, more])
        dealt, self._left = left[:count], left[count:]
        return dealt


def draw_geometry(
    count: int, generator: torch.Generator, *, chance: float, area: float, degrees: float
) -> View:
    """A fixed map of ``count`` images (B,3,S,S): of each, independently and each with probability ``chance``, a square
    of ``area`` to 1 of the area is enlarged, it is mirrored, it is turned by up to that many ``degrees``. One sampling
    for all; what lies outside the image is its reflection. Differentiable."""
    draws = torch.rand(count, 7, generator=generator, device=generator.device)
    cropped, mirrored, turned = (draws[:, :3] < chance).unbind(1)
    side = torch.where(cropped, (1 - (1 - area) * draws[:, 3]).sqrt(), 1.0)
    centre = (1 - side)[:, None] * (2 * draws[:, 4:6] - 1)
    angle = torch.where(turned, math.radians(degrees) * (2 * draws[:, 6] - 1), 0.0)
    mirror = torch.where(mirrored, -1.0, 1.0)
    rows = [
        torch.stack([side * mirror * angle.cos(), -side * mirror * angle.sin(), centre[:, 0]], 1),
        torch.stack([side * angle.sin(), side * angle.cos(), centre[:, 1]], 1),
    ]
    theta = torch.stack(rows, 1)

    def view(images: Tensor) -> Tensor:
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    return view


class Discriminator(nn.Module):
    """images (B,3,S,S) in [0,1] -> (B,) logits, high where it takes the photo for one without a trigger. Four
    convolutions without batch statistics, so that photos are judged one by one."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(2 * images - 1).mean((2, 3)))[:, 0]
