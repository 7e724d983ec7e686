"""GMI, generative model inversion (Zhang et al., CVPR 2020), white box.

From several random starts, Nesterov momentum on realism + 100 x cross entropy, clipped to a box after each
step; the target chooses among the restarts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lib.attacks.access import Access
from lib.attacks.chunks import run_chunks
from lib.attacks.interface import Budget as CommonBudget
from lib.attacks.interface import Callback, Reconstructions, check_inputs, networks, storable
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import Identity, by_cross_entropy, cross_entropy
from lib.attacks.optimise import Objective, refine, target_confidence
from lib.attacks.selection import Ranking, select
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "gmi"


@dataclass(frozen=True, kw_only=True)
class GmiBudget(CommonBudget):
    """Defaults: the published code.

    Lengths (``learning_rate``, ``clip``) are in units of the prior's latent standard deviation, per
    coordinate and around its mean, so that they mean the same for standard normal and other latents.

    Attributes:
        candidates: restarts per identity, from random latents.
        learning_rate: per ``reference_batch``: the published loss is a mean over a batch of 60 identities,
            which makes its step depend on the batch; here every sample moves as it would in that batch.
        clip: half width of the box after each step; None for no box. The momentum is not reset.
        identity_weight: weight of the cross entropy.
        realism: "critic" (-D of the prior's critic, the paper), "density" (-log density of the latent), or
            "auto": the critic if the prior has one.
        realism_weight: its weight, 1 in the paper.
        rank_by: how the target chooses: "logit" of the plain image (published code) or mean "confidence"
            over random views (as in PPA).
    """

    candidates: int = 5
    steps: int = 1500
    learning_rate: float = 0.02
    keep: int = 1
    momentum: float = 0.9
    clip: float | None = 1.0
    identity_weight: float = 100.0
    realism: Literal["auto", "critic", "density"] = "auto"
    realism_weight: float = 1.0
    reference_batch: int = 60
    rank_by: Ranking = "logit"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("reference_batch")
        self.require_positive("identity_weight")
        if self.clip is not None:
            self.require_positive("clip")
        if not 0 < self.momentum < 1:
            raise UserError(f"budget momentum: expected between 0 and 1, got {self.momentum}; use e.g. 0.9")
        if not 0 <= self.realism_weight < float("inf"):
            raise UserError(f"budget realism_weight: expected at least 0, got {self.realism_weight}")
        self.require_choice("realism", "auto", "critic", "density")
        self.require_choice("rank_by", "confidence", "logit")


Budget = GmiBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: GmiBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
    identity: Identity = by_cross_entropy,
    name: str = NAME,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`.

    ``identity`` and ``name``: of an attack that puts another identity loss in the place of the cross entropy.
    """
    labels = check_inputs(target, prior, labels)
    has_critic = getattr(prior, "critic", None) is not None
    if budget.realism == "critic" and not has_critic:
        raise UserError(
            f"gmi: expected a prior with a critic, got {prior.name} without one; use realism: density or auto"
        )
    use_critic = has_critic and budget.realism != "density"
    with frozen(*networks(target, prior)):
        access = Access(target, prior, fast=budget.fast)

        def prepare(ascending: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            mean, scale = access.moments(generator=generator(seed, "gmi", "scale"))
            return {}, {"mean": mean, "scale": scale}

        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed, use_critic=use_critic, identity=identity),
            name=name,
            budget=budget,
            seed=seed,
            prepare=prepare,
            callback=callback,
            checkpoint=checkpoint,
        )


def _attack(
    access: Access,
    labels: Tensor,
    prepared: dict[str, Tensor],
    *,
    budget: GmiBudget,
    seed: int,
    use_critic: bool,
    identity: Identity,
) -> dict[str, Tensor]:
    """One chunk: k labels on the device, the latents' mean (d,) and scale (d,)."""
    mean, scale = prepared["mean"], prepared["scale"]
    starts = storable(
        torch.stack(
            [
                access.sample(
                    budget.candidates,
                    generator=generator(seed, "gmi", "start", label),
                    truncation=budget.truncation,
                )
                for label in labels.tolist()
            ]
        )
    )
    flat = labels.repeat_interleave(budget.candidates)

    def objective(whitened: Tensor, step: int) -> tuple[Tensor, Tensor]:
        latents = mean + scale * whitened
        images = access.images(latents)
        loss, logits = identity(access, images, flat)
        loss = budget.identity_weight * loss
        if budget.realism_weight:
            realism = access.critic(images) if use_critic else access.prior.log_density(latents)
            loss = loss - budget.realism_weight * realism
        return loss, target_confidence(logits.detach(), flat)

    whitened, history = descend(
        access,
        ((starts - mean) / scale).flatten(0, 1),
        objective,
        steps=budget.steps,
        learning_rate=budget.learning_rate / budget.reference_batch,
        momentum=budget.momentum,
        clip=budget.clip,
    )
    latents = storable(mean + scale * whitened).view_as(starts)
    judged = select(
        access, latents, labels, budget=budget, loss=cross_entropy, seed=seed, rank_by=budget.rank_by
    )
    return {"latents": latents, "initial": starts, "history": history, **judged}


def descend(
    access: Access,
    start: Tensor,
    objective: Objective,
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    """GMI's step: v' = m v - lr g, z <- clip(z - m v + (1 + m) v'). That is Nesterov SGD, followed by a
    clip that leaves the velocity as it is. Arguments and result as in :func:`lib.attacks.optimise.refine`."""

    def project(latents: Tensor) -> None:
        latents.clamp_(-clip, clip)

    return refine(
        access,
        start,
        objective,
        steps=steps,
        optimiser=partial(torch.optim.SGD, lr=learning_rate, momentum=momentum, nesterov=True),
        project=project if clip is not None else None,
    )
