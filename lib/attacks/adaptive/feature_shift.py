"""Feature shift: MIDRE explains itself by features that erasing moves; this moves them back.

A network trained on erased images puts erased and clean images in different places, and reconstructions lie
with the erased ones. The attacker measures both places on public people, u the line from the erased mean to the
clean one, and asks that the synthesised image stand where clean images stand on it: weight * (c - 1)^2, c = 0 at
the erased mean and 1 at the clean one. The weight is written in the name, ``feature_shift0.1`` (1 if left out), and
counts beside the attack's loss as the attack scales it: the identity losses of GMI and KEDMI are multiplied by 100,
MIRROR's by 10. No rule by the target alone can settle it, since the target likes least what is pulled most.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from lib.attacks.adaptive.interface import Adapted, Ingredient
from lib.attacks.interface import device_of
from lib.attacks.knowledge import Knowledge
from lib.erasing import ErasingLaw, erase
from lib.errors import UserError
from lib.runtime import frozen, generator

EXAMPLE = "feature_shift0.1"
WEIGHT = 1.0
IMAGES = 2000
BATCH = 200


def parse(name: str) -> Ingredient | None:
    match = re.fullmatch(r"feature_shift(\d+(?:\.\d+)?)?", name)
    if match is None:
        return None
    weight = float(match[1] or WEIGHT)
    if not weight > 0:
        raise UserError(f"feature_shift: expected a weight above 0, got {name!r}; use e.g. {EXAMPLE}")

    def wrap(target: nn.Module, knowledge: Knowledge, seed: int) -> nn.Module:
        base = target.base if isinstance(target, Adapted) else target
        knowledge.check_images("feature_shift", base.image_size)
        means = feature_means(base, knowledge.public, knowledge.blind_law, seed=seed)
        return Shifted(target, *means, weight=weight)

    return Ingredient(name, needs=frozenset({"law", "public"}), wrap=wrap, images=(IMAGES, IMAGES))


def feature_means(target: nn.Module, public: Tensor, law: ErasingLaw, *, seed: int) -> tuple[Tensor, Tensor]:
    """Means (d,) of the target's features over erased and over clean public images (N, 3, S, S) uint8."""
    stream = generator(seed, "attack", "feature shift")
    chosen = public[torch.randperm(len(public), generator=stream)[:IMAGES]]
    device = device_of(target)
    sums = [0.0, 0.0]
    with frozen(target), torch.no_grad():
        for batch in chosen.split(BATCH):
            clean = batch.to(device).float() / 255
            for i, images in enumerate((erase(clean, law, generator=stream)[0], clean)):
                sums[i] = sums[i] + target.features(images).double().sum(0)
    return tuple((total / len(chosen)).float() for total in sums)


class Shifted(Adapted):
    """The target with a term that is 0 where an image lies at the clean mean along the shift."""

    def __init__(self, inner: nn.Module, erased: Tensor, clean: Tensor, *, weight: float = WEIGHT) -> None:
        super().__init__(inner)
        gap = (clean - erased).norm()
        if not gap > 0:
            raise UserError(
                "feature_shift: expected erased and clean public images to differ in the target's features, got "
                "equal means; this ingredient has nothing to move"
            )
        self.register_buffer("direction", (clean - erased) / gap.square(), persistent=False)
        self.register_buffer("origin", erased, persistent=False)
        self.weight = weight
        self.own_pass = isinstance(inner, Adapted)  # its features may be those of erased views
        self.gradient_passes += int(self.own_pass)
        self._pending: list[Tensor] = []  # of the passes since terms() was last asked

    def restart(self) -> None:
        super().restart()
        self._pending = []

    def position(self, features: Tensor) -> Tensor:
        """(B,): 0 at the erased mean, 1 at the clean one."""
        return (features.float() - self.origin) @ self.direction

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.inner.both(images)
        if torch.is_grad_enabled() and images.requires_grad:
            whole = self.base.features(images) if self.own_pass else features
            self._pending.append(self.weight * (self.position(whole) - 1).square())
        return features, logits

    def terms(self) -> Tensor | float:
        own, self._pending = sum(self._pending), []
        return own + super().terms()
