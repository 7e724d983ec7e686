"""What the trainings of GANs share: networks and optimisers in one saveable state, checks, rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lib.errors import UserError
from lib.runtime import seed_for


class Run:
    """Networks, optimisers and random stream of one training.

    Attributes:
        name: such as "inversion GAN", in messages and in the names of the random streams.
        generator, discriminator: in training mode. average: of the generator (:meth:`move_average`).
        random: on the device; all noise and all batches come from it.
        kept: further tensors that a resumed training needs.
    """

    NETWORKS = ("generator", "discriminator", "average")

    def __init__(
        self,
        name: str,
        networks: Sequence[nn.Module],
        *,
        rates: tuple[float, float],
        betas: tuple[float, float],
        seed: int,
        device: torch.device,
        lazy: float = 1.0,
    ) -> None:
        """
        Args:
            networks: generator and discriminator. rates, betas: of their Adams.
            lazy: in (0, 1]; the share of the discriminator's gradients that are of its main loss, where a penalty
                comes in every few steps only: its rate is multiplied by this, its betas are raised to it
                (Karras et al. 2020, appendix B).
        """
        self.name = name
        self.generator, self.discriminator = (network.to(device).train() for network in networks)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.rates = (rates[0], rates[1] * lazy)
        slowed = (betas[0] ** lazy, betas[1] ** lazy)
        self.optimisers: list[Optimizer] = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=pair)
            for network, rate, pair in zip(networks, self.rates, (betas, slowed), strict=True)
        ]
        self.random = torch.Generator(device=device).manual_seed(seed_for(seed, name.lower(), "batches"))
        self.kept: dict[str, Tensor] = {}
        self.step = 0
        self.history: list[dict[str, float]] = []

    def state(self, fingerprint: str) -> dict[str, Any]:
        return {
            "fingerprint": fingerprint,
            **{name: getattr(self, name).state_dict() for name in self.NETWORKS},
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "random": self.random.get_state(),
            "step": self.step,
            "history": self.history,
            **self.kept,
        }

    def restore(self, state: dict[str, Any], fingerprint: str, removal: str) -> None:
        """Raises: UserError for the checkpoint of another training."""
        if state.get("fingerprint") != fingerprint:
            raise UserError(
                f"{self.name} checkpoint: expected one of this training (same configuration, seed, images and "
                f"target if any), got another's; remove it with {removal} and start again"
            )
        for name in self.NETWORKS:
            getattr(self, name).load_state_dict(state[name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        own = self.state(fingerprint).keys() - self.kept.keys()
        self.kept = {name: state[name].to(self.random.device) for name in state.keys() - own}
        self.random.set_state(state["random"])
        self.step, self.history = state["step"], list(state["history"])

    def set_rates(self, steps: int, decay: float) -> None:
        """Set the learning rates of this step: over the last ``decay`` of the ``steps`` they fall to a tenth."""
        left = min(1.0, (steps - self.step) / max(decay * steps, 1))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * (0.1 + 0.9 * left)

    @torch.no_grad()
    def move_average(self, images: int, half_life: float) -> None:
        """Move the average towards the generator after ``images`` generated ones; the statistics of its batch
        normalisation too."""
        weight = 1 - 0.5 ** (images / half_life)
        pairs = [*zip(self.average.state_dict().values(), self.generator.state_dict().values(), strict=True)]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*(list(side) for side in zip(*moving, strict=True)), weight)
        for kept, value in pairs:
            if not kept.is_floating_point():
                kept.copy_(value)

    def record(self, row: dict[str, float], remedy: str) -> None:
        """Append a row to the history.

        Raises:
            UserError: a value that is not finite, with the ``remedy``.
        """
        if not all(math.isfinite(value) for value in row.values()):
            raise UserError(
                f"{self.name} training: expected finite losses, got NaN or infinity before step {self.step}; "
                f"lower {remedy} and train again"
            )
        self.history.append(row)


def check_images(name: str, images: Tensor, *, size: int, whose: str, least: int, asked: str) -> None:
    """Raises: UserError for images that are not uint8 (N, 3, S, S) of the ``size`` that is ``whose`` ("the target's"),
    or fewer than ``least``, which the configuration asks for in words such as "a batch of 32"."""
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise UserError(
            f"{name} images: expected uint8 (N, 3, S, S), got {images.dtype} {shape}; decode them with lib.data"
        )
    if shape[-1] != size:
        raise UserError(f"{name} images: expected {whose} {size} pixels, got {shape[-1]}; resize the images")
    if len(images) < least:
        raise UserError(
            f"{name} images: expected at least {asked}, got {len(images)}; ask for less or add images"
        )
