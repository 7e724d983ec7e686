"""The class-conditional GAN of PLG-MI (Yuan et al., AAAI 2023): a residual generator with class-conditional batch
normalisation, and a projection discriminator (Miyato and Koyama 2018) with spectral normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from lib.errors import UserError
from lib.models.classifier import load_weights
from lib.priors.interface import Block, Prior

MOST_CLASSES = 2048  # whole numbers that fp16 holds, in which latents are stored


@dataclass(frozen=True)
class ConditionalSpec:
    """Shape of both networks; the published one by default, but for the classes.

    Attributes:
        classes: of the target.
        image_size: a power of two, at least 8.
        latent_dim: length of z, without the class.
        width: channels at the full image size; they double with each halving.
    """

    classes: int
    image_size: int = 64
    latent_dim: int = 128
    width: int = 64

    def __post_init__(self) -> None:
        size = self.image_size
        if size < 8 or size & (size - 1):
            raise UserError(
                f"image_size: expected a power of two of at least 8, got {size}; resize the images"
            )
        for name in ("latent_dim", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}; raise it")
        if not 2 <= self.classes <= MOST_CLASSES:
            raise UserError(
                f"classes: expected 2 to {MOST_CLASSES} (the class is stored in fp16 beside z), got "
                f"{self.classes}; use a target of fewer classes"
            )

    @property
    def widths(self) -> list[int]:
        """Channels at the full image size, half of it, ..., 4 pixels."""
        return [self.width << i for i in range(self.image_size.bit_length() - 2)]


class ConditionalNorm(nn.Module):
    """Batch normalisation, then a scale and a shift of each class; the statistics are those of all classes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale, shift = (part(labels).to(x.dtype)[:, :, None, None] for part in (self.scale, self.shift))
        return torch.addcmul(shift, self.norm(x), scale)


class UpBlock(nn.Module):
    """Residual block that doubles the size. Its shortcut's 1x1 convolution comes before the interpolation: the two
    commute, and a quarter of the pixels is to be convolved."""

    def __init__(self, inputs: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.norm0, self.norm1 = ConditionalNorm(inputs, classes), ConditionalNorm(outputs, classes)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = self.conv0(_upsample(F.relu(self.norm0(x, labels))))
        return self.conv1(F.relu(self.norm1(y, labels))) + _upsample(self.skip(x))


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class ConditionalGenerator(nn.Module):
    """z (n, d) ~ N(0, I) and classes (n,) to images (n, 3, S, S) in (0, 1), fp32.

    At width 64 it has 17 973 379 parameters with 1000 classes, 12 558 979 with 60. The published code shows the
    output of the tanh, in (-1, 1), to networks whose real images are in [0, 1], and lets training sort it out; here
    it is mapped to (0, 1) first.
    """

    def __init__(self, spec: ConditionalSpec) -> None:
        super().__init__()
        self.spec = spec
        coarse_first = spec.widths[::-1]
        self.first = nn.Linear(spec.latent_dim, coarse_first[0] * 16)
        self.blocks = nn.ModuleList(UpBlock(a, b, spec.classes) for a, b in pairwise(coarse_first))
        self.last = nn.Sequential(nn.BatchNorm2d(spec.width), nn.ReLU(), nn.Conv2d(spec.width, 3, 1))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        x = self.first(z).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, labels)
        return (self.last(x).float().tanh() + 1) / 2


class DownBlock(nn.Module):
    """Residual block that halves the size. The shortcut pools first, which commutes with its 1x1 convolution.

    Args:
        first: of the network: no activation before the first convolution, which changes the channels.
    """

    def __init__(self, inputs: int, outputs: int, *, first: bool = False) -> None:
        super().__init__()
        between = outputs if first else inputs
        self.before: nn.Module = nn.Identity() if first else nn.ReLU()
        self.conv0 = _normed(nn.Conv2d(inputs, between, 3, padding=1), gain=math.sqrt(2))
        self.conv1 = _normed(nn.Conv2d(between, outputs, 3, padding=1), gain=math.sqrt(2))
        self.skip = _normed(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.conv0(self.before(x))))
        return F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2))


def _normed(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """Xavier weights, zero bias, spectral normalisation."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer)


class ProjectionDiscriminator(nn.Module):
    """Images (n, 3, S, S) in [0, 1] and their classes (n,) to realness logits w h + <e_y, h> (n,), fp32.

    At width 64 it has 11 165 441 parameters with 1000 classes, 10 202 881 with 60. No image influences another's
    logit.
    """

    def __init__(self, spec: ConditionalSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = spec.widths
        self.blocks = nn.ModuleList(DownBlock(a, b, first=a == 3) for a, b in pairwise((3, *widths)))
        self.output = _normed(nn.Linear(widths[-1], 1))
        self.classes = _normed(nn.Embedding(spec.classes, widths[-1]))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        h = F.relu(x).float().sum((2, 3))
        with torch.autocast(h.device.type, enabled=False):
            return self.output(h)[:, 0] + (self.classes(labels) * h).sum(1)


def build_conditional_networks(
    spec: ConditionalSpec, *, seed: int = 0
) -> tuple[ConditionalGenerator, ProjectionDiscriminator]:
    """Both networks with random weights from ``seed``; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ConditionalGenerator(spec), ProjectionDiscriminator(spec)


class ConditionalGan(Prior):
    """Frozen generator of (z, class).

    A latent is (z_1 ... z_d, class index): whatever handles latents handles the class with them. The class is
    rounded and gets no gradient; one beyond the range is the nearest that there is. There is no critic: the
    discriminator judges an image given its class, and the attack this prior is made for does not ask it.
    """

    name: ClassVar[str] = "conditional_gan"

    def __init__(self, generator: ConditionalGenerator) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.classes, self.image_size = generator.spec.classes, generator.spec.image_size
        self.latent_dim = generator.spec.latent_dim + 1

    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        """z ~ N(0, I), shrunk by the truncation, and classes drawn uniformly, which it leaves alone."""
        z = torch.randn(n, self.latent_dim - 1, generator=generator, device=generator.device)
        labels = torch.randint(self.classes, (n, 1), generator=generator, device=generator.device)
        return torch.cat([z * truncation, labels.float()], 1).to(self.generator.first.weight.device)

    def synthesise(self, latents: Tensor) -> Tensor:
        labels = latents[:, -1].detach().round().long().clamp(0, self.classes - 1)
        return self.generator(latents[:, :-1], labels)  # in (0, 1): there is nothing to clamp

    def log_density(self, latents: Tensor) -> Tensor:
        """Of z given the class."""
        return -0.5 * latents[:, :-1].float().square().sum(1)

    def blocks(self) -> list[Block]:
        return []

    def to(self, device: torch.device | str) -> Self:
        self.generator.to(device)
        return self

    def state(self) -> dict[str, Tensor]:
        return self.generator.state_dict()

    def meta(self) -> dict[str, Any]:
        return {"name": self.name, "image_size": self.image_size, "networks": asdict(self.generator.spec)}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        generator, _ = build_conditional_networks(ConditionalSpec(**meta["networks"]))
        load_weights(generator, dict(tensors), where=f"{cls.name} prior")
        return cls(generator)
