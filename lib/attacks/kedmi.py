"""KEDMI, knowledge-enriched distributional model inversion (Chen et al., ICCV 2021), white box.

Per identity a Gaussian over latents, from which one latent is drawn at each of Adam's steps, is moved along
realism + 100 x cross entropy of its image; then several latents are drawn from it. The realism is what the
discriminator of a GAN trained against the target says (:mod:`lib.priors.inversion_gan`).
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
from lib.attacks.losses import Identity, by_cross_entropy, cross_entropy
from lib.attacks.optimise import refine, target_confidence
from lib.attacks.selection import Ranking, select
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "kedmi"
PRIOR = "inversion_gan"  # another critic's logits are no log p(real)
START = 0.0, 1.0  # mean and log variance of each latent coordinate


@dataclass(frozen=True, kw_only=True)
class KedmiBudget(CommonBudget):
    """Defaults: the published code.

    Attributes:
        candidates: latents drawn per identity from its final distribution.
        steps: of the distribution, one latent of each identity per step.
        learning_rate: Adam's, of mean and log variance.
        keep: all of the candidates by default, as published.
        clip: latents are clamped to [-clip, clip], in each step (a clamped coordinate has no gradient) and at
            the end; None, as published, for no clamp. LOMMA's code clamps to 1.
        identity_weight: weight of the cross entropy.
        realism_weight: weight of -log p(real), the critic's.
        rank_by: how the target chooses where fewer than all are kept: mean "confidence" over random views (as
            in PPA) or "logit" of the plain image (as in GMI).
        chunk: the published batch.
        truncation: 1; the attack does not start from samples of the prior.
    """

    candidates: int = 5
    steps: int = 2400
    learning_rate: float = 0.02
    keep: int = 5
    clip: float | None = None
    identity_weight: float = 100.0
    realism_weight: float = 1.0
    rank_by: Ranking = "confidence"
    chunk: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("identity_weight")
        if self.clip is not None:
            self.require_positive("clip")
        if not 0 <= self.realism_weight < float("inf"):
            raise UserError(
                f"budget realism_weight: expected at least 0, got {self.realism_weight}; use 0 to do without"
            )
        self.require_choice("rank_by", "confidence", "logit")
        if self.truncation != 1:
            raise UserError(
                f"budget truncation: expected 1, got {self.truncation}; this attack starts from no prior samples"
            )

    @property
    def work(self) -> float:
        """One latent per identity is optimised, the candidates are only looked at."""
        return self.steps * 1.5 + self.candidates * self.views / 2


Budget = KedmiBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: KedmiBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
    identity: Identity = by_cross_entropy,
    name: str = NAME,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`.

    ``initial`` are the candidates as the distribution gives them before the first step, from the same noise.
    They are wider than the prior: the variance starts at e, the prior's is 1.

    Args:
        prior: of standard normal latents, with a critic of log p(real).
        identity, name: of an attack that puts another identity loss in the place of the cross entropy.
    """
    labels = check_inputs(target, prior, labels, attack=name, kind=PRIOR)
    with frozen(*networks(target, prior)):
        access = Access(target, prior, fast=budget.fast)
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed, identity=identity),
            name=name,
            budget=budget,
            seed=seed,
            prepare=lambda ascending: ({}, {}),
            callback=callback,
            checkpoint=checkpoint,
        )


def draw(distribution: Tensor, noise: Tensor, *, clip: float | None = None) -> Tensor:
    """z = mu + exp(logvar / 2) eps, clamped to [-clip, clip]: concatenated (mu, logvar) (..., 2d) and eps
    (..., d) to (..., d), differentiable in the distribution (section 3.2 of the paper)."""
    mean, log_variance = distribution.chunk(2, dim=-1)
    latents = mean + (log_variance / 2).exp() * noise
    return latents if clip is None else latents.clamp(-clip, clip)


def noise_of(labels: list[int], *, budget: KedmiBudget, seed: int, latent_dim: int) -> tuple[Tensor, Tensor]:
    """eps of the steps (steps, k, d) and of the final candidates (k, n, d), each identity's from streams of its
    own, on the CPU; about a megabyte per identity."""

    def normal(what: str, count: int, along: int) -> Tensor:
        streams = [generator(seed, NAME, what, label) for label in labels]
        draws = [torch.randn(count, latent_dim, generator=stream) for stream in streams]
        return torch.stack(draws, dim=along)

    return normal("steps", budget.steps, 1), normal("candidates", budget.candidates, 0)


def _attack(
    access: Access,
    labels: Tensor,
    prepared: dict[str, Tensor],
    *,
    budget: KedmiBudget,
    seed: int,
    identity: Identity,
) -> dict[str, Tensor]:
    """One chunk: k labels on the device."""
    size = access.prior.latent_dim
    both = noise_of(labels.tolist(), budget=budget, seed=seed, latent_dim=size)
    step_noise, final_noise = (noise.to(access.device) for noise in both)

    def objective(distribution: Tensor, step: int) -> tuple[Tensor, Tensor]:
        images = access.images(draw(distribution, step_noise[step], clip=budget.clip))
        loss, logits = identity(access, images, labels)
        loss = budget.identity_weight * loss
        if budget.realism_weight:
            loss = loss - budget.realism_weight * access.critic(images)
        return loss, target_confidence(logits.detach(), labels)

    start = torch.tensor(START, device=access.device).repeat_interleave(size).repeat(len(labels), 1)
    distribution, history = refine(
        access,
        start,
        objective,
        steps=budget.steps,
        optimiser=partial(torch.optim.Adam, lr=budget.learning_rate),
    )
    initial, latents = (
        storable(draw(each[:, None], final_noise, clip=budget.clip)) for each in (start, distribution)
    )
    judged = select(
        access, latents, labels, budget=budget, loss=cross_entropy, seed=seed, rank_by=budget.rank_by
    )
    return {"latents": latents, "initial": initial, "history": history, **judged}
