"""The prior's generator as the published one computes: NCHW, and modulated weights instead of activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.priors import Generator, clamp_through
from lib.priors.stylegan import ModulatedConv, ToRGB, activate, upsample


def synthesise_nchw(generator: Generator, w: Tensor, *, fused: bool) -> Tensor:
    """w (n, d) to images (n, 3, S, S) in [0, 1]: what ``StylePrior.synthesise`` gives, up to rounding.

    Args:
        fused: modulate the weights, one set per sample, and convolve in groups, as StyleGAN2-ADA's generator
            does in evaluation mode and fp32. Else modulate the activations.
    """
    features = rgb = None
    for block in generator.blocks:
        if block.first:
            features = block.constant.expand(len(w), -1, -1, -1).contiguous()
        else:
            features = _layer(block.conv0, features, w, fused)
        features = _layer(block.conv1, features, w, fused)
        own = _to_rgb(block.to_rgb, features, w, fused)
        rgb = own if rgb is None else upsample(rgb) + own
    return clamp_through(rgb * 0.5 + 0.5)


def _layer(layer: ModulatedConv, x: Tensor, w: Tensor, fused: bool) -> Tensor:
    style, weight = layer.affine(w), layer.weight * layer.scale
    if fused:
        own = weight * style[:, None, :, None, None]
        own = own * torch.rsqrt(own.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = _grouped(x, own, padding=1)
        demodulation = torch.ones((), device=x.device)
    else:
        energy = weight.square().sum((2, 3))
        demodulation = torch.rsqrt(style.square() @ energy.t() + 1e-8)[:, :, None, None]
        y = F.conv2d(x * style[:, :, None, None], weight, padding=1)
    if layer.up:
        y = upsample(y)
    offset = (layer.bias[None, :, None, None] + layer.noise_strength * layer.noise) * math.sqrt(2)
    return activate((y * (demodulation * math.sqrt(2))).add_(offset))


def _to_rgb(layer: ToRGB, x: Tensor, w: Tensor, fused: bool) -> Tensor:
    style = layer.affine(w) * layer.scale
    if fused:
        rgb = _grouped(x, layer.weight * style[:, None, :, None, None], padding=0)
        return rgb + layer.bias[:, None, None]
    return F.conv2d(x * style[:, :, None, None], layer.weight, layer.bias)


def _grouped(x: Tensor, weights: Tensor, *, padding: int) -> Tensor:
    """A convolution with other weights (n, o, i, k, k) for each sample."""
    n, _, height, width = x.shape
    y = F.conv2d(x.reshape(1, -1, height, width), weights.flatten(0, 1), padding=padding, groups=n)
    return y.view(n, -1, height, width)
