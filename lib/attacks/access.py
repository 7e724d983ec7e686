"""The networks as an attack sees them: logits in fp32, images from latents, every pass counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lib.attacks.interface import device_of
from lib.runtime import Peak, autocast, digest

if TYPE_CHECKING:
    from lib.priors import Prior

MOMENT_SAMPLES = 4096


class Access:
    """Counts images per network on the host, so that counting never waits for the device.

    Attacks ask this object and nothing else. Whoever wants other logits (an average over erasing masks) wraps
    the target (:class:`lib.attacks.adaptive.Adapted`), whoever may see less overrides :meth:`logits`
    (:class:`lib.attacks.oracle.OracleAccess`); search, optimisation and selection follow.
    """

    def __init__(self, target: nn.Module, prior: Prior, *, fast: bool) -> None:
        self.target = target
        self.prior = prior
        self.fast = fast
        self.device = device_of(target)
        self.counts = {"target_forward": 0, "target_backward": 0, "synthesis": 0, "critic": 0}
        self.peak = Peak(self.device)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0,1] to (B, C) fp32."""
        with self._pass(images) as images:
            return self.target(images).float()

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features (B, d) and logits (B, C) of the target, fp32, in one pass."""
        with self._pass(images) as images:
            features, logits = self.target.both(images)
            return features.float(), logits.float()

    def also(self, network: nn.Module, images: Tensor, *, counter: str) -> Tensor:
        """Logits (B, C) of another network than the target, which an adapted target asks as it was asked itself in the
        pass before; counted by the name ``counter``."""
        passes = len(images) * getattr(self.target, "passes", 1)
        self.counts[counter] = self.counts.get(counter, 0) + passes
        return self.target.also(network, images) if hasattr(self.target, "also") else network(images)

    @contextlib.contextmanager
    def _pass(self, images: Tensor) -> Iterator[Tensor]:
        each, wanted = getattr(self.target, "passes", 1), images.requires_grad
        passes = len(images) * (each + wanted * getattr(self.target, "gradient_passes", 0))
        self.counts["target_forward"] += passes
        self.counts["target_backward"] += wanted * passes
        with autocast(self.device) if self.fast else contextlib.nullcontext():
            # channels last: what convolutions are fastest in
            yield images.contiguous(memory_format=torch.channels_last)

    def terms(self) -> Tensor | float:
        """(B,): what an adapted target adds to the loss of the passes since the last call; 0 if nothing."""
        return self.target.terms() if hasattr(self.target, "terms") else 0.0

    def signature(self) -> list[Any]:
        """What tells a run on these networks from one on others: ingredients, weights."""
        weights = digest(*self.target.state_dict().values(), *self.prior.state().values())
        return [*getattr(self.target, "ingredients", ()), weights]

    def begin(self, counts: dict[str, int] | None) -> None:
        """Before any work, with the counts of an interrupted run where it goes on."""
        if counts is not None:
            self.counts = dict(counts)

    def restart(self) -> None:
        """Before each chunk, so that an adapted target's random draws depend on nothing that came before."""
        if hasattr(self.target, "restart"):
            self.target.restart()

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

    def moments(self, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (d,) of the prior's latents, coordinate by coordinate, from samples."""
        samples = self.sample(MOMENT_SAMPLES, generator=generator, truncation=1.0)
        return samples.mean(0), samples.std(0).clamp_min(1e-6)

    def cost(self, identities: int, seconds: float) -> dict[str, float]:
        """The counters per identity, seconds per identity, and the memory that the attack took at its peak (in this
        process, where it was resumed), where the system tells."""
        passes = {name: count / identities for name, count in self.counts.items()}
        taken = self.peak.megabytes()
        return {**passes, "seconds": seconds / identities} | ({} if taken is None else {"memory_mb": taken})
