"""The networks as an attack sees them: logits in fp32, images from latents, every pass counted."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lib.attacks.interface import device_of
from lib.runtime import autocast

if TYPE_CHECKING:
    from lib.priors import Prior


class Access:
    """Counts images per network on the host, so that counting never waits for the device.

    Attacks ask this object and nothing else; whoever wants other logits (an average over erasing masks,
    an ensemble) overrides :meth:`logits` and the search, the optimisation and the selection follow.
    """

    def __init__(self, target: nn.Module, prior: Prior, *, fast: bool) -> None:
        self.target = target
        self.prior = prior
        self.fast = fast
        self.device = device_of(target)
        self.counts = {"target_forward": 0, "target_backward": 0, "synthesis": 0, "critic": 0}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0,1] to (B, C) fp32."""
        self.counts["target_forward"] += len(images)
        if images.requires_grad:
            self.counts["target_backward"] += len(images)
        images = images.contiguous(memory_format=torch.channels_last)  # what convolutions are fastest in
        with autocast(self.device) if self.fast else contextlib.nullcontext():
            return self.target(images).float()

    def images(self, latents: Tensor) -> Tensor:
        """(B, d) to (B, 3, S, S) in [0,1]."""
        self.counts["synthesis"] += len(latents)
        return self.prior.synthesise(latents)

    def critic(self, images: Tensor) -> Tensor:
        """(B,): how real the prior's critic finds the images."""
        self.counts["critic"] += len(images)
        return self.prior.critic(images).float().reshape(len(images))

    def sample(self, count: int, *, generator: torch.Generator, truncation: float) -> Tensor:
        """(count, d) prior latents, drawn on the CPU so that all devices start from the same ones."""
        return self.prior.sample(count, generator=generator, truncation=truncation).detach().to(self.device)

    def cost(self, identities: int, seconds: float) -> dict[str, float]:
        """The counters per identity, seconds per identity and the peak memory so far."""
        passes = {name: count / identities for name, count in self.counts.items()}
        return {**passes, "seconds": seconds / identities, **_peak_memory(self.device)}


def _peak_memory(device: torch.device) -> dict[str, float]:
    """Megabytes: of this device since the attack began, or of the process since it began (CPU). Empty
    where the system does not tell."""
    if device.type == "cuda":
        return {"peak_memory_mb": torch.cuda.max_memory_allocated(device) / 1e6}
    if device.type == "mps":
        return {"peak_memory_mb": torch.mps.driver_allocated_memory() / 1e6}
    if sys.platform == "win32":
        return {}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory_mb": peak / 1e6 if sys.platform == "darwin" else peak / 1e3}
