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
