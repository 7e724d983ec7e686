"""Candidate search: one pool of prior samples, synthesised and scored once, serves all identities."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.attacks.access import Access
from lib.attacks.interface import Callback, storable
from lib.runtime import generator


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
) -> Tensor:
    """Start latents (K, candidates, d), on the CPU.

    The pool depends on the seed alone, so neither on the labels nor on their order. What is scored is what
    is optimised later (the published code scores another truncation than it then starts from).
    """
    stream = generator(seed, "attack", "pool")
    latents = storable(access.sample(pool, generator=stream, truncation=truncation))
    scores = score_pool(access, latents, labels, batch=batch, callback=callback)
    return latents[best_candidates(scores, candidates)].cpu()
