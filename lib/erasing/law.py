"""The law of an erasing: how often, how large, where, in which shape, with what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from lib.errors import UserError

LOCATIONS = ("random", "per_image", "fixed", "toroidal")
SHAPES = ("square", "rectangle", "disc", "squares", "pixels")
VALUES = ("grey", "mean", "black", "noise", "uniform_noise", "image")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
MAXIMUM_COUNT = 256


@dataclass(frozen=True)
class ErasingLaw:
    """What to erase, in the vocabulary of torchvision's ``RandomErasing``; images are in [0, 1].

    Attributes:
        p: probability in [0, 1] that an image is erased at all.
        scale: ``(low, high)``, bounds of the erased fraction of the image area; drawn uniformly.
        ratio: ``(low, high)``, bounds of height / width, drawn log-uniformly; ``rectangle`` only.
        value: ``grey`` (what the reference code writes), ``mean`` (the field ``mean``), ``black``, ``noise``
            (Gaussian, mean and standard deviation .5, clipped), ``uniform_noise``, ``image`` (the same
            pixels of another image of the batch), or a number or triple of numbers in [0, 1].
        location: ``random`` (within bounds, anew at each visit: the paper), ``per_image`` (a function of seed
            and image index: the same at each visit), ``fixed`` (one for all images and visits) or
            ``toroidal`` (anew at each visit, wraps at the border: every position is equally often hidden).
            ``per_image`` and ``fixed`` fix everything that is drawn: whether, how large, where, what noise.
        shape: ``square``, ``rectangle``, ``disc`` (of the same area), ``squares`` (``count`` squares of one
            size whose union has the drawn area) or ``pixels`` (that many pixels, anywhere).
        count: number of squares; ``squares`` only.
        mean: colour in [0, 1] that ``value="mean"`` writes; default that of ImageNet.

    Source: Zhong et al., Random Erasing Data Augmentation (arXiv:1708.04896); the defence's default law is
    a square (ratio 1) with p = 1.

    Raises:
        UserError: for a value outside its range, bounds in the wrong order, an unknown word, or an area
            that cannot fit into an image in the given shape.
    """

    p: float = 1.0
    scale: tuple[float, float] = (0.1, 0.4)
    ratio: tuple[float, float] = (1.0, 1.0)
    value: str | float | tuple[float, float, float] = "grey"
    location: str = "random"
    shape: str = "square"
    count: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN

    def __post_init__(self) -> None:
        _member("location", self.location, LOCATIONS)
        _member("shape", self.shape, SHAPES)
        object.__setattr__(self, "p", _number("p", self.p))
        if not 0 <= self.p <= 1:
            raise UserError(
                f"erasing p: expected a probability in [0, 1], got {self.p}; p=1 erases every image"
            )
        object.__setattr__(self, "scale", _bounds("area", self.scale))
        if not (0 < self.scale[0] and self.scale[1] < 1):
            raise UserError(
                f"erasing area: expected fractions strictly between 0 and 1, got {list(self.scale)}; "
                "use for example 0.1 and 0.4, or no erasing at all"
            )
        object.__setattr__(self, "ratio", _bounds("ratio", self.ratio))
        if self.ratio[0] <= 0:
            raise UserError(
                f"erasing ratio: expected positive numbers, got {list(self.ratio)}; use (0.3, 3.3)"
            )
        if self.ratio != (1.0, 1.0) and self.shape != "rectangle":
            raise UserError(
                f"erasing ratio: expected (1, 1) for shape {self.shape}, got {list(self.ratio)}; "
                "use shape=rectangle"
            )
        self._check_count()
        self._check_fit()
        object.__setattr__(self, "mean", _colour("mean", self.mean))
        if isinstance(self.value, str):
            _member("value", self.value, VALUES)
        else:
            object.__setattr__(self, "value", _colour("value", self.value))

    def _check_count(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int):
            raise UserError(f"erasing count: expected a whole number, got {self.count!r}; use count=4")
        if not 1 <= self.count <= MAXIMUM_COUNT:
            raise UserError(
                f"erasing count: expected 1 to {MAXIMUM_COUNT} squares, got {self.count}; use count=4"
            )
        if self.count != 1 and self.shape != "squares":
            raise UserError(
                f"erasing count: expected 1 for shape {self.shape}, got {self.count}; use shape=squares"
            )

    def _check_fit(self) -> None:
        low = self.scale[0]
        if self.shape == "disc" and low >= math.pi / 4:
            raise UserError(
                f"erasing area: expected less than {math.pi / 4:.3f} for a disc, got {low} or more; "
                "use smaller areas or shape=square"
            )
        if self.shape == "rectangle" and (self.ratio[0] >= 1 / low or self.ratio[1] <= low):
            raise UserError(
                f"erasing ratio: expected rectangles of area {low} that fit into an image, got ratio "
                f"{list(self.ratio)}; bring it nearer to 1"
            )


def _member(field: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"erasing {field}: expected one of {', '.join(known)}, got {value!r}; use {known[0]}")


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"erasing {field}: expected a finite number, got {value!r}; use for example 0.5")
    return float(value)


def _bounds(field: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UserError(
            f"erasing {field}: expected two numbers (low, high), got {value!r}; repeat a single one"
        )
    low, high = (_number(field, entry) for entry in value)
    if low > high:
        raise UserError(f"erasing {field}: expected low <= high, got {low} > {high}; swap them")
    return low, high


def _colour(field: str, value: Any) -> tuple[float, float, float]:
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * 3
    if len(entries) != 3:
        raise UserError(
            f"erasing {field}: expected one number or three (RGB), got {value!r}; use (0.5, 0.5, 0.5)"
        )
    colour = tuple(_number(field, entry) for entry in entries)
    if not all(0 <= entry <= 1 for entry in colour):
        raise UserError(
            f"erasing {field}: expected a colour in [0, 1], got {value!r}; divide 8-bit values by 255"
        )
    return colour
