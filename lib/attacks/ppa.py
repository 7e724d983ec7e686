"""PPA, Plug & Play Attacks (Struppek et al., ICML 2022), white box.

The best of a pool of prior samples are moved by Adam(.1, .1) along the Poincare loss of randomly cropped
images, and the ones the target recognises in most random views are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib.attacks.access import Access
from lib.attacks.chunks import run_chunks
from lib.attacks.interface import Callback, Reconstructions, check_inputs, networks, storable
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import poincare
from lib.attacks.optimise import refine, target_confidence
from lib.attacks.search import PoolBudget, pool_starts, starts_of
from lib.attacks.selection import select
from lib.attacks.transforms import apply_crops, check_crop, draw_crops
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "ppa"


@dataclass(frozen=True, kw_only=True)
class PpaBudget(PoolBudget):
    """Defaults: the published attack as MIDRE configures it (16 candidates, 8 kept, .005 x .1 at 30 and 40
    of 50 steps). PPA's own files use 200 candidates, 50 kept and no schedule.

    Attributes:
        pool: prior samples scored for the candidate search.
        learning_rate: Adam's; with betas (.1, .1) no coordinate ever moves more than this per step.
        milestones: fractions of the steps at which the learning rate is multiplied by ``decay``.
        crop_scale: area of the random crop drawn at each step.
        prior_weight: weight of -log_density (nats). The paper has none (0); a prior whose latents are
            unconstrained, such as eigenfaces, needs it.
        reference: draw one whole-pixel crop per step for all samples, as the published code does, instead
            of one per sample.
    """

    pool: int = 2000
    candidates: int = 16
    steps: int = 50
    learning_rate: float = 0.005
    keep: int = 8
    milestones: tuple[float, ...] = (0.6, 0.8)
    decay: float = 0.1
    crop_scale: tuple[float, float] = (0.9, 1.0)
    truncation: float = 0.5
    prior_weight: float = 0.0
    reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("decay")
        for name in ("milestones", "crop_scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_crop(self.crop_scale)
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise UserError(
                f"budget milestones: expected fractions of the steps between 0 and 1, got {self.milestones}; "
                "use e.g. (0.6, 0.8)"
            )
        if not 0 <= self.prior_weight < float("inf"):
            raise UserError(f"budget prior_weight: expected at least 0, got {self.prior_weight}; raise it")

    @property
    def descent(self) -> tuple[float, float]:
        return 0.0, min(self.milestones, default=1.0)


Budget = PpaBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: PpaBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label.

    Args:
        target: network under attack; frozen meanwhile and handed back as it was.
        labels: (K,) class indices, each once.
        knowledge: what else the attacker has; this attack needs nothing.
        callback: gets ``{"stage", "done", "total", ...}`` during the search and after each chunk.
        checkpoint: where finished chunks are kept; an interrupted attack goes on from it.

    Raises:
        UserError: bad input, before any work starts; a loss that stops being finite.
    """
    labels = check_inputs(target, prior, labels)
    with frozen(*networks(target, prior)):
        access = Access(target, prior, fast=budget.fast)
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed),
            name=NAME,
            budget=budget,
            seed=seed,
            prepare=pool_starts(access, budget, seed=seed, callback=callback),
            callback=callback,
            checkpoint=checkpoint,
        )


def _attack(
    access: Access, labels: Tensor, prepared: dict[str, Tensor], *, budget: PpaBudget, seed: int
) -> dict[str, Tensor]:
    """One chunk: k labels on the device, their starts (k, n, d)."""
    starts = starts_of(prepared)
    latents, history = optimise(access, labels, starts, budget=budget, seed=seed)
    judged = select(access, latents, labels, budget=budget, loss=poincare, seed=seed)
    return {"latents": latents, "initial": starts, "history": history, **judged}


def optimise(
    access: Access, labels: Tensor, starts: Tensor, *, budget: PpaBudget, seed: int
) -> tuple[Tensor, Tensor]:
    """Labels (k,) and starts (k, n, d) on the device to latents (k, n, d) and the history (steps, 2)."""
    flat = labels.repeat_interleave(budget.candidates)
    crops = step_crops(labels.tolist(), budget=budget, seed=seed, size=access.target.image_size)
    crops = crops.to(access.device)

    def objective(latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        logits = access.logits(apply_crops(access.images(latents), crops[step]))
        loss = poincare(logits, flat)
        if budget.prior_weight:
            loss = loss - budget.prior_weight * access.prior.log_density(latents)
        return loss, target_confidence(logits.detach(), flat)

    latents, history = refine(
        access,
        starts.flatten(0, 1),
        objective,
        steps=budget.steps,
        optimiser=partial(torch.optim.Adam, lr=budget.learning_rate, betas=(0.1, 0.1)),
        scheduler=partial(
            torch.optim.lr_scheduler.MultiStepLR,
            milestones=[round(milestone * budget.steps) for milestone in budget.milestones],
            gamma=budget.decay,
        ),
    )
    return storable(latents).view_as(starts), history


def step_crops(labels: list[int], *, budget: PpaBudget, seed: int, size: int) -> Tensor:
    """(steps, k * candidates, 5) crops, each identity's from its own stream; (steps, 1, 5) with
    ``reference``. Drawn before the loop, on the CPU, so that the loop waits for nothing."""
    if budget.reference:
        shared = generator(seed, "ppa", "crops", "shared")
        return draw_crops(budget.steps, 1, scale=budget.crop_scale, generator=shared, whole_pixels=size)
    draws = [
        draw_crops(
            budget.steps,
            budget.candidates,
            scale=budget.crop_scale,
            generator=generator(seed, "ppa", "crops", label),
        )
        for label in labels
    ]
    return torch.cat(draws, dim=1)
