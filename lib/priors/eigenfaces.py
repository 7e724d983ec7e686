"""Eigenfaces (Turk and Pentland 1991) as a prior: instant, deterministic, the baseline a GAN must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from lib.errors import UserError
from lib.priors.interface import Block, Prior, clamp_through


@dataclass(frozen=True)
class EigenfacesConfig:
    """What a setup says of them.

    Attributes:
        components: latent dimensions.
    """

    components: int = 256

    def __post_init__(self) -> None:
        if self.components < 1:
            raise UserError(f"eigenfaces components: expected at least 1, got {self.components}; raise it")


class Eigenfaces(Prior):
    """images = clamp(mean + sum_j z_j scale_j direction_j), with z ~ N(0, I) by whitening.

    ``scale_j`` is the standard deviation of the public images along the j-th principal direction, so that the
    Gaussian fitted to the public images is the standard normal over latents.
    """

    name: ClassVar[str] = "eigenfaces"

    def __init__(self, mean: Tensor, directions: Tensor, scale: Tensor) -> None:
        """Args: mean (3, S, S) in [0, 1]; directions (d, 3 S S), orthonormal; scale (d,), positive."""
        self.mean, self.directions, self.scale = mean, directions, scale
        self.latent_dim, self.image_size = len(scale), mean.shape[-1]

    @classmethod
    def fit(cls, images: Tensor, *, components: int = EigenfacesConfig.components, seed: int = 0) -> Self:
        """Principal components of uint8 ``images`` (N, 3, S, S) by scikit-learn's randomised PCA.

        About twice the images' size in fp32 is held in memory (2 GB for 20 000 images of 64 pixels).

        Raises:
            UserError: images not uint8 (N, 3, S, S), or fewer than ``components`` + 1.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(
                f"eigenfaces: expected uint8 images (N, 3, S, S), got {images.dtype} {tuple(images.shape)}; "
                "decode them with lib.data"
            )
        values = images[0].numel()
        most = min(len(images) - 1, values)
        if not 1 <= components <= most:
            raise UserError(
                f"eigenfaces: expected 1 to {most} components for {len(images)} images of {values} values, "
                f"got {components}; lower components or add public images"
            )
        matrix = images.cpu().flatten(1).to(torch.float32).div_(255).numpy()
        # three power iterations: faces' spectrum falls fast, more change nothing visible
        pca = PCA(components, copy=False, svd_solver="randomized", iterated_power=3, random_state=seed)
        pca.fit(matrix)
        # clone: the arrays belong to scikit-learn, and safetensors wants contiguous memory of our own
        mean, directions, variance = (
            torch.from_numpy(array).to(torch.float32, copy=True).contiguous()
            for array in (pca.mean_, pca.components_, pca.explained_variance_)
        )
        return cls(mean.view(images.shape[1:]), directions, variance.clamp_min(1e-10).sqrt())

    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        z = torch.randn(n, self.latent_dim, generator=generator, device=generator.device)
        return z.to(self.scale.device) * truncation

    def synthesise(self, latents: Tensor) -> Tensor:
        # a rank-256 sum of small terms: bf16 would band the images, and fp32 costs nothing here
        with torch.autocast(latents.device.type, enabled=False):
            flat = torch.addmm(self.mean.view(1, -1), latents.float() * self.scale, self.directions)
        return clamp_through(flat.view(-1, *self.mean.shape))

    def project(self, images: Tensor) -> Tensor:
        """Latents (n, d) of images (n, 3, S, S) in [0, 1]: the least-squares fit of :meth:`synthesise`."""
        return (images - self.mean).flatten(1) @ self.directions.t() / self.scale

    def log_density(self, latents: Tensor) -> Tensor:
        return -0.5 * latents.float().square().sum(1)

    def blocks(self) -> list[Block]:
        return []

    def to(self, device: torch.device | str) -> Self:
        self.mean, self.directions, self.scale = (
            tensor.to(device) for tensor in (self.mean, self.directions, self.scale)
        )
        return self

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "directions": self.directions, "scale": self.scale}

    def meta(self) -> dict[str, Any]:
        return {"name": self.name, "image_size": self.image_size, "components": self.latent_dim}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        size, components = meta["image_size"], meta["components"]
        shapes = {
            "mean": (3, size, size),
            "directions": (components, 3 * size * size),
            "scale": (components,),
        }
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != shapes:
            raise UserError(
                f"eigenfaces: expected tensors {shapes}, got {found}; this file holds another prior"
            )
        return cls(**{name: tensors[name].float() for name in shapes})
