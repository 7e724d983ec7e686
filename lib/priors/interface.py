"""What every image prior offers to an attack, whatever made it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

Block = Callable[[Tensor | None, Tensor | None, Tensor], tuple[Tensor, Tensor]]


class Prior(ABC):
    """A frozen, differentiable map from latents to images, with a density over latents.

    Attributes:
        name: such as ``eigenfaces``; chooses the class in :func:`lib.priors.prior_from_state`.
        slope: of the leaky ReLU that ends the map to latents; before it latents are closer to Gaussian (P
            space of MIRROR). 1 where there is none.
        latent_dim: length d of one latent.
        image_size: side S of the images.
        critic: ``images (n, 3, S, S) in [0, 1] -> realness logits (n,)`` of the discriminator trained against
            this prior (higher is more real, no image influences another's logit), or None if there is none.
        classes: of the target that it was trained against, or None.
    """

    name: ClassVar[str]
    slope: ClassVar[float] = 1.0
    latent_dim: int
    image_size: int
    critic: Callable[[Tensor], Tensor] | None = None
    classes: int | None = None

    @abstractmethod
    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        """``n`` latents (n, d), fp32, on the prior's device. ``truncation`` psi shrinks them towards the mean
        latent: 1 is the prior itself, 0 the mean. The generator may live on another device than the prior."""

    @abstractmethod
    def synthesise(self, latents: Tensor) -> Tensor:
        """Latents (n, d) to images (n, 3, S, S), fp32 in [0, 1], differentiable in the latents only.

        Values outside [0, 1] are clamped in the forward pass; their gradients pass through unchanged
        (:func:`clamp_through`), so that no pixel's gradient dies.
        """

    @abstractmethod
    def log_density(self, latents: Tensor) -> Tensor:
        """Log density (n,) of latents (n, d), up to an additive constant; its maximum, 0, is at the mode."""

    @abstractmethod
    def blocks(self) -> list[Block]:
        """Synthesis cut into stages for attacks on intermediate features (IF-GMI), coarse to fine:
        ``(features, rgb, latents) -> (features, rgb)``, the first called with ``(None, None, latents)`` and
        the last rgb turned into images by :meth:`finish`. Empty where there are no intermediate features."""

    def finish(self, rgb: Tensor) -> Tensor:
        """The last block's rgb to images, fp32 in [0, 1]."""
        raise NotImplementedError(f"{self.name} has no blocks")

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move to ``device`` in place and return self."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All tensors, ready for safetensors. With :meth:`meta` they rebuild the prior exactly."""

    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """JSON values, including ``name``."""

    @classmethod
    @abstractmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """The prior that :meth:`state` and :meth:`meta` describe. Tensors stored as fp16 become fp32.

        Raises:
            UserError: if tensors are missing, superfluous or of another shape than ``meta`` says.
        """


class _ClampThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def clamp_through(values: Tensor) -> Tensor:
    """Clamp to [0, 1] with the identity as gradient (straight-through).

    PPA hands unclamped generator output to the target, so its gradients never vanish; this keeps those
    gradients while the target only ever sees valid images. A sigmoid would bend mid-tones, and a plain clamp
    would leave saturated pixels (a third of a bright face) without gradient.
    """
    return _ClampThrough.apply(values)
