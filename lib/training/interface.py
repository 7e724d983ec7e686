"""The small interface through which every defence speaks to the one training loop.

A defence overrides the members it needs; a missing member is the identity. A composition is a list.
The order of a step is: gather -> ``source`` -> augment -> draw ``input`` views -> ``before`` -> ``batch`` ->
views -> network and taps -> ``criterion`` x weights + ``penalty`` -> update. A view is drawn once a step and
then fixed, so inner loops and penalties see the very mask the network sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Batched affine and photometric augmentation; every field is a half-range around 'no change'.

    Attributes:
        rotation: degrees. translation: share of the side. scale: log of the zoom.
        flip: probability of mirroring. brightness, contrast, saturation: relative.
    """

    rotation: float = 12.0
    translation: float = 0.05
    scale: float = 0.12
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.2


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. The budget is in optimiser steps; an epoch is one pass over the data.

    Attributes:
        steps: length of the schedule (one cycle: linear warm-up, cosine to zero).
        stop: fraction of the schedule after which training ends (1 = all of it).
        share: fraction of each identity's training photos used (1 = all).
        width: multiplier of the network's widths.
        average: decay of the weight average that is evaluated and kept; 0 keeps the raw weights.
        identities: of a balanced batch, each with equally many photos; 0 shuffles all photos.
    """

    steps: int
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.2
    label_smoothing: float = 0.0
    average: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    stop: float = 1.0
    share: float = 1.0
    width: float = 1.0
    identities: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.learning_rate >= 0:
            raise UserError(
                "recipe: expected steps >= 1, batch >= 1 and learning_rate >= 0, got "
                f"{self.steps}, {self.batch}, {self.learning_rate}; correct the setup"
            )


History = Sequence[Mapping[str, float]]
"""A training's diagnostics, a row an epoch."""


class Defence:
    """Base of all defences: does nothing, that is, NoDef."""

    name: str = "none"

    cost: float = 1.0
    """Passes through the network in a step over NoDef's three: forward 1, backward 2, a backward to the photos alone 1
    (defences specification, section 0). What a plan of trainings counts on; notebook 10 measures it."""

    exact: bool = False
    """Whether its photos must reach the network in fp32, where the loop would train in bf16."""

    pretraining: dict[str, Any] | None = None
    """What the network's body learns before it meets a private photo, as ``pretrained`` of a judge: sets, steps,
    learning_rate and cosine; None: nothing. A stage of its own, so that trainings share it."""

    def plan(self, recipe: Recipe) -> Recipe:
        """Change the recipe before anything is built (NoDef controls)."""
        return recipe

    def build(self, model: nn.Module) -> nn.Module:
        """Surgery on the network, once, before the optimiser."""
        return model

    def freeze(self, model: nn.Module) -> set[nn.Parameter]:
        """Parameters that are not trained."""
        return set()

    def optimise(
        self,
        optimiser: torch.optim.Optimizer,
        model: nn.Module,
        *,
        defences: Sequence[Defence],
        photos: int,
        recipe: Recipe,
    ) -> torch.optim.Optimizer:
        """Replace the optimiser, once, or wrap it: its state is still what a checkpoint keeps. ``defences``: the whole
        composition; ``photos``: of the data; ``recipe``: as planned, with the batch that is used."""
        return optimiser

    def taps(self, model: nn.Module) -> list[nn.Module]:
        """Modules whose outputs :meth:`penalty` wants to see."""
        return []

    def nets(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """Auxiliary networks with their optimisers; checkpointed with the model."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """Auxiliary tensors (triggers, say); checkpointed with the model."""
        return {}

    def phase(self, epoch: int, epochs: int) -> None:
        """Called at the start of each epoch (0-based)."""

    def source(self, images: Tensor, index: Tensor, seed: int) -> Tensor:
        """Applied to the source images (B,3,S,S) in [0,1] before augmentation; ``index`` numbers the photos."""
        return images

    def input(self, images: Tensor, index: Tensor, generator: torch.Generator) -> View | None:
        """Draw this step's randomness and return a fixed map applied last, just before the network."""
        return None

    def before(
        self, model: nn.Module, view: View, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Any:
        """Runs before the main forward pass; may do its own updates. Returns extras for :meth:`batch`."""
        return None

    def batch(self, images: Tensor, labels: Tensor, extras: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        """Replace the batch by (images, labels, weights per sample); None leaves it. The m photos come first;
        what is appended is whole copies of the batch, each row seen through the view of the photo it copies.
        Labels are (B,) int64 or, from a defence that mixes photos, (B,C) probabilities; whoever reads labels
        takes both (:func:`probabilities`)."""
        return None

    criterion: Callable[[Tensor, Tensor], Tensor] | None = None
    """(logits fp32, labels) -> loss per sample; at most one member of a composition has one."""

    appends_cross_entropy: bool = False
    """Whether what :meth:`batch` appends is judged by the recipe's cross-entropy, whoever has another criterion."""

    def penalty(self, images: Tensor, labels: Tensor, taps: list[Tensor]) -> Tensor | float:
        """Added to the mean criterion; sees the m photos, no appended rows."""
        return 0.0

    def deploy(self, model: nn.Module) -> nn.Module:
        """The network as it is evaluated and attacked."""
        return model

    def diagnostics(self) -> dict[str, float]:
        """What shows that the defence was active (mean erased area, ...), over the run."""
        return {}

    @staticmethod
    def acted(history: History) -> bool | None:
        """Whether the :meth:`diagnostics` of a training, a row an epoch, say that the defence did what it is for; None
        for one that has nothing to show (it only changes the recipe)."""
        return None


def probabilities(labels: Tensor, logits: Tensor) -> Tensor:
    """(B,C): the label distributions of ``labels``, (B,) int64 or (B,C) already, in the kind of ``logits``."""
    if labels.ndim == 2:
        return labels.to(logits.dtype)
    return F.one_hot(labels, logits.shape[1]).to(logits.dtype)


def union(parts: Iterable[set]) -> set:
    return set().union(*parts)
