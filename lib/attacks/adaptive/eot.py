"""Expectation over erasing (after Athalye et al. 2018, 'Synthesizing robust adversarial examples').

A network trained on erased images never saw a whole one. An image is therefore shown to it K times, each time
with another part erased as in training, and its logits are averaged: every part must then look like the person,
whatever else is hidden. The average replaces the logits in search, optimisation and selection alike, those of LOMMA's
students under the same views. Where many views are computed again in the backward pass to save memory, that is the
price of the machine and no pass of the attack's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.attacks.adaptive.interface import Adapted, Ingredient
from lib.erasing import ErasingLaw, View, draw_view
from lib.errors import UserError
from lib.runtime import generator

EXAMPLE = "eot16"
MOST = 256
ROOM = 512  # views at a time; where there are more, they are recomputed in the backward pass to save memory


def parse(name: str) -> Ingredient | None:
    match = re.fullmatch(r"eot(\d+)", name)
    if match is None:
        return None
    masks = int(match[1])
    if not 1 <= masks <= MOST:
        raise UserError(f"eot: expected 1 to {MOST} masks, got {masks}; use e.g. {EXAMPLE}")
    return Ingredient(
        name,
        needs=frozenset({"law"}),
        passes=masks,
        place=0,  # what looks at the whole image stands outside the average
        revision=2,
        wrap=lambda target, knowledge, seed: ErasedViews(target, knowledge.blind_law, masks=masks, seed=seed),
    )


class ErasedViews(Adapted):
    """Mean features and logits over K erased views of each image.

    The views are drawn anew at each pass and shared by the batch, so that candidates are compared under the
    same ones and a reconstruction does not depend on which others share its batch.
    """

    shows_views = True

    def __init__(self, inner: nn.Module, law: ErasingLaw, *, masks: int, seed: int) -> None:
        super().__init__(inner)
        self.law, self.masks, self.seed = law, masks, seed
        self.passes *= masks
        self.restart()

    def restart(self) -> None:
        super().restart()
        self._stream = generator(self.seed, "attack", "erasing")
        self._views: list[View] = []  # of the last pass

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._views = [
            draw_view(self.law, (1, *images.shape[1:]), generator=self._stream, device=images.device)
            for _ in range(self.masks)
        ]
        features, logits = self._mean(self.inner.both, images)
        return features, logits

    def also(self, network: nn.Module, images: Tensor) -> Tensor:
        (logits,) = self._mean(lambda seen: (network(seen),), images)
        return logits

    def _mean(self, ask: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
        """Of what a network is asked, over the views of the last pass."""

        def summed(images: Tensor, views: list[View]) -> tuple[Tensor, ...]:
            seen = ask(torch.cat([view(images) for view in views]))
            return tuple(part.float().unflatten(0, (len(views), -1)).sum(0) for part in seen)

        views, together = self._views, max(1, ROOM // len(images))
        again = len(views) > together and torch.is_grad_enabled() and images.requires_grad
        sums: tuple[Tensor, ...] = ()
        for start in range(0, len(views), together):
            part = views[start : start + together]
            seen = checkpoint(summed, images, part, use_reentrant=False) if again else summed(images, part)
            sums = tuple(a + b for a, b in zip(sums, seen, strict=True)) if sums else seen
        return tuple(total / len(views) for total in sums)
