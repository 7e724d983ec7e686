"""LOMMA (Nguyen et al., Re-thinking Model Inversion Attacks, CVPR 2023): what it changes in GMI and KEDMI.

Logit maximisation: -T_y(x) + lambda * mean (T_f(x) - p_reg)^2 in the place of the cross entropy, which stops
pulling once y leads. Model augmentation: the average of that loss over the target and students distilled from
it on public images, so that no single network is over-fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lib.attacks.access import Access
from lib.attacks.interface import Callback, Reconstructions, check_inputs, device_of
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import Identity, cross_entropy
from lib.errors import UserError
from lib.models import folded
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

STATISTICS_IMAGES = 5000
BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Options:
    """What both LOMMA budgets add to those of the attack they change.

    Attributes:
        maximise: "logit" (4.1 of the paper) or "cross_entropy", to see what each part does.
        students: whether the loss is averaged over the target and its students (4.2).
        feature_weight: lambda of the feature regulariser, which the target alone has; "logit" only.
        reference: p_reg is the mean of the public features, as in the published code; else, as in the paper,
            drawn from N(mean, deviation^2), once per identity.
    """

    maximise: Literal["logit", "cross_entropy"] = "logit"
    students: bool = True
    feature_weight: float = 1.0
    reference: bool = False

    def check_options(self) -> None:
        if self.maximise not in ("logit", "cross_entropy"):
            raise UserError(
                f"budget maximise: expected logit or cross_entropy, got {self.maximise!r}; choose one"
            )
        if not 0 <= self.feature_weight < float("inf"):
            raise UserError(
                f"budget feature_weight: expected at least 0, got {self.feature_weight}; raise it"
            )


def lomma_on(
    base: Callable[..., Reconstructions], name: str, *, kind: str | None = None
) -> Callable[..., Reconstructions]:
    """The attack ``base`` (GMI's ``invert`` or KEDMI's) with the identity loss of :func:`make_identity`.

    Args:
        name: of the attack that this makes. kind: the only kind of prior it works with, None for any.
    """

    def invert(
        target: Classifier,
        prior: Prior,
        labels: Sequence[int] | Tensor,
        *,
        budget: Options,
        seed: int,
        knowledge: Knowledge = NOTHING,
        callback: Callback | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Reconstructions:
        """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`."""
        labels = check_inputs(target, prior, labels, attack=name, kind=kind)
        identity = make_identity(target, knowledge, budget, seed=seed)
        with frozen(*knowledge.students):
            return base(
                target,
                prior,
                labels,
                budget=budget,
                seed=seed,
                callback=callback,
                checkpoint=checkpoint,
                identity=identity,
                name=name,
            )

    return invert


def feature_statistics(target: nn.Module, public: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of the target's penultimate features over public images (N, 3, S, S)."""
    stream = generator(seed, "lomma", "statistics")
    chosen = public[torch.randperm(len(public), generator=stream)[:STATISTICS_IMAGES]]
    with frozen(target), torch.no_grad():
        device = device_of(target)
        features = torch.cat(
            [target.features(part.to(device).float() / 255).float() for part in chosen.split(BATCH)]
        )
    return features.mean(0), features.std(0)


def logit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-T_y per sample: (B, C) and (B,) to (B,). Unbounded below."""
    return -logits.float().gather(1, labels[:, None])[:, 0]


def make_identity(target: nn.Module, knowledge: Knowledge, options: Options, *, seed: int) -> Identity:
    """LOMMA's identity loss.

    Raises:
        UserError: no public images or students, images that are not uint8 of the target's size, or students of other
            classes or sizes than the target.
    """
    knowledge.require("lomma", *(("public", "students") if options.students else ("public",)))
    knowledge.check_images("lomma", target.image_size)
    students = knowledge.students if options.students else ()
    for student in students:
        if (student.num_classes, student.image_size) != (target.num_classes, target.image_size):
            raise UserError(
                f"lomma: expected students of {target.num_classes} classes and {target.image_size} px, got one of "
                f"{student.num_classes} and {student.image_size} px; distil them from this target"
            )
    students = tuple(map(folded, students))
    single: Callable[[Tensor, Tensor], Tensor] = logit_loss if options.maximise == "logit" else cross_entropy
    regular = _regulariser(target, knowledge, options, seed=seed) if options.maximise == "logit" else None

    def identity(access: Access, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)  # once, for the target and the students
        features, logits = access.both(images)
        loss = single(logits, labels)
        for student in students:
            loss = loss + single(access.also(student, images, counter="student"), labels)
        loss = loss / (1 + len(students))
        if regular is not None and options.feature_weight:
            loss = loss + options.feature_weight * (features - regular[labels]).square().mean(1)
        return loss, logits

    return identity


def _regulariser(target: nn.Module, knowledge: Knowledge, options: Options, *, seed: int) -> Tensor:
    """p_reg (C, d), a row per class, so that an identity's does not depend on who else is attacked; of erased photos
    where there are such, unless the target is shown erased views of whatever it is shown."""
    whole = knowledge.erased is None or getattr(target, "shows_views", False)
    photos = knowledge.public if whole else knowledge.erased
    mean, deviation = feature_statistics(target, photos, seed=seed)
    if options.reference:
        return mean.expand(target.num_classes, -1)
    noise = [
        torch.randn(len(mean), generator=generator(seed, "lomma", "regulariser", label))
        for label in range(target.num_classes)
    ]
    return mean + deviation * torch.stack(noise).to(mean.device)
