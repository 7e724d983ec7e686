"""The inversion-specific GAN of KEDMI (Chen et al., ICCV 2021, 'Knowledge-enriched distributional model
inversion attacks'): a DCGAN generator, and a discriminator that has also learned the target's classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError
from lib.models.classifier import load_weights
from lib.priors.interface import Block, Prior

SLOPE = 0.2


@dataclass(frozen=True)
class DcganSpec:
    """Shape of both networks; the published one by default.

    Attributes:
        image_size: a power of two, at least 16.
        latent_dim: length of z.
        width: channels at half the image size; they double with each halving.
    """

    image_size: int = 64
    latent_dim: int = 100
    width: int = 64

    def __post_init__(self) -> None:
        size = self.image_size
        if size < 16 or size & (size - 1):
            raise UserError(
                f"image_size: expected a power of two of at least 16, got {size}; resize the images"
            )
        for name in ("latent_dim", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}; raise it")

    @property
    def widths(self) -> list[int]:
        """Channels at half the image size, a quarter, ..., 4 pixels."""
        return [self.width << i for i in range(self.image_size.bit_length() - 3)]


class DcganGenerator(nn.Module):
    """z (n, d) ~ N(0, I) to images (n, 3, S, S) in (0, 1), fp32; 5 142 083 parameters at the default shape."""

    def __init__(self, spec: DcganSpec) -> None:
        super().__init__()
        self.spec = spec
        coarse_first = spec.widths[::-1]
        features = coarse_first[0] * 16
        self.first = nn.Sequential(
            nn.Linear(spec.latent_dim, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()
        )
        blocks = [_up(a, b) for a, b in pairwise(coarse_first)]
        last = nn.ConvTranspose2d(spec.width, 3, 5, stride=2, padding=2, output_padding=1)
        self.blocks = nn.Sequential(*blocks, last)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        return self.blocks(x).float().sigmoid()


def _up(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class InversionDiscriminator(nn.Module):
    """Images (n, 3, S, S) in [0, 1] to logits (n, K) of the target's K classes, fp32.

    'Generated' is a class of its own whose logit is fixed at 0, so that p(real) = sigmoid(logsumexp logits)
    (Salimans et al. 2016, section 5).

    The published network has a minibatch discrimination layer before the last one. It is left out: its kernel
    exp(-L1 distance), over 50 dimensions of weights ~ N(0, 1), underflows to exactly 0 even between images that
    differ by 1 % of noise, so that it never gets a gradient. Were it alive, an image's realness would depend on
    the other images of the batch. Normalisation is per image for the same reason.
    """

    def __init__(self, spec: DcganSpec, classes: int) -> None:
        super().__init__()
        self.spec, self.classes = spec, classes
        widths = spec.widths[:-1]
        halve = [_down(a, b, 5) for a, b in pairwise((3, *widths))]
        self.blocks = nn.Sequential(*halve, _down(widths[-1], widths[-1], 3))
        self.output = nn.Linear(widths[-1] * 16, classes)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) before the last layer, which the generator is to match, and logits (n, K); fp32."""
        x = self.blocks(images.contiguous(memory_format=torch.channels_last))
        features = x.flatten(1)
        return features.float(), self.output(features).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


def _down(inputs: int, outputs: int, kernel: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2)
    return nn.Sequential(
        convolution, nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(SLOPE, inplace=True)
    )


def build_inversion_networks(
    spec: DcganSpec, classes: int, *, seed: int = 0
) -> tuple[DcganGenerator, InversionDiscriminator]:
    """Both networks with torch's default random weights from ``seed``; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return DcganGenerator(spec), InversionDiscriminator(spec, classes)


class InversionGan(Prior):
    """Frozen generator of standard normal latents, and its discriminator as critic."""

    name: ClassVar[str] = "inversion_gan"

    def __init__(self, generator: DcganGenerator, discriminator: InversionDiscriminator) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.discriminator = discriminator.eval().requires_grad_(False)
        self.latent_dim, self.image_size = generator.spec.latent_dim, generator.spec.image_size
        self.classes = discriminator.classes

    def critic(self, images: Tensor) -> Tensor:
        """log p(real) = logsigmoid(logsumexp D(x)), at most 0: its negative is KEDMI's softplus(-logsumexp D(x))."""
        return F.logsigmoid(self.discriminator(images).logsumexp(1))

    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        z = torch.randn(n, self.latent_dim, generator=generator, device=generator.device)
        return z.to(self.generator.first[0].weight.device) * truncation

    def synthesise(self, latents: Tensor) -> Tensor:
        return self.generator(latents)  # ends in a sigmoid, as published: there is nothing to clamp

    def log_density(self, latents: Tensor) -> Tensor:
        return -0.5 * latents.float().square().sum(1)

    def blocks(self) -> list[Block]:
        return []

    def to(self, device: torch.device | str) -> Self:
        self.generator.to(device)
        self.discriminator.to(device)
        return self

    def state(self) -> dict[str, Tensor]:
        return self._parts(self.generator, self.discriminator).state_dict()

    def meta(self) -> dict[str, Any]:
        networks = asdict(self.generator.spec)
        return {
            "name": self.name,
            "image_size": self.image_size,
            "networks": networks,
            "classes": self.discriminator.classes,
        }

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        networks = build_inversion_networks(DcganSpec(**meta["networks"]), meta["classes"])
        load_weights(cls._parts(*networks), dict(tensors), where=f"{cls.name} prior")
        return cls(*networks)

    @staticmethod
    def _parts(generator: nn.Module, discriminator: nn.Module) -> nn.ModuleDict:
        return nn.ModuleDict({"generator": generator, "discriminator": discriminator})
