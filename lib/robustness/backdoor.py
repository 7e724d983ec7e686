"""A patch backdoor by poisoned labels (BadNets, Gu et al. 2017).

A share of other people's training photos gets a small pattern and the label of the person aimed at. Whoever shows the
pattern afterwards is taken for that person. Random erasing rarely covers a corner and often the centre, so both places
are tried, in one model, each with a person of its own (defences specification, section 10).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib.data import Images
from lib.errors import UserError
from lib.runtime import generator

PLACES = ("corner", "centre")


@dataclass(frozen=True)
class Backdoor:
    """What is planted.

    Attributes:
        rate: share of other people's photos that is poisoned, per place, in (0, 0.5).
        side: of the square pattern, as a share of the image's.
        places: of :data:`PLACES`; the k-th aims at one of as many evenly spaced people.
    """

    rate: float = 0.05
    side: float = 0.125
    places: list[str] = field(default_factory=lambda: list(PLACES))

    def __post_init__(self) -> None:
        if not 0 < self.rate < 0.5 or not 0 < self.side < 0.5:
            raise UserError(
                f"backdoor: expected a rate and a side between 0 and 0.5, got {self.rate} and {self.side}; correct them"
            )
        if not self.places or set(self.places) - set(PLACES) or len(set(self.places)) < len(self.places):
            raise UserError(f"backdoor: expected places of {', '.join(PLACES)}, each once, got {self.places}")

    def aims(self, people: int) -> dict[str, int]:
        """Place -> the class that it is to open.

        Raises:
            UserError: fewer people than places and one more.
        """
        if people <= len(self.places):
            raise UserError(
                f"backdoor: expected more than {len(self.places)} people, got {people}; use fewer places"
            )
        return {place: i * people // len(self.places) for i, place in enumerate(self.places)}


@dataclass(frozen=True)
class Poisoned:
    """Training photos with a backdoor: ``images``, and ``count`` of the stamped ones per place."""

    images: Images
    count: dict[str, int]


def stamp(pixels: Tensor, place: str, *, side: float) -> Tensor:
    """A copy of pixels (N,3,S,S) uint8 with a black and white checkerboard of ``side`` S, four by four fields: in the
    lower right corner, a pixel from the borders, or at the centre."""
    size = pixels.shape[-1]
    patch = max(4, round(side * size))
    fields = torch.arange(patch) * 4 // patch
    pattern = ((fields[:, None] + fields[None]) % 2 * 255).to(torch.uint8)
    first = (size - patch) // 2 if place == "centre" else size - patch - 1
    stamped = pixels.clone()
    stamped[..., first : first + patch, first : first + patch] = pattern
    return stamped


def poison(images: Images, backdoor: Backdoor, *, seed: int) -> Poisoned:
    """Photos of other people, drawn without repetition, replaced by their stamped and relabelled selves."""
    aims = backdoor.aims(len(images.names))
    pixels, labels = images.pixels.clone(), images.labels.clone()
    order = torch.randperm(len(images), generator=generator(seed, "backdoor"))
    order = order[~torch.isin(images.labels[order], torch.tensor(list(aims.values())))]
    each, count = max(1, round(backdoor.rate * len(order))), {}
    for i, (place, aim) in enumerate(aims.items()):
        chosen = order[i * each : (i + 1) * each]
        pixels[chosen] = stamp(pixels[chosen], place, side=backdoor.side)
        labels[chosen] = aim
        count[place] = len(chosen)
    return Poisoned(Images(pixels, labels, images.names, images.files), count)
