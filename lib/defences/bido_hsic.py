"""BiDO with the normalised Hilbert-Schmidt independence criterion (HSIC).

Source: Peng et al., Bilateral Dependency Optimization: Defending Against Model-inversion Attacks (KDD 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lib.defences._bido import Bilateral
from lib.defences._checks import number
from lib.defences._dependence import hsic, normalised


class BilateralHSIC(Bilateral):
    """``bido_hsic(lx,ly)``: d(u,v) = tr(R_u R_v) with R = K~ (K~ + epsilon m I)^-1, K~ = H K H.

    The reference centres on one side only, R = K H (K H + eps m I)^-1: the same number, but neither symmetric nor
    fit for a Cholesky factor. d(z,y) cannot exceed the number of people in the batch less one. Published:
    (0.05, 0.5) with five taps of a VGG-16.

    Args:
        epsilon: what is added to the kernel's diagonal, per photo; published: 1e-5.
    """

    def __init__(
        self,
        lx: float,
        ly: float,
        *,
        identities: int,
        photos: int,
        layers: str | Sequence[str],
        sigma: float,
        epsilon: float,
    ) -> None:
        super().__init__(lx, ly, identities=identities, photos=photos, layers=layers, sigma=sigma)
        self.epsilon = number("bido_hsic epsilon", epsilon, 0, 1, usage="epsilon=1e-5", ends="(]")

    def compared(self, kernel: Tensor) -> Tensor:
        return normalised(kernel, self.epsilon)

    def dependence(self, first: Tensor, second: Tensor) -> Tensor:
        return hsic(first, second)
