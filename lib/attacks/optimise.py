"""The loop that all gradient attacks share: many latents at once, nothing read back before the end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lib.attacks.access import Access

Objective = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def refine(
    access: Access,
    start: Tensor,
    objective: Objective,
    *,
    steps: int,
    optimiser: Callable[[list[Tensor]], Optimizer],
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    project: Callable[[Tensor], None] | None = None,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise the **sum** of the objective over samples, so that a latent's path does not depend on how
    many others share the batch.

    Args:
        access: whose target may add terms of its own to the loss (:meth:`Access.terms`).
        start: (B, d), left unchanged.
        objective: (latents, step) to (loss (B,), confidence (B,)).
        project: changes the latents in place after each step (a box).
        observe: shown the latents (B, d) before each step and their whole loss (B,), ingredients' terms included.

    Returns:
        latents (B, d); history (steps, 2): mean loss and confidence before each step. Both on the device.
    """
    latents = start.detach().clone().requires_grad_(True)
    method = optimiser([latents])
    schedule = scheduler(method) if scheduler else None
    history = torch.zeros(steps, 2, device=start.device)
    with torch.enable_grad():
        for step in range(steps):
            loss, confidence = objective(latents, step)
            loss = loss + access.terms()
            if observe:
                observe(latents.detach(), loss.detach())
            (latents.grad,) = torch.autograd.grad(loss.sum(), [latents])
            method.step()
            if schedule:
                schedule.step()
            with torch.no_grad():
                if project:
                    project(latents)
                history[step, 0] = loss.mean()
                history[step, 1] = confidence.mean()
    return latents.detach(), history


def target_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """p_y per sample: (B, C) and (B,) to (B,)."""
    return logits.softmax(1).gather(1, labels[:, None])[:, 0]
