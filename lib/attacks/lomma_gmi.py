"""LOMMA on GMI: GMI with the identity loss of :mod:`lib.attacks.lomma`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lib.attacks import gmi
from lib.attacks.gmi import GmiBudget
from lib.attacks.interface import Callback, Reconstructions, check_inputs
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.lomma import Options, make_identity
from lib.runtime import frozen
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "lomma_gmi"
NEEDS = ("public", "students")


@dataclass(frozen=True, kw_only=True)
class LommaGmiBudget(Options, GmiBudget):
    """Defaults: the published code (2400 steps)."""

    steps: int = 2400

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()


Budget = LommaGmiBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: LommaGmiBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`."""
    labels = check_inputs(target, prior, labels)
    identity = make_identity(target, knowledge, budget, seed=seed)
    with frozen(*knowledge.students):
        return gmi.invert(
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
