"""PPDG-MI, pseudo-private-data-guided model inversion around PPA (Peng et al., NeurIPS 2024), white box.

After a round of PPA the images the target likes best serve as photos of the person: a copy of the generator is tuned
until its likely latents make images like them, and PPA is run again through the copy. Each identity has its own copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from lib.attacks import ppa
from lib.attacks.access import Access
from lib.attacks.chunks import run_chunks
from lib.attacks.interface import Callback, Reconstructions, check_inputs, networks
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import poincare
from lib.attacks.ppa import PpaBudget
from lib.attacks.search import pool_starts, search, starts_of
from lib.attacks.selection import keep_best, rank
from lib.attacks.tuning import discrepancy, pointwise, project, synthesis_of, transport, tunable, tune
from lib.errors import UserError
from lib.runtime import frozen, generator, seed_for
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "ppdg"
DISTANCES = {"pointwise": pointwise, "transport": transport, "discrepancy": discrepancy}
PUBLISHED = {  # private, pivot_steps, tune_steps
    "pointwise": (5, 300, 150),
    "transport": (10, 150, 25),
    "discrepancy": (10, 100, 150),
}


@dataclass(frozen=True, kw_only=True)
class PpdgBudget(PpaBudget):
    """Defaults: the published high-resolution attack, but for three things. Views of the selection are PPA's (the
    published run only mirrors). Images are compared by coarse pixels and the target's features, where the published
    run has LPIPS, a network trained on other photos. ``pivot_noise`` is ``coordinate``.

    Attributes:
        rounds: of PPA; 1 is PPA alone. ``steps`` are of each round.
        mode: by what the images of the pivots are compared with the pseudo-private ones: one by one
            (``pointwise``), or as sets, by conditional ``transport`` or maximum mean ``discrepancy``.
        private: pseudo-private images per identity, best first. pivot_steps, pivot_rate: of their projection.
            tune_steps, tune_rate: of the generator's tuning. Left out, the published ones of the mode.
        pivot_noise: the projection's, measured by each ``coordinate`` of the latents or by all ``joint``, as published:
            sqrt(d) times as much.
    """

    pool: int = 500
    candidates: int = 100
    steps: int = 70
    keep: int = 100
    milestones: tuple[float, ...] = ()
    rounds: int = 2
    mode: Literal["pointwise", "transport", "discrepancy"] = "pointwise"
    private: int | None = None
    pivot_steps: int | None = None
    pivot_rate: float = 0.01
    tune_steps: int | None = None
    tune_rate: float = 3e-4
    pivot_noise: Literal["coordinate", "joint"] = "coordinate"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_choice("mode", *DISTANCES)
        self.require_choice("pivot_noise", "coordinate", "joint")
        for name, published in zip(
            ("private", "pivot_steps", "tune_steps"), PUBLISHED[self.mode], strict=True
        ):
            if getattr(self, name) is None:
                most = self.candidates if name == "private" else published
                object.__setattr__(self, name, min(published, most))
        self.require_count("rounds", "private", "pivot_steps", "tune_steps")
        self.require_positive("pivot_rate", "tune_rate")
        if self.private > self.candidates:
            raise UserError(
                f"budget private: expected at most the {self.candidates} candidates, got {self.private}; lower it"
            )

    @property
    def work(self) -> float:
        tuning = self.private * (self.pivot_steps + self.tune_steps) * 1.5 + self.pool
        return self.rounds * super().work + (self.rounds - 1) * tuning

    def short(self) -> Self:
        few: dict[str, Any] = {"pivot_steps": 1, "tune_steps": 1}
        return replace(super().short(), **few)


Budget = PpdgBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: PpdgBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments and errors as in :func:`lib.attacks.ppa.invert`, and a prior whose
    synthesis cannot be trained is refused. What is kept is of the last round, as published. The given prior does not
    make the result's images of its latents, so the result carries them."""
    labels = check_inputs(target, prior, labels)
    with frozen(*networks(target, prior)):
        access = Access(target, prior, fast=budget.fast)
        synthesis_of(access)
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed),
            name=NAME,
            budget=budget,
            seed=seed,
            prepare=pool_starts(access, budget, seed=seed, callback=callback),
            callback=callback,
            checkpoint=checkpoint,
        )


def _attack(
    access: Access, labels: Tensor, prepared: dict[str, Tensor], *, budget: PpdgBudget, seed: int
) -> dict[str, Tensor]:
    """One chunk: k labels on the device, their starts (k, n, d). The first round is PPA for all of them at once; from
    then on every identity has weights of its own, and is gone through alone."""
    starts = starts_of(prepared)
    found = _round(access, labels, starts, budget=budget, seed=seed, draws=seed)
    if budget.rounds > 1:
        history = found.pop("history")
        parts = [
            _guided(access, label, {k: v[i : i + 1] for k, v in found.items()}, budget=budget, seed=seed)
            for i, label in enumerate(labels.split(1))
        ]
        further = torch.stack([part.pop("history") for part in parts]).mean(0)
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        found["history"] = torch.cat([history, further])
    return {"initial": starts, **found}


def _guided(
    access: Access, label: Tensor, found: dict[str, Tensor], *, budget: PpdgBudget, seed: int
) -> dict[str, Tensor]:
    """The further rounds of one identity, label (1,), after the first one: what the last one :func:`_round`
    found, and the history of them all."""
    distance, histories, own = DISTANCES[budget.mode], [], access
    access.restart()  # an adapted target's draws do not depend on whom the chunk holds besides
    for number in range(1, budget.rounds):
        again = seed_for(seed, "ppdg", number)
        best = keep_best(found["confidence"], budget.private)[0]
        private = found["images"][0, best].float() / 255
        own = tunable(own)
        noise = generator(again, "ppdg", "projection", label.item())
        pivots = project(
            own,
            private,
            distance,
            steps=budget.pivot_steps,
            learning_rate=budget.pivot_rate,
            noise=noise,
            joint=budget.pivot_noise == "joint",
        )
        tune(own, pivots, private, distance, steps=budget.tune_steps, learning_rate=budget.tune_rate)
        latents, best = search(
            own,
            label.cpu(),
            pool=budget.pool,
            candidates=budget.candidates,
            truncation=budget.truncation,
            seed=again,
            batch=budget.chunk * budget.candidates,
        )
        found = _round(own, label, latents[best].to(access.device), budget=budget, seed=seed, draws=again)
        histories.append(found["history"])
    return {**found, "history": torch.cat(histories)}


def _round(
    access: Access, labels: Tensor, starts: Tensor, *, budget: PpdgBudget, seed: int, draws: int
) -> dict[str, Tensor]:
    """PPA from starts (k, n, d) for labels (k,), its images rounded before they are judged.

    Args:
        seed: of the views under which images are judged. draws: of the crops.
    """
    latents, history = ppa.optimise(access, labels, starts, budget=budget, seed=draws)
    with torch.no_grad():
        images = access.images(latents.flatten(0, 1)).clamp(0, 1).mul(255).round().byte()
    images = images.unflatten(0, starts.shape[:2])
    judged = rank(access, images.float() / 255, labels, budget=budget, loss=poincare, seed=seed)
    return {"latents": latents, "history": history, "images": images, **judged}
