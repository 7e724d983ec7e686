"""A small StyleGAN2 for faces of 16 to 64 pixels (Karras et al. 2020, 'Analyzing and improving the image
quality of StyleGAN'), cut to what one CPU core can train.

Kept: equalised learning rates, mapping network, modulation and demodulation, skip generator, residual
discriminator, minibatch standard deviation. Changed for speed: modulation is applied to activations instead
of to weights (no grouped convolutions, which are slow on CPUs; equal up to rounding); up-sampling
convolutions work at the lower resolution and are followed by the [1, 3, 3, 1] filter (bilinear); the
discriminator starts with a strided stem and pools before its down-sampling convolutions. One w drives all
layers (W, not W+) and the noise is constant, so that an image is a deterministic function of its latent.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError

SLOPE = 0.2
CHANNELS = ("generator_channels", "discriminator_channels")


@dataclass(frozen=True)
class StyleSpec:
    """Shape of both networks.

    Attributes:
        image_size: a power of two, at least 8.
        latent_dim: length of z and of w.
        mapping_layers: fully connected layers from z to w.
        generator_channels: channels at 4, 8, ..., image_size.
        discriminator_channels: channels at image_size / 2 (after the stem), ..., 8, 4.
    """

    image_size: int = 64
    latent_dim: int = 128
    mapping_layers: int = 4
    generator_channels: tuple[int, ...] = (160, 160, 96, 48, 32)
    discriminator_channels: tuple[int, ...] = (48, 96, 128, 160)

    def __post_init__(self) -> None:
        for name in CHANNELS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, expected in zip(CHANNELS, levels(self.image_size), strict=True):
            if len(getattr(self, name)) != expected:
                raise UserError(
                    f"{name}: expected {expected} widths for {self.image_size} pixels, got {len(getattr(self, name))}; "
                    "give one per resolution"
                )

    def as_dict(self) -> dict[str, Any]:
        """JSON values; ``StyleSpec(**spec.as_dict()) == spec``."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def levels(image_size: int) -> tuple[int, int]:
    """Resolutions of the generator and the discriminator.

    Raises:
        UserError: another size than 8, 16, 32 ...
    """
    if image_size < 8 or image_size & (image_size - 1):
        raise UserError(
            f"image_size: stylegan expected a power of two of at least 8, got {image_size}; change it, or take "
            "stylegan out of the setup's priors"
        )
    return image_size.bit_length() - 2, image_size.bit_length() - 3


def spec_for(image_size: int) -> StyleSpec:
    """The default networks at ``image_size`` (32 or 64), about 1.2 M parameters each."""
    defaults = StyleSpec()
    kept, drop = levels(image_size)[0], (defaults.image_size // image_size).bit_length() - 1
    if drop < 0:
        raise UserError(
            f"image_size: stylegan has networks of its own for at most {defaults.image_size} pixels, got {image_size}; "
            f"lower it, or describe others in the setup: priors.stylegan.networks: {{image_size: {image_size}, "
            f"generator_channels: [{kept} widths], discriminator_channels: [{kept - 1} widths]}}"
        )
    return StyleSpec(
        image_size=image_size,
        generator_channels=defaults.generator_channels[:kept],
        discriminator_channels=defaults.discriminator_channels[drop:],
    )


class Linear(nn.Module):
    """Fully connected layer with equalised learning rate (weights N(0, 1), scaled when used)."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / multiplier))
        self.multiplier = multiplier
        self.scale = multiplier / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.multiplier)


class Conv(nn.Module):
    """Convolution with equalised learning rate."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride, self.padding = stride, (kernel - 1) // 2
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        weight = (self.weight * (self.scale * gain)).contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias * gain
        return F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU, in place: callers pass what no other node needs."""
    return F.leaky_relu(x, SLOPE, inplace=True)


def upsample(x: Tensor) -> Tensor:
    """Twice the size by the [1, 3, 3, 1] filter (borders replicated), which is bilinear interpolation."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class MappingNetwork(nn.Module):
    """z (n, d) ~ N(0, I) to w (n, d)."""

    def __init__(self, latent_dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(latent_dim, latent_dim, multiplier=0.01) for _ in range(layers))

    def forward(self, z: Tensor) -> Tensor:
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = activate(layer(x)) * math.sqrt(2)
        return x


class ModulatedConv(nn.Module):
    """Modulate, convolve, demodulate, add constant noise and bias, activate.

    Demodulation: d[n, o] = rsqrt(sum_{i,k} (W[o, i, k] s[n, i])^2), so that inputs of unit variance give
    outputs of unit variance (StyleGAN2, eq. 3).
    """

    def __init__(self, inputs: int, outputs: int, latent_dim: int, size: int, *, up: bool = False) -> None:
        super().__init__()
        self.affine = Linear(latent_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, size, size))
        self.scale = 1 / math.sqrt(inputs * 9)
        self.up = up

    def convolve(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Convolution of the modulated input (n, o, h, h) and its demodulation factors (n, o, 1, 1)."""
        style = self.affine(w)
        weight = self.weight * self.scale
        energy = weight.square().sum((2, 3))
        demodulation = torch.rsqrt(style.float().square() @ energy.t() + 1e-8)
        x = x * style.to(x.dtype)[:, :, None, None]
        y = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), padding=1)
        return y, demodulation[:, :, None, None]

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y, demodulation = self.convolve(x, w)
        if self.up:
            y = upsample(y)
        # leaky ReLU commutes with positive factors, so its gain sqrt 2 rides on demodulation, bias and noise
        offset = (self.bias[None, :, None, None] + self.noise_strength * self.noise) * math.sqrt(2)
        offset = offset.to(y.dtype).contiguous(memory_format=torch.channels_last)
        y = (y * (demodulation * math.sqrt(2)).to(y.dtype)).add_(offset)
        return activate(y)


class ToRGB(nn.Module):
    def __init__(self, inputs: int, latent_dim: int) -> None:
        super().__init__()
        self.affine = Linear(latent_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) * self.scale
        return F.conv2d(x * style.to(x.dtype)[:, :, None, None], self.weight, self.bias)


class SynthesisBlock(nn.Module):
    """One resolution: (features, rgb, w) -> (features, rgb). The first ignores its features and rgb."""

    def __init__(self, inputs: int, outputs: int, latent_dim: int, size: int) -> None:
        super().__init__()
        self.first = size == 4
        if self.first:
            self.constant = nn.Parameter(torch.randn(1, outputs, 4, 4))
        else:
            self.conv0 = ModulatedConv(inputs, outputs, latent_dim, size, up=True)
        self.conv1 = ModulatedConv(outputs, outputs, latent_dim, size)
        self.to_rgb = ToRGB(outputs, latent_dim)

    def forward(self, features: Tensor | None, rgb: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            x = self.constant.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        else:
            x = self.conv0(features, w)
        x = self.conv1(x, w)
        own = self.to_rgb(x, w).float()
        return x, own if rgb is None else upsample(rgb) + own


class Generator(nn.Module):
    """z -> w -> images. :meth:`forward` returns images on the [0, 1] scale, not yet clamped."""

    def __init__(self, spec: StyleSpec) -> None:
        super().__init__()
        self.spec = spec
        self.mapping = MappingNetwork(spec.latent_dim, spec.mapping_layers)
        widths = spec.generator_channels
        self.blocks = nn.ModuleList(
            SynthesisBlock(widths[max(i - 1, 0)], width, spec.latent_dim, 4 << i)
            for i, width in enumerate(widths)
        )

    def synthesis(self, w: Tensor) -> Tensor:
        """w (n, d) to images (n, 3, S, S) around [0, 1], unbounded, fp32."""
        features = rgb = None
        for block in self.blocks:
            features, rgb = block(features, rgb, w)
        return rgb * 0.5 + 0.5

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesis(self.mapping(z))


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = Conv(inputs, inputs, 3)
        self.conv1 = Conv(inputs, outputs, 3)
        self.skip = Conv(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = activate(self.conv0(x, gain=math.sqrt(2)))
        y = activate(
            self.conv1(F.avg_pool2d(y, 2))
        )  # gains sqrt 2 of the activation and sqrt .5 of the sum cancel
        return y + self.skip(F.avg_pool2d(x, 2), gain=math.sqrt(0.5))


class Discriminator(nn.Module):
    """Images (n, 3, S, S) in [0, 1] to realness logits (n,), fp32.

    In training the minibatch standard deviation is taken over groups of four; in evaluation its running mean
    is used instead, so that an image's logit does not depend on the other images of the batch.
    """

    def __init__(self, spec: StyleSpec) -> None:
        super().__init__()
        widths = spec.discriminator_channels
        self.image_size = spec.image_size
        self.stem = Conv(3, widths[0], 4, stride=2)
        self.blocks = nn.ModuleList(DiscriminatorBlock(a, b) for a, b in pairwise(widths))
        self.last = Conv(widths[-1] + 1, widths[-1], 3)
        self.hidden = Linear(widths[-1] * 16, widths[-1])
        self.output = Linear(widths[-1], 1)
        self.register_buffer("deviation", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        x = activate(self.stem(x, gain=math.sqrt(2)))
        for block in self.blocks:
            x = block(x)
        x = torch.cat([x, self._deviation(x)], 1)
        x = activate(self.last(x, gain=math.sqrt(2)))
        x = activate(self.hidden(x.flatten(1))) * math.sqrt(2)
        return self.output(x).squeeze(1).float()

    def _deviation(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        if not self.training:
            return self.deviation.to(x.dtype).expand(n, 1, height, width)
        size = next(size for size in (4, 3, 2, 1) if n % size == 0)
        groups = x.float().reshape(size, n // size, *x.shape[1:])
        deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        with torch.no_grad():
            self.deviation.lerp_(deviation.mean(), 0.01)
        return deviation.repeat(size)[:, None, None, None].expand(n, 1, height, width).to(x.dtype)


def build_networks(spec: StyleSpec, *, seed: int = 0) -> tuple[Generator, Discriminator]:
    """Both networks with random weights from ``seed``; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Generator(spec), Discriminator(spec)
