"""Candidate search: one pool of prior samples, synthesised and scored once, serves all identities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attacks.access import Access
from lib.attacks.chunks import Prepare
from lib.attacks.interface import Budget, Callback, storable
from lib.errors import UserError
from lib.runtime import generator


@dataclass(frozen=True, kw_only=True)
class PoolBudget(Budget):
    """Of an attack that starts from the best of a pool.

    Attributes:
        pool: prior samples among which the starts of all identities are searched.
    """

    pool: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("pool")
        if self.candidates > self.pool:
            raise UserError(
                f"budget candidates: expected at most the pool of {self.pool}, got {self.candidates}; "
                "raise the pool or search for fewer"
            )


def pool_latents(access: Access, count: int, *, truncation: float, seed: int) -> Tensor:
    """The pool (count, d). It depends on the seed alone, so neither on the labels nor on their order."""
    return access.sample(count, generator=generator(seed, "attack", "pool"), truncation=truncation)


def score_pool(
    access: Access, latents: Tensor, labels: Tensor, *, batch: int, callback: Callback | None = None
) -> Tensor:
    """The target's p_y of each pool image, averaged with that of its mirror image.

    Args:
        latents: (S, d).
        labels: (K,) int64: the columns wanted.

    Returns:
        (S, K) fp32 on the device.
    """
    columns = labels.to(access.device)
    scores = torch.empty(len(latents), len(labels), device=access.device)
    with torch.no_grad():
        for start in range(0, len(latents), batch):
            access.restart()  # an adapted target draws the same views for all, or luck would choose
            images = access.images(latents[start : start + batch])
            both = access.logits(torch.cat([images, images.flip(-1)])).softmax(1)[:, columns]
            scores[start : start + batch] = both.view(2, -1, len(labels)).mean(0)
            if callback:
                done = min(start + batch, len(latents))
                callback({"stage": "candidate search", "done": done, "total": len(latents)})
    return scores


def best_candidates(scores: Tensor, count: int) -> Tensor:
    """(S, K) scores to (K, count) pool indices, best first: one top-k for all identities. A candidate may
    serve several of them."""
    return scores.topk(count, dim=0).indices.T.contiguous()


def search(
    access: Access,
    labels: Tensor,
    *,
    pool: int,
    candidates: int,
    truncation: float,
    seed: int,
    batch: int,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor]:
    """Latents (S, d) and which of them each identity starts from, (K, candidates) int64; on the CPU. Starts (K,
    candidates, d) would grow with the people, what is kept of the pool does not beyond it.

    What is scored is what is optimised later (the published code scores another truncation than it then starts
    from).
    """
    latents = storable(pool_latents(access, pool, truncation=truncation, seed=seed))
    scores = score_pool(access, latents, labels, batch=batch, callback=callback)
    used, best = best_candidates(scores, candidates).unique(return_inverse=True)
    return latents[used].cpu(), best.cpu()


def pool_starts(
    access: Access,
    budget: PoolBudget,
    *,
    seed: int,
    candidates: int | None = None,
    callback: Callback | None = None,
) -> Prepare:
    """The search as what :func:`lib.attacks.chunks.run_chunks` prepares, for :func:`starts_of`.

    Args:
        candidates: starts per identity; those of the budget if None.
    """

    def prepare(labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        latents, best = search(
            access,
            labels,
            pool=budget.pool,
            candidates=budget.candidates if candidates is None else candidates,
            truncation=budget.truncation,
            seed=seed,
            batch=budget.chunk * budget.candidates,
            callback=callback,
        )
        return {"best": best}, {"pool": latents}

    return prepare


def starts_of(prepared: dict[str, Tensor]) -> Tensor:
    """(k, candidates, d): what a chunk's identities start from, of what :func:`pool_starts` prepared."""
    return prepared["pool"][prepared["best"]]
