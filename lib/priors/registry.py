"""Which class a stored prior belongs to, and how priors are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lib.errors import UserError
from lib.priors.conditional_gan import ConditionalGan
from lib.priors.conditional_training import ConditionalGanConfig, train_conditional_gan
from lib.priors.eigenfaces import Eigenfaces
from lib.priors.gan import GanConfig, train_gan
from lib.priors.interface import Prior
from lib.priors.inversion_gan import InversionGan
from lib.priors.inversion_training import InversionGanConfig, train_inversion_gan
from lib.priors.styleprior import StylePrior


@dataclass(frozen=True)
class Trainer:
    """How a kind of GAN prior is made.

    Attributes:
        Config: its constants, with ``steps`` and ``batch``.
        train: ``(public (N, 3, S, S) uint8, target, *, config, seed, device, checkpoint, callback)`` to
            ``(*networks, history)``; the prior is ``PRIORS[kind](*networks)``.
    """

    Config: type
    train: Callable[..., tuple]


PRIORS: dict[str, type[Prior]] = {
    kind.name: kind for kind in (Eigenfaces, StylePrior, InversionGan, ConditionalGan)
}
TRAINERS: dict[str, Trainer] = {
    "stylegan": Trainer(GanConfig, lambda public, target, **rest: train_gan(public, **rest)),
    "inversion_gan": Trainer(InversionGanConfig, train_inversion_gan),
    "conditional_gan": Trainer(ConditionalGanConfig, train_conditional_gan),
}


def prior_from_state(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Prior:
    """The prior that ``prior.state()`` and ``prior.meta()`` describe, whatever its kind.

    Raises:
        UserError: an unknown kind, or tensors that do not fit.
    """
    kind = meta.get("name")
    if kind not in PRIORS:
        raise UserError(f"prior: expected one of {', '.join(PRIORS)}, got {kind!r}; this file holds no prior")
    return PRIORS[kind].from_state(tensors, meta)
