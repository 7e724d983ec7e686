"""Evasion: how small a change of the pixels makes a target give another answer.

FGSM (Goodfellow et al. 2015), PGD (Madry et al. 2018, random start) and AutoAttack (Croce and Hein 2020: APGD on the
cross entropy, APGD on the logit-ratio loss, Square, each on what is left standing), within a maximum norm; the attacks
are those of the adversarial-robustness-toolbox. It has no FAB, and its own AutoAttack wants an undeclared package.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import TqdmWarning

from lib.errors import UserError
from lib.runtime import frozen

ATTACKS = ("fgsm", "pgd", "autoattack")


@dataclass(frozen=True)
class Evasion:
    """A budget.

    Attributes:
        radii: maximum norms, in 255ths of the pixel range. auto_radii: those that AutoAttack is run at.
        steps: of PGD. auto_steps: of each APGD (published: 100). queries: of Square per photo (published: 5,000).
        photos: attacked per person, the first ones. batch: photos at once.
    """

    radii: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 8.0])
    auto_radii: list[float] = field(default_factory=lambda: [1.0, 2.0])
    steps: int = 20
    auto_steps: int = 30
    queries: int = 200
    photos: int = 2
    batch: int = 64

    def __post_init__(self) -> None:
        if not self.radii or min([*self.radii, *self.auto_radii]) <= 0:
            raise UserError(
                f"evasion: expected radii above 0, got {self.radii} and {self.auto_radii}; correct them"
            )
        if min(self.steps, self.auto_steps, self.queries, self.photos, self.batch) < 1:
            raise UserError(
                "evasion: expected steps, queries, photos and batch of at least 1; raise what is below"
            )


def evade(
    target: nn.Module, images: Tensor, labels: Tensor, *, budget: Evasion, seed: int
) -> dict[str, dict[float, Tensor]]:
    """Attack true labels, untargeted.

    Args:
        target: logits of images in [0, 1]; on any device. images: (N,3,S,S) in [0,1]. labels: (N,).

    Returns:
        ``clean`` (radius 0) and each of :data:`ATTACKS` -> radius -> (N,) bool: whether the target is still right.
        A photo that it gets wrong as it is counts as wrong everywhere.

    Raises:
        UserError: no photo, or as many labels as there are not photos.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(
            f"evasion: expected photos with labels, got {len(images)} and {len(labels)}; pass both"
        )
    with _seeded(seed), frozen(target):
        classifier = _classifier(target, images)
        photos, names = images.numpy().astype(np.float32), labels.numpy()

        def right(x: np.ndarray) -> np.ndarray:
            return classifier.predict(x, batch_size=budget.batch).argmax(1) == names

        clean = right(photos)
        found: dict[str, dict[float, Tensor]] = {"clean": {0.0: torch.from_numpy(clean)}}
        for name, parts in _parts(budget, target.num_classes).items():
            found[name] = {}
            for radius in budget.auto_radii if name == "autoattack" else budget.radii:
                standing = clean.copy()
                for make in parts:  # each on what the ones before left standing
                    where = standing.nonzero()[0]
                    if len(where):
                        wanted = np.eye(target.num_classes, dtype=np.float32)[names[where]]
                        changed = make(classifier, eps=radius / 255).generate(photos[where], y=wanted)
                        standing[where] = (
                            classifier.predict(changed, batch_size=budget.batch).argmax(1) == names[where]
                        )
                found[name][radius] = torch.from_numpy(standing)
    return found


def _parts(budget: Evasion, classes: int) -> dict[str, list[Callable]]:
    """The attacks that each of :data:`ATTACKS` consists of, made from a classifier and ``eps``."""
    with _quiet():  # slow to import, and only needed here
        from art.attacks.evasion import AutoProjectedGradientDescent, FastGradientMethod, SquareAttack
        from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
            ProjectedGradientDescentPyTorch,
        )

    common = {"norm": np.inf, "batch_size": budget.batch}
    quiet = common | {"verbose": False}

    def pgd(classifier, eps: float):
        step = 2.5 * eps / budget.steps  # reaches the border from any start, and comes back (Madry et al.)
        return ProjectedGradientDescentPyTorch(
            classifier, eps=eps, eps_step=step, max_iter=budget.steps, num_random_init=1, **quiet
        )

    def apgd(loss: str, classifier, eps: float):
        steps = {"max_iter": budget.auto_steps, "nb_random_init": 1, "eps_step": 2 * eps}
        return AutoProjectedGradientDescent(classifier, eps=eps, loss_type=loss, **steps, **quiet)

    return {
        "fgsm": [partial(FastGradientMethod, **common)],
        "pgd": [pgd],
        "autoattack": [
            partial(apgd, "cross_entropy"),
            *([partial(apgd, "difference_logits_ratio")] if classes > 2 else []),  # of three logits
            partial(SquareAttack, max_iter=budget.queries, nb_restarts=1, **quiet),
        ],
    }


def _classifier(target: nn.Module, images: Tensor):
    with _quiet():
        from art.estimators.classification import PyTorchClassifier

    where = next(target.parameters()).device
    return PyTorchClassifier(
        model=target,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=target.num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if where.type == "cuda" else "cpu",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The toolbox asks for progress bars of notebooks, which are not wanted and warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The toolbox draws from the global generators of torch and numpy; both are put back."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)
