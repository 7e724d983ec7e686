"""A toy world for attacks: a prior without a network and a target whose pictures it can make."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.runtime import generator

SIZE, DIM, CLASSES = 8, 6, 5


class ToyPrior:
    """Images sigmoid(z A): standard normal latents, no network."""

    name = "toy"
    slope = 1.0
    latent_dim = DIM
    critic = None

    def __init__(self, size: int = SIZE) -> None:
        self.image_size = size
        self.matrix = torch.randn(DIM, 3 * size * size, generator=generator(0, "prior")) * 0.7

    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        return torch.randn(n, DIM, generator=generator) * truncation

    def synthesise(self, latents: Tensor) -> Tensor:
        return (latents @ self.matrix).sigmoid().view(-1, 3, self.image_size, self.image_size)

    def log_density(self, latents: Tensor) -> Tensor:
        return -0.5 * latents.square().sum(1)


class ToyTarget(nn.Module):
    """Linear softmax whose class pictures the prior can make, with dropout and batch norm so that the mode
    matters."""

    num_classes, image_size = CLASSES, SIZE

    def __init__(self, prior: ToyPrior) -> None:
        super().__init__()
        means = prior.synthesise(1.5 * torch.eye(DIM)[:CLASSES]) - 0.5
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(3 * SIZE * SIZE, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(means.flatten(1) * 0.4)
            self.head.bias.zero_()

    def features(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(images - 0.5)).flatten(1)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


class SizedTarget(nn.Module):
    """A random linear softmax of any image size and class count, with batch norm so that the mode matters."""

    def __init__(self, size: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.num_classes, self.image_size = classes, size
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * size * size, classes)
        stream = generator(0, "target", size, classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=stream) * 4 / size)
            self.head.bias.zero_()

    def features(self, images: Tensor) -> Tensor:
        return self.norm(images - 0.5).flatten(1)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


def smooth_images(count: int, size: int, *, seed: int = 0) -> Tensor:
    """(count, 3, size, size) uint8 of low frequencies."""
    coarse = torch.rand(count, 3, 2, 2, generator=generator(seed, "images"))
    fine = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (fine * 255).round().to(torch.uint8)
