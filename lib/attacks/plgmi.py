"""PLG-MI, pseudo-label-guided model inversion (Yuan et al., AAAI 2023), white box.

The latents of the target class of a GAN that is conditional on the target's classes
(:mod:`lib.priors.conditional_gan`) are moved by Adam along the target's max-margin loss, seen through two random
views at each step.
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
from lib.attacks.interface import Budget as CommonBudget
from lib.attacks.interface import Callback, Reconstructions, check_inputs, networks, storable
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import max_margin
from lib.attacks.optimise import refine, target_confidence
from lib.attacks.selection import select
from lib.priors.guidance import ViewLaw, draw_views, look
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "plgmi"
PRIOR = "conditional_gan"
LOOKS = 2  # views per image and step


@dataclass(frozen=True, kw_only=True)
class PlgmiBudget(CommonBudget):
    """Defaults: the published attack.

    Attributes:
        candidates: restarts per identity, from random latents.
        learning_rate: Adam's, of z.
        keep: all of the candidates by default, as published.
        crop_scale: area of the random crop of a view.
        jitter, jitter_probability, rotation: of a view (:class:`lib.priors.guidance.ViewLaw`), as in the training of
            the GAN. The published code has jitter_probability 1 here, a default of its library.
        chunk: the published batch.
    """

    candidates: int = 5
    steps: int = 600
    learning_rate: float = 0.1
    keep: int = 5
    crop_scale: tuple[float, float] = (0.8, 1.0)
    jitter: float = 0.2
    jitter_probability: float = 0.5
    rotation: float = 5.0
    chunk: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "crop_scale", self.law.crop)

    @property
    def law(self) -> ViewLaw:
        """Of the views; checked on construction."""
        return ViewLaw(
            crop=self.crop_scale,
            jitter=self.jitter,
            jitter_probability=self.jitter_probability,
            rotation=self.rotation,
        )

    @property
    def work(self) -> float:
        """Every step shows the target two views."""
        return self.candidates * (LOOKS * self.steps * 1.5 + self.views / 2)


Budget = PlgmiBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: PlgmiBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`.

    Args:
        prior: of latents (z, class), with ``classes``, those of the target. The class of a latent is its label from
            the start, and no step changes it.
    """
    labels = check_inputs(target, prior, labels, attack=NAME, kind=PRIOR)
    with frozen(*networks(target, prior)):
        access = Access(target, prior, fast=budget.fast)
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed),
            name=NAME,
            budget=budget,
            seed=seed,
            prepare=lambda ascending: ({"starts": starting_latents(access, ascending, budget, seed)}, {}),
            callback=callback,
            checkpoint=checkpoint,
        )


def starting_latents(access: Access, labels: Tensor, budget: PlgmiBudget, seed: int) -> Tensor:
    """(K, n, d) on the CPU: z of each identity's own stream, its label as the class."""
    starts = []
    for label in labels.tolist():
        stream = generator(seed, NAME, "start", label)
        latents = access.sample(budget.candidates, generator=stream, truncation=budget.truncation)
        latents[:, -1] = label
        starts.append(latents)
    return storable(torch.stack(starts)).cpu()


def step_views(labels: list[int], *, budget: PlgmiBudget, seed: int) -> Tensor:
    """(steps, 2, k * candidates, ...) draws of the views, each identity's from its own stream, on the CPU."""
    draws = [
        draw_views(budget.steps, LOOKS, budget.candidates, generator=generator(seed, NAME, "views", label))
        for label in labels
    ]
    return torch.cat(draws, dim=2)


def _attack(
    access: Access, labels: Tensor, prepared: dict[str, Tensor], *, budget: PlgmiBudget, seed: int
) -> dict[str, Tensor]:
    """One chunk: k labels on the device, their starts (k, n, d)."""
    starts = prepared["starts"]
    flat = labels.repeat_interleave(budget.candidates)
    views = step_views(labels.tolist(), budget=budget, seed=seed).to(access.device)

    def objective(latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        images = access.images(latents)
        seen = [access.logits(look(images, draws, budget.law)) for draws in views[step]]
        loss = sum(max_margin(logits, flat) for logits in seen)
        return loss, sum(target_confidence(logits.detach(), flat) for logits in seen) / LOOKS

    latents, history = refine(
        access,
        starts.flatten(0, 1),
        objective,
        steps=budget.steps,
        optimiser=partial(torch.optim.Adam, lr=budget.learning_rate),
    )
    latents = storable(latents).view_as(starts)
    judged = select(access, latents, labels, budget=budget, loss=max_margin, seed=seed)
    return {"latents": latents, "initial": starts, "history": history, **judged}
