"""Uniform numbers for erasing: from a generator, or as a function of (seed, image index)."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from lib.erasing.law import ErasingLaw
from lib.errors import UserError

Word = TypeVar("Word", int, Tensor)

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_FACTOR = 0x45D9F3B


class Uniforms:
    """A source of uniforms with one row per image.

    Laws that draw anew take them from ``generator``. Laws that are fixed per image hash (seed, index, number
    of the draw), so an image's numbers depend neither on its batch nor on what was drawn before. A law that
    is ``fixed`` for all images has a single row. A generator on another device than the images works, at
    the cost of a copy.

    Raises:
        UserError: when the law needs a generator, or a seed, or image indices, that were not given.
    """

    def __init__(
        self,
        law: ErasingLaw,
        batch: int,
        device: torch.device,
        *,
        index: Tensor | None,
        generator: torch.Generator | None,
        seed: int | None,
    ) -> None:
        self.device = device
        self.generator: torch.Generator | None = None
        self._key: Tensor | None = None
        self._drawn = 0
        if law.location in ("random", "toroidal"):
            if generator is None:
                raise UserError(
                    f"erasing location={law.location}: expected a generator, got None; pass generator="
                )
            self.generator, self.rows = generator, batch
            return
        if seed is None:
            raise UserError(f"erasing location={law.location}: expected a seed, got None; pass seed=")
        if law.location == "fixed":
            index = torch.zeros(1, dtype=torch.int64, device=device)
        elif index is None or index.shape != (batch,) or index.is_floating_point():
            got = "None" if index is None else f"{index.dtype} of shape {tuple(index.shape)}"
            raise UserError(
                f"erasing location=per_image: expected {batch} whole image indices, got {got}; pass index="
            )
        self.rows = len(index)
        start = _mix(_mix(seed & _WORD) ^ ((seed >> 32) & _WORD))
        self._key = _mix((index.to(device, torch.int64) & _WORD) ^ start)

    def __call__(self, columns: int) -> Tensor:
        """The next ``columns`` numbers of every row: (rows, columns) float32 in [0, 1)."""
        if self._key is None:
            numbers = torch.rand(
                self.rows,
                columns,
                generator=self.generator,
                device=self.generator.device,
                dtype=torch.float32,
            )
            return numbers.to(self.device)
        counter = torch.arange(self._drawn + 1, self._drawn + columns + 1, device=self.device)
        self._drawn += columns
        hashed = _mix(_mix((self._key[:, None] + counter * _GOLDEN) & _WORD))
        return (hashed >> 8).to(torch.float32) * 2.0**-24


def _mix(word: Word) -> Word:
    """A bijection of 32-bit words (tensors hold them in int64) that spreads every input bit over the output.

    The multiplier is small enough for no product to overflow, on any device.
    """
    word = (((word >> 16) ^ word) * _FACTOR) & _WORD
    word = (((word >> 16) ^ word) * _FACTOR) & _WORD
    return (word >> 16) ^ word


def whole(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Uniform integers in [0, count) from uniforms in [0, 1); ``count`` at least 1 and broadcastable."""
    if not isinstance(count, Tensor):
        return (uniform * count).long().clamp(max=count - 1)
    # In float32 a number just below 1 times count can round up to count.
    return torch.minimum((uniform * count).long(), count - 1)
