"""Erasing as a frozen view of a batch: drawn once, applied as often as a training step needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.erasing.draws import Uniforms
from lib.erasing.fills import fill_from
from lib.erasing.law import ErasingLaw
from lib.erasing.masks import mask_from
from lib.errors import UserError


class View:
    """A fixed map of images to erased images, differentiable, with its ``mask`` (B, S, S), true = erased."""

    def __init__(self, mask: Tensor, fill: Callable[[Tensor], Tensor]) -> None:
        self.mask = mask
        self._fill = fill

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to the same; pixels outside the mask are untouched, bit for bit."""
        return torch.where(self.mask[:, None], self._fill(images), images)


def draw_view(
    law: ErasingLaw,
    shape: Sequence[int],
    *,
    index: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> View:
    """Draw mask and fill for one batch; the view then erases any images of that batch in the same way.

    Args:
        law: what to erase.
        shape: (B, 3, S, S) of the batch.
        index: (B,) positions of the images in their data set; needed by ``per_image``.
        generator: needed by ``random`` and ``toroidal``.
        seed: needed by ``per_image`` and ``fixed``.
        device: where the images are; default that of ``index``, else of ``generator``, else the CPU.

    Raises:
        UserError: for a shape that is no batch of square RGB images, or a missing source of randomness.
    """
    shape = tuple(shape)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise UserError(f"erasing: expected images of shape (B, 3, S, S), got {shape}; crop them to squares")
    if device is None:
        device = next((source.device for source in (index, generator) if source is not None), "cpu")
    draws = Uniforms(law, shape[0], torch.device(device), index=index, generator=generator, seed=seed)
    mask = mask_from(law, draws, shape[3]).expand(shape[0], -1, -1)
    return View(mask, fill_from(law, draws, shape))


def erase(
    images: Tensor,
    law: ErasingLaw,
    *,
    generator: torch.Generator | None = None,
    index: Tensor | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Erase a batch, each image on its own.

    Args:
        images: (B, 3, S, S) in [0, 1]; not changed.
        law: what to erase.
        generator, index, seed: see :func:`draw_view`.

    Returns:
        the erased images and the mask (B, S, S) bool, true = erased, both on the images' device.

    Raises:
        UserError: see :func:`draw_view`; also for images that are not floats.
    """
    if not images.is_floating_point():
        raise UserError(f"erasing: expected float images in [0, 1], got {images.dtype}; divide bytes by 255")
    view = draw_view(law, images.shape, index=index, generator=generator, seed=seed, device=images.device)
    return view(images), view.mask
