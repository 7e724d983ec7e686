"""The target: a residual network of four stages with two blocks each (He et al., CVPR 2016, basic blocks)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """relu(F(x) + skip_scale * shortcut(x)); ``skip_scale`` is a buffer so that defences on skips can set it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            # rounds up, as the strided convolution does
            pool = nn.AvgPool2d(stride, ceil_mode=True) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(
                pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )
        self.register_buffer("skip_scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.skip_scale * self.shortcut(x))


class Residual(nn.Module):
    """(B,3,S,S) -> (B,d) with d = the last width. The feature vector is normalised to zero mean and unit
    variance (no affine), so that features of two models have the same norm, sqrt(d).

    Args:
        widths: channels of the four stages. stem_stride: 2 halves the resolution first.
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 96, 192), stem_stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stem_stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        inputs, stages = widths[0], []
        for number, width in enumerate(widths):
            stages.append(
                nn.Sequential(Block(inputs, width, 1 if number == 0 else 2), Block(width, width, 1))
            )
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.normalise = nn.LayerNorm(inputs, elementwise_affine=False)
        self.feature_size = inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(self.stages(self.stem(x)).mean((2, 3)))
