"""Work through the identities chunk by chunk: flat memory, resumable, one read from the device per chunk."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.attacks.access import Access
from lib.attacks.interface import Budget, Callback, Reconstructions
from lib.errors import UserError
from lib.store import Checkpoint

FIELDS = ("latents", "initial", "selected", "confidence", "loss")
OPTIONAL = ("images",)
Prepare = Callable[[Tensor], tuple[dict[str, Tensor], dict[str, Tensor]]]


def run_chunks(
    access: Access,
    labels: Tensor,
    work: Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]],
    *,
    name: str,
    budget: Budget,
    seed: int,
    prepare: Prepare,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Attack all identities and collect the result in the caller's order.

    Identities are worked through in ascending order, so that the order of ``labels`` changes nothing. Noise
    comes from one named stream per identity, so that neither does the company an identity is in; only the
    rounding of batched kernels may differ between chunks of another composition. Finished chunks are kept
    in the checkpoint; the resumed result has the bits of the uninterrupted one.

    Args:
        labels: (K,) on the CPU (:func:`lib.attacks.interface.check_inputs`).
        prepare: labels to (tensors per identity, (K, ...); tensors shared by all), made once, kept in the
            checkpoint too.
        work: (labels of the chunk, its prepared tensors), both on the device, to the tensors ``latents,
            initial, selected, confidence, loss`` (k, ...), ``images`` where latents do not tell them
            (:class:`lib.attacks.interface.Reconstructions`), and ``history`` (steps, 2).

    Raises:
        UserError: the checkpoint belongs to another attack, target or prior; an oracle has too few answers left;
            the loss stopped being finite.
    """
    began = time.monotonic()
    order = labels.argsort()
    ascending = labels[order]
    about = [name, dataclasses.asdict(budget), seed, ascending.tolist()]
    fingerprint = json.dumps([*about, *access.signature()] if checkpoint else about, sort_keys=True)
    state = _resume(checkpoint, fingerprint)
    access.begin(state and state["counts"])
    if state is None:
        access.restart()
        each, shared = prepare(ascending)
        state = {"fingerprint": fingerprint, "each": each, "shared": shared, "chunks": [], "seconds": 0.0}
    chunks: list[dict[str, Tensor]] = state["chunks"]
    spent_before = state["seconds"]

    def snapshot() -> dict[str, Any]:
        seconds = spent_before + time.monotonic() - began
        return {**state, "counts": dict(access.counts), "seconds": seconds}

    if checkpoint and not chunks:
        checkpoint.save(snapshot)
    total = len(labels)
    for start in range(len(chunks) * budget.chunk, total, budget.chunk):
        part = slice(start, start + budget.chunk)
        prepared = {key: value[part] for key, value in state["each"].items()} | state["shared"]
        prepared = {key: value.to(access.device) for key, value in prepared.items()}
        access.restart()
        result = {k: v.cpu() for k, v in work(ascending[part].to(access.device), prepared).items()}
        if not (result["history"].isfinite().all() and result["loss"].isfinite().all()):
            raise UserError(
                f"{name}: expected a finite loss, got NaN or infinity for labels {ascending[part].tolist()}; "
                f"lower learning_rate (now {budget.learning_rate}) or check the target's weights"
            )
        chunks.append(result)
        if checkpoint:
            checkpoint.save(snapshot)
        if callback:
            loss, confidence = result["history"][-1].tolist()
            done = min(start + budget.chunk, total)
            callback({"stage": name, "done": done, "total": total, "loss": loss, "confidence": confidence})
    back = order.argsort()
    fields = (*FIELDS, *(field for field in OPTIONAL if field in chunks[0]))
    collected = {field: torch.cat([chunk[field] for chunk in chunks])[back] for field in fields}
    sizes = torch.tensor([len(chunk["loss"]) for chunk in chunks], dtype=torch.float32)
    history = torch.einsum("c,csv->sv", sizes / total, torch.stack([chunk["history"] for chunk in chunks]))
    rows = [{"step": i, "loss": loss, "confidence": p} for i, (loss, p) in enumerate(history.tolist())]
    cost = access.cost(total, spent_before + time.monotonic() - began)
    return Reconstructions(labels=labels, history=rows, cost=cost, attack=name, **collected)


def _resume(checkpoint: Checkpoint | None, fingerprint: str) -> dict[str, Any] | None:
    state = checkpoint.load() if checkpoint else None
    if state is not None and state["fingerprint"] != fingerprint:
        raise UserError(
            "checkpoint: expected one of this attack, got one of other labels, budget, seed, ingredients or "
            f"networks; remove it with {checkpoint.removal}"
        )
    return state
