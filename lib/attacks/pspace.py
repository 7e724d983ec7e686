"""P space, where latents lie before the mapping's last leaky ReLU, and the box of likely latents in it.

Source: MIRROR (An et al., NDSS 2022): a face stays a face while every P coordinate is within one standard
deviation of its mean. The leaky ReLU is monotone, so that the box in P is a box in latents too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from lib.errors import UserError


def to_p(latents: Tensor, slope: float) -> Tensor:
    """The inverse of a leaky ReLU of this slope, coordinate by coordinate."""
    return F.leaky_relu(latents, 1 / slope)


def from_p(p: Tensor, slope: float) -> Tensor:
    """The leaky ReLU: P to latents."""
    return F.leaky_relu(p, slope)


@dataclass(frozen=True)
class Box:
    """Bounds of latents, coordinate by coordinate.

    Attributes:
        low, high: (d,) in latents. spread: (d,) standard deviation in P.
        slope: of the leaky ReLU between P and latents.
    """

    low: Tensor
    high: Tensor
    spread: Tensor
    slope: float

    @classmethod
    def of(cls, samples: Tensor, *, slope: float, width: float) -> Box:
        """mean +- ``width`` population standard deviations in P over prior samples (S, d).

        Raises:
            UserError: fewer than two samples, or a width that is not positive.
        """
        if len(samples) < 2 or not width > 0:
            raise UserError(
                f"box: expected at least 2 samples and a width above 0, got {len(samples)} and {width}; raise them"
            )
        p = to_p(samples.double(), slope)
        mean, spread = p.mean(0), p.std(0, correction=0)
        low, high = (from_p(mean + side * width * spread, slope).float() for side in (-1, 1))
        return cls(low, high, spread.float(), slope)

    def clamp_(self, latents: Tensor) -> None:
        """Move latents (..., d) to the nearest ones in the box, in place."""
        latents.copy_(latents.clamp(self.low, self.high))
