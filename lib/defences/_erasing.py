"""What the erasing defences share: drawing views and counting what was erased."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lib.erasing import ErasingLaw, View, draw_view
from lib.errors import UserError
from lib.training.interface import Defence, History


def law_from(low: float, high: float, *, ratio: float, mean: Any, **fields: Any) -> ErasingLaw:
    """A law from the constants of a YAML file or a name, where ``ratio`` r >= 1 stands for (1/r, r).

    Raises:
        UserError: for values out of range.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 1 <= ratio < math.inf:
        raise UserError(
            f"erasing ratio: expected r >= 1, the range being 1/r to r, got {ratio!r}; use ratio=3"
        )
    return ErasingLaw(scale=(low, high), ratio=(1 / ratio, float(ratio)), mean=mean, **fields)


class Erasing(Defence):
    """Base of the defences that erase: one law, and a running count of the pixels hidden by it."""

    def __init__(self, law: ErasingLaw) -> None:
        self.law = law
        self._seed: int | None = None
        self._totals = torch.zeros(2, dtype=torch.int64)

    def build(self, model: nn.Module) -> nn.Module:
        """Leaves the network alone.

        Raises:
            UserError: the smallest square is the whole image, so that nothing would ever be erased.
        """
        size = model.image_size
        if self.law.shape == "square" and round(math.sqrt(self.law.scale[0]) * size) >= size:
            raise UserError(
                f"{self.name}: expected squares that fit into an image of {size} px, got areas of "
                f"{self.law.scale[0]} or more; use smaller areas"
            )
        return model

    def source(self, images: Tensor, index: Tensor, seed: int) -> Tensor:
        """Leaves the images alone; takes note of the run's seed, from which fixed masks are made."""
        self._seed = seed
        return images

    def draw(self, images: Tensor, index: Tensor, generator: torch.Generator | None) -> View:
        """Draw this step's view of a batch (B, 3, S, S) and count what it erases, on the device."""
        view = draw_view(
            self.law,
            images.shape,
            index=index,
            generator=generator,
            seed=self._seed,
            device=images.device,
        )
        self._totals = self._totals.to(images.device)
        self._totals[0] += view.mask.sum()
        self._totals[1] += view.mask.numel()
        return view

    def tensors(self) -> dict[str, Tensor]:
        """``erased``: (2,) int64, pixels erased and pixels seen so far."""
        return {"erased": self._totals}

    def diagnostics(self) -> dict[str, float]:
        """``<name>_erased_area``: mean fraction of the image area erased; NaN before the first step."""
        erased, seen = self._totals.tolist()
        return {
            f"{type(self).__module__.rpartition('.')[2]}_erased_area": erased / seen if seen else math.nan
        }

    @staticmethod
    def acted(history: History) -> bool:
        """Whether anything was hidden."""
        return any(value > 0 for name, value in history[-1].items() if name.endswith("_erased_area"))
