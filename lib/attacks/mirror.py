"""MIRROR, model inversion with high fidelity (An et al., NDSS 2022), white box.

The pool's best latents are moved by Adam along the cross entropy and clamped, after each step, to the box of
likely latents in P space; each keeps the latent of its lowest loss. Which are kept is decided as by all attacks here
that start from a pool, by the target's mean confidence over random views. (The published script takes the largest set
of candidates that share other labels among their first five, and of it the one of the highest logit.)
"""

from __future__ import annotations

import math
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
from lib.attacks.losses import cross_entropy
from lib.attacks.optimise import refine, target_confidence
from lib.attacks.pspace import Box
from lib.attacks.search import PoolBudget, pool_latents, pool_starts, starts_of
from lib.attacks.selection import select
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "mirror"
UP, DOWN = 0.05, 0.25  # fractions of the steps over which the learning rate rises and falls


@dataclass(frozen=True, kw_only=True)
class MirrorBudget(PoolBudget):
    """Defaults: the published scripts.

    Attributes:
        pool: prior samples that are scored, and that the box is measured on.
        learning_rate: Adam's at its highest; see :func:`ramp`.
        truncation: every synthesis shrinks its latent by this towards the mean; what is optimised, and boxed,
            is the latent before that.
        width: of the box, in standard deviations in P space.
        reference: as the published code: one coin per step mirrors all samples or none, and one step (of the
            lowest mean loss of an identity) serves all its candidates. Else a coin and a step per sample. Either way
            what is kept is what the loss was of; the code keeps it one step later.
    """

    pool: int = 100_000
    candidates: int = 8
    steps: int = 20_000
    learning_rate: float = 0.25
    keep: int = 1
    truncation: float = 0.7
    width: float = 1.0
    reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("width")
        if self.pool < 2:
            raise UserError(f"budget pool: expected at least 2, got {self.pool}; raise it")

    @property
    def descent(self) -> tuple[float, float]:
        return 0.0, 1 - DOWN


Budget = MirrorBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: MirrorBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`."""
    labels = check_inputs(target, prior, labels)
    with frozen(*networks(target, prior)):
        access = Access(target, prior, fast=budget.fast)
        centre = access.sample(1, generator=generator(seed, "mirror", "centre"), truncation=0.0)[0]
        samples = pool_latents(access, budget.pool, truncation=1.0, seed=seed)  # as scored, before truncation
        box = Box.of(samples, slope=prior.slope, width=budget.width)
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed, box=box, centre=centre),
            name=NAME,
            budget=budget,
            seed=seed,
            prepare=pool_starts(access, budget, seed=seed, callback=callback),
            callback=callback,
            checkpoint=checkpoint,
        )


def _attack(
    access: Access,
    labels: Tensor,
    prepared: dict[str, Tensor],
    *,
    budget: MirrorBudget,
    seed: int,
    box: Box,
    centre: Tensor,
) -> dict[str, Tensor]:
    """One chunk: k labels on the device, their starts (k, n, d), truncated."""
    starts = starts_of(prepared)
    flat = labels.repeat_interleave(budget.candidates)
    mirrored = coins(labels.tolist(), budget=budget, seed=seed).to(access.device)
    best = Best(starts.flatten(0, 1), group=budget.candidates if budget.reference else 1)

    def truncate(latents: Tensor) -> Tensor:
        return torch.lerp(centre, latents, budget.truncation)

    def objective(latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        shown = truncate(latents)
        images = access.images(shown)
        logits = access.logits(torch.where(mirrored[step, :, None, None, None], images.flip(-1), images))
        loss = cross_entropy(logits, flat)
        return 10 * loss, target_confidence(logits.detach(), flat)

    _, history = refine(
        access,
        centre + (starts.flatten(0, 1) - centre) / budget.truncation,
        objective,
        steps=budget.steps,
        optimiser=partial(torch.optim.Adam, lr=budget.learning_rate),
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(ramp, steps=budget.steps)),
        project=box.clamp_,
        observe=lambda latents, loss: best.see(truncate(latents), loss),
    )
    latents = storable(best.latents).view_as(starts)
    judged = select(access, latents, labels, budget=budget, loss=cross_entropy, seed=seed)
    return {"latents": latents, "initial": starts, "history": history, **judged}


def ramp(step: int, *, steps: int) -> float:
    """Fraction of the learning rate at a step: up linearly over the first 5 %, down by a cosine over the last
    quarter (the schedule of StyleGAN2's projector)."""
    done = step / steps
    fall = min(1.0, (1 - done) / DOWN)
    return (0.5 - 0.5 * math.cos(math.pi * fall)) * min(1.0, (step + 1) / (UP * steps))


def coins(labels: list[int], *, budget: MirrorBudget, seed: int) -> Tensor:
    """(steps, k * candidates) bool: which samples are mirrored at which step."""
    draws = []
    for label in labels:
        stream = generator(seed, "mirror", "coins", *(() if budget.reference else (label,)))
        count = 1 if budget.reference else budget.candidates
        draws.append(torch.rand(budget.steps, count, generator=stream).expand(-1, budget.candidates))
    return torch.cat(draws, 1) < 0.5


class Best:
    """The latents of the lowest loss so far, per sample, or per ``group`` of consecutive ones by their mean."""

    def __init__(self, latents: Tensor, *, group: int) -> None:
        self.latents, self.group = latents.clone(), group
        self.loss = torch.full((len(latents),), torch.inf, device=latents.device)

    def see(self, latents: Tensor, loss: Tensor) -> None:
        """Latents (B, d) with their loss (B,)."""
        loss = loss.view(-1, self.group).mean(1).repeat_interleave(self.group)
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.latents = torch.where(better[:, None], latents, self.latents)
