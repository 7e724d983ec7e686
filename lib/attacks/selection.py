"""Final selection: which of an identity's candidates to keep, by the target alone, never by an evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lib.attacks.access import Access
from lib.attacks.interface import Budget
from lib.attacks.optimise import target_confidence
from lib.attacks.transforms import apply_crops, draw_crops
from lib.runtime import generator

Ranking = Literal["confidence", "logit"]


def keep_best(scores: Tensor, count: int) -> Tensor:
    """(K, n) scores to (K, count) indices, best first."""
    return scores.topk(count, dim=1).indices


def select(
    access: Access,
    latents: Tensor,
    labels: Tensor,
    *,
    budget: Budget,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    rank_by: Ranking = "confidence",
) -> dict[str, Tensor]:
    """Render each latent once and :func:`rank` the images; latents (K, n, d), the rest as there."""
    with torch.no_grad():
        images = access.images(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
    return rank(access, images, labels, budget=budget, loss=loss, seed=seed, rank_by=rank_by)


def rank(
    access: Access,
    images: Tensor,
    labels: Tensor,
    *,
    budget: Budget,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    rank_by: Ranking = "confidence",
) -> dict[str, Tensor]:
    """Look at each image through random views and keep the best.

    All candidates of an identity are seen through the same views (its own named stream), so that they are
    compared fairly and independently of who else is attacked.

    Args:
        images: (K, n, 3, S, S) in [0, 1] on the device.
        labels: (K,) on the device.
        loss: identity loss reported for the plain image.
        rank_by: mean p_y over the views (PPA), or the target logit of the plain image (GMI).

    Returns:
        ``confidence`` (K, n), ``loss`` (K, n), ``selected`` (K, keep).
    """
    count, candidates = images.shape[:2]
    flat = labels.repeat_interleave(candidates)
    views = torch.stack(
        [
            draw_crops(
                budget.views,
                scale=budget.view_scale,
                ratio=budget.view_ratio,
                mirror=0.5,
                generator=generator(seed, "attack", "selection", label),
            )
            for label in labels.tolist()
        ],
        dim=1,
    )
    views = views.repeat_interleave(candidates, dim=1).to(images.device)
    images = images.flatten(0, 1)
    with torch.no_grad():
        logits = access.logits(images)
        access.terms()  # they are for the optimisation alone
        total = torch.zeros(len(images), device=images.device)
        for view in views:
            total += target_confidence(access.logits(apply_crops(images, view)), flat)
        confidence = (total / budget.views).view(count, candidates)
        target_logit = logits.gather(1, flat[:, None]).view(count, candidates)
        return {
            "confidence": confidence,
            "loss": loss(logits, flat).view(count, candidates),
            "selected": keep_best(confidence if rank_by == "confidence" else target_logit, budget.keep),
        }


class Best:
    """The distinct latents (K, n, d) of the highest scores (K, n) so far."""

    def __init__(self, identities: int, count: int, dim: int, device: torch.device) -> None:
        self.latents = torch.full((identities, count, dim), torch.nan, device=device)
        self.scores = torch.full((identities, count), -torch.inf, device=device)

    def offer(self, latents: Tensor, scores: Tensor) -> None:
        """Put each identity's latent (K, d), with its score (K,), in the place of its worst if it is better
        and not there yet."""
        known = (self.latents == latents[:, None]).all(2).any(1)
        worst, place = self.scores.min(1, keepdim=True)
        enters = (scores[:, None] > worst) & ~known[:, None]
        self.scores.scatter_(1, place, torch.where(enters, scores[:, None], worst))
        place = place[..., None].expand(-1, -1, latents.shape[1])
        stays = self.latents.gather(1, place)
        self.latents.scatter_(1, place, torch.where(enters[..., None], latents[:, None], stays))
