"""A trained small StyleGAN2 behind the prior interface; latents are w, shared by all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.errors import UserError
from lib.priors.interface import Block, Prior, clamp_through
from lib.priors.stylegan import SLOPE, Discriminator, Generator, StyleSpec, build_networks

STATISTICS_SAMPLES = 10_000


class StylePrior(Prior):
    """Frozen generator, and its discriminator as critic.

    The mean latent and the density are those of 10 000 mapped latents from a fixed seed; they are recomputed
    on loading instead of stored, so that they always belong to the weights at hand (fp16 copies included).

    The density is Gaussian in P space, where w lives before the mapping's last leaky ReLU (Zhu et al. 2020,
    'Improved StyleGAN embedding: where are the good latents?', section 3.2): w itself is one-sided.
    """

    name: ClassVar[str] = "stylegan"
    slope: ClassVar[float] = SLOPE

    def __init__(self, generator: Generator, discriminator: Discriminator | None = None) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.discriminator = discriminator
        if discriminator is not None:
            discriminator.eval().requires_grad_(False)
            self.critic = discriminator
        self.latent_dim, self.image_size = generator.spec.latent_dim, generator.spec.image_size
        self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        device = next(self.generator.parameters()).device
        z = torch.randn(STATISTICS_SAMPLES, self.latent_dim, generator=torch.Generator().manual_seed(0))
        w = self.generator.mapping(z.to(device))
        p = _to_p(w).double().cpu()
        covariance = p.t().cov()
        # a mapping may leave directions almost unused; the floor keeps their precision finite
        floor = 1e-4 * covariance.diagonal().mean().clamp_min(1e-12)
        factor = torch.linalg.cholesky(covariance + floor * torch.eye(self.latent_dim, dtype=p.dtype))
        identity = torch.eye(self.latent_dim, dtype=p.dtype)
        self.mean_latent = w.mean(0)
        self._p_mean = p.mean(0).float().to(device)
        self._whitening = torch.linalg.solve_triangular(factor, identity, upper=False).float().to(device)

    @property
    def mode(self) -> Tensor:
        """The latent (d,) of highest density."""
        return F.leaky_relu(self._p_mean, SLOPE)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        z = torch.randn(n, self.latent_dim, generator=generator, device=generator.device)
        w = self.generator.mapping(z.to(self.mean_latent.device))
        return torch.lerp(self.mean_latent.expand_as(w), w, truncation)

    def synthesise(self, latents: Tensor) -> Tensor:
        return clamp_through(self.generator.synthesis(latents).float())

    def log_density(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            whitened = (_to_p(latents.float()) - self._p_mean) @ self._whitening.t()
        return -0.5 * whitened.square().sum(1)

    def blocks(self) -> list[Block]:
        return list(self.generator.blocks)

    def finish(self, rgb: Tensor) -> Tensor:
        return clamp_through(rgb.float() * 0.5 + 0.5)

    def to(self, device: torch.device | str) -> Self:
        self.generator.to(device)
        if self.discriminator is not None:
            self.discriminator.to(device)
        self.mean_latent, self._p_mean, self._whitening = (
            tensor.to(device) for tensor in (self.mean_latent, self._p_mean, self._whitening)
        )
        return self

    def state(self) -> dict[str, Tensor]:
        parts = {"generator": self.generator, "discriminator": self.discriminator}
        return {
            f"{part}.{name}": tensor
            for part, network in parts.items()
            if network is not None
            for name, tensor in network.state_dict().items()
        }

    def meta(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "image_size": self.image_size,
            "networks": self.generator.spec.as_dict(),
            "critic": self.discriminator is not None,
        }

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        spec = StyleSpec(**meta["networks"])
        networks = dict(zip(("generator", "discriminator"), build_networks(spec), strict=True))
        if not meta["critic"]:
            del networks["discriminator"]
        unknown = sorted({name.partition(".")[0] for name in tensors} - networks.keys())
        for part, network in networks.items():
            start = f"{part}."
            own = {n.removeprefix(start): t.float() for n, t in tensors.items() if n.startswith(start)}
            expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
            found = {name: tensor.shape for name, tensor in own.items()}
            different = unknown + sorted(n for n in expected | found if found.get(n) != expected.get(n))
            if different:
                raise UserError(
                    f"stylegan prior: expected the tensors of {spec}, got another {part} "
                    f"(first difference: {different[0]}); this file holds another prior"
                )
            network.load_state_dict(own)
        return cls(networks["generator"], networks.get("discriminator"))


def _to_p(w: Tensor) -> Tensor:
    """The inverse of the mapping's last leaky ReLU."""
    return F.leaky_relu(w, 1 / SLOPE)
