"""Face-recognition network with improved residual units (the "IR" bodies of face.evoLVe, here shallow).

Unlike the target it normalises before its convolutions, uses PReLU, keeps the spatial layout up to a
fully connected embedding and has no global pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PReLU(nn.PReLU):
    """PReLU whose bf16 is fast on a CPU: there torch's own kernel takes three times as long as its parts. The
    values are the same to the last bit."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16 or x.device.type != "cpu":
            return super().forward(x)
        positive = x.relu()
        weight = self.weight.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
        return torch.addcmul(positive, weight, x - positive)


class Unit(nn.Module):
    """BN -> conv -> PReLU -> conv (stride) -> BN, plus a strided shortcut; no activation after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        # the stride is taken here: the weight gradient of a strided 1x1 convolution of fewer than 8 channels writes
        # outside its memory on CPUs without AVX-512 (channels last, torch 2.14.1)
        return self.residual(x) + self.shortcut(x[:, :, :: self.stride, :: self.stride])


class ImprovedResidual(nn.Module):
    """(B,3,S,S) -> (B,feature_size), batch-normalised without affine.

    Args:
        widths: channels of the stages; every stage starts with stride 2.
        units: residual units per stage. dropout: before the embedding.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        units: Sequence[int] = (1, 2, 2, 2),
        feature_size: int = 256,
        image_size: int = 64,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            PReLU(widths[0]),
        ]
        inputs, side = widths[0], image_size
        for width, count in zip(widths, units, strict=True):
            for number in range(count):
                layers.append(Unit(inputs, width, 2 if number == 0 else 1))
                inputs = width
            side = (side + 1) // 2  # strided convolutions round up
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(inputs))
        self.embed = nn.Sequential(
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(inputs * side * side, feature_size, bias=False),
            nn.BatchNorm1d(feature_size, affine=False),
        )
        self.feature_size = feature_size

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.body(x))
