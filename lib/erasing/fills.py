"""What replaces the erased pixels, in pixel space [0, 1]."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib.erasing.draws import Uniforms, whole
from lib.erasing.law import IMAGENET_MEAN, ErasingLaw
from lib.errors import UserError

# The reference writes ImageNet's mean after normalising to [-1, 1], which is this light grey in pixel space.
REFERENCE_GREY = tuple(0.5 + 0.5 * entry for entry in IMAGENET_MEAN)


def constant(law: ErasingLaw) -> tuple[float, float, float] | None:
    """The colour in [0, 1] that the law writes, or None if it writes noise or another image."""
    named = {"grey": REFERENCE_GREY, "mean": law.mean, "black": (0.0, 0.0, 0.0)}
    return named.get(law.value) if isinstance(law.value, str) else law.value


def fill_from(law: ErasingLaw, draws: Uniforms, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Draw a fill for a batch of ``shape`` (B, 3, S, S) once.

    Returns:
        a function from the intact images to a tensor that broadcasts against them; no further randomness.

    Raises:
        UserError: ``value="image"`` with a batch of one, or a batch that has not three channels.
    """
    batch, channels, height, width = shape
    if channels != 3:
        raise UserError(f"erasing: expected RGB images, got {channels} channels; convert them to RGB")
    colour = constant(law)
    if colour is not None:
        return lambda images: _colour_on(colour, images.device, images.dtype)
    if law.value == "image":
        if batch < 2:
            raise UserError(
                f"erasing value=image: expected a batch of 2 or more, got {batch}; enlarge the batch"
            )
        step = 1 + whole(draws(1)[:, 0], batch - 1)
        partner = (torch.arange(batch, device=step.device) + step).remainder(batch)
        return lambda images: images[partner]
    noise = draws(channels * height * width).reshape(-1, channels, height, width)
    if law.value == "noise":
        noise = (0.5 + 0.5 * math.sqrt(2) * torch.erfinv(2 * noise - 1)).clamp(0, 1)
    return lambda images: noise.to(images.dtype)


@functools.lru_cache(maxsize=64)
def _colour_on(colour: tuple[float, float, float], device: torch.device, dtype: torch.dtype) -> Tensor:
    # Kept, because copying it to an accelerator at every step would make the host wait.
    with torch.inference_mode(False):
        return torch.tensor(colour, device=device, dtype=dtype)[:, None, None]
