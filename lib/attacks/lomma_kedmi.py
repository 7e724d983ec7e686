"""LOMMA on KEDMI: KEDMI with the identity loss of :mod:`lib.attacks.lomma`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lib.attacks import kedmi
from lib.attacks.interface import Callback, Reconstructions, check_inputs
from lib.attacks.kedmi import KedmiBudget
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.lomma import Options, make_identity
from lib.runtime import frozen
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "lomma_kedmi"
NEEDS = ("public", "students")
PRIOR = "inversion_gan"


@dataclass(frozen=True, kw_only=True)
class LommaKedmiBudget(Options, KedmiBudget):
    """Defaults: the published code, which clamps latents in the graph."""

    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()


Budget = LommaKedmiBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: LommaKedmiBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`."""
    labels = check_inputs(target, prior, labels)
    identity = make_identity(target, knowledge, budget, seed=seed)
    with frozen(*knowledge.students):
        return kedmi.invert(
            target,
            prior,
            labels,
            budget=budget,
            seed=seed,
            callback=callback,
            checkpoint=checkpoint,
            identity=identity,
            name=NAME,
        )
