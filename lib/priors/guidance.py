"""How PLG-MI shows an image to the target, in the training of its GAN and in its attack (Yuan et al., AAAI 2023,
'Pseudo label-guided model inversion attack via conditional generative adversarial network'): random views, and
the margin by which the target's logit of the class leads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.errors import UserError
from lib.priors.interface import clamp_through

DRAWS = 9  # uniform numbers per view


@dataclass(frozen=True)
class ViewLaw:
    """Random view of an image. Defaults: the published code's, as it trains the GAN.

    Attributes:
        crop: lowest and highest area of a square crop, as a fraction of the image; it is resized to the full size.
        mirror: probability of a mirror image.
        jitter, jitter_probability: brightness and contrast are each multiplied by a factor in 1 +- jitter.
        rotation, rotation_probability: by up to so many degrees either way.
    """

    crop: tuple[float, float] = (0.8, 1.0)
    mirror: float = 0.5
    jitter: float = 0.2
    jitter_probability: float = 0.5
    rotation: float = 5.0
    rotation_probability: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop", tuple(self.crop))  # YAML gives lists
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise UserError(f"view crop: expected 0 < low <= high <= 1, got {self.crop}; use e.g. (0.8, 1.0)")
        for name, highest in (
            ("mirror", 1.0),
            ("jitter", 0.9),
            ("jitter_probability", 1.0),
            ("rotation", 180.0),
            ("rotation_probability", 1.0),
        ):
            if not 0 <= getattr(self, name) <= highest:
                raise UserError(
                    f"view {name}: expected 0 to {highest}, got {getattr(self, name)}; use 0 to do without"
                )


def draw_views(*shape: int, generator: torch.Generator) -> Tensor:
    """(*shape, DRAWS) uniform numbers in [0, 1) on the generator's device: one row per view."""
    return torch.rand(*shape, DRAWS, generator=generator, device=generator.device)


def look(images: Tensor, draws: Tensor, law: ViewLaw) -> Tensor:
    """Each image (B, 3, S, S) in [0, 1] through the view that its row of ``draws`` (B, DRAWS) makes of ``law``.

    Crop, rotation and mirror image are one bilinear resampling, and past the edge its pixels repeat; the
    published code rotates the finished crop, on black. Values that jitter takes out of [0, 1] are clamped with the
    identity as gradient. On a GPU the resampling's gradient is not bitwise repeatable.
    """
    side = _between(law.crop, draws[:, 0]).sqrt()
    centre = (2 * draws[:, 1:3] - 1) * (1 - side[:, None])  # in half sides, as everything below
    angle = math.radians(law.rotation) * (2 * draws[:, 3] - 1) * (draws[:, 4] < law.rotation_probability)
    mirrored = 1 - 2 * (draws[:, 5] < law.mirror).to(side)
    cosine, sine = side * angle.cos(), side * angle.sin()
    rows = [
        torch.stack([mirrored * cosine, -sine, centre[:, 0]], 1),
        torch.stack([mirrored * sine, cosine, centre[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1).to(images.dtype), list(images.shape), align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    brightness, contrast = (
        (1 + law.jitter * (2 * draws[:, i] - 1) * (draws[:, 6] < law.jitter_probability))[:, None, None, None]
        for i in (7, 8)
    )
    x = x * brightness
    mean = x.mean((1, 2, 3), keepdim=True)
    return clamp_through((x - mean) * contrast + mean)


def _between(bounds: tuple[float, float], draws: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * draws


def max_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k != y} T_k - T_y of the raw logits, without a hinge and so unbounded below: (B, C >= 2) and (B,) to
    (B,), fp32."""
    logits, own = logits.float(), labels[:, None]
    others = logits.scatter(1, own, -torch.inf).max(1).values
    return others - logits.gather(1, own)[:, 0]
