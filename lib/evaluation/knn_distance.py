"""Squared feature distance to the nearest private photo of the same person, between its two references.

Metrics specification, section 4. The bare distance depends on the scale of the features, so it is read
between what an unseen photo of the person gives and what photos of strangers give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.errors import UserError
from lib.evaluation.attack_accuracy import identity_means
from lib.evaluation.inputs import aligned, matrix
from lib.evaluation.references import balanced_references

_ROWS = 1024


@dataclass(frozen=True)
class KnnDistances:
    """Mean squared distance of each attacked identity, float64 on the CPU.

    ``per_image`` (N,) in input order; ``identity`` (K,) ascending; ``reconstruction``, ``unseen`` (unseen
    photos of the person) and ``stranger`` (photos of others), each (K,) and all to the same references.
    ``unseen`` is NaN for a person without an unseen photo.
    """

    per_image: Tensor
    identity: Tensor
    reconstruction: Tensor
    unseen: Tensor
    stranger: Tensor

    @property
    def complete(self) -> Tensor:
        """(K,) bool: identities that have all three distances."""
        return torch.isfinite(self.unseen) & torch.isfinite(self.stranger)

    @property
    def leakage(self) -> float:
        """Scaled leakage of the mean distances over complete identities (single people make noisy ratios)."""
        keep = self.complete
        if not bool(keep.any()):
            return float("nan")
        means = [part[keep].mean() for part in (self.reconstruction, self.unseen, self.stranger)]
        return float(scaled_leakage(*means))


def distance_to_classes(
    features: Tensor, references: Tensor, reference_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared Euclidean distance of each row to the nearest reference of every class.

    Args:
        features: (N, d). references: (M, d). reference_labels: (M,).

    Returns:
        (N, K) distances and the (K,) ascending classes.

    Raises:
        UserError: if shapes disagree or values are not finite.
    """
    references = matrix(references, "references")
    features = matrix(features, "features", width=references.shape[1])
    reference_labels = aligned(references, reference_labels, "references")
    classes, column = torch.unique(reference_labels, return_inverse=True)
    rows = []
    for part in features.split(_ROWS):
        squared = torch.cdist(part, references).square()
        empty = squared.new_zeros(len(part), len(classes))
        rows.append(
            empty.scatter_reduce(1, column.expand(len(part), -1), squared, "amin", include_self=False)
        )
    return torch.cat(rows), classes


def nearest_same_class(
    features: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    *,
    count: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Squared distance (N,) of each image to the nearest of ``count`` references of its own class.

    Raises:
        UserError: as :func:`distance_to_classes`, or if a class has no or too few references.
    """
    references, reference_labels = _balance(references, reference_labels, count, seed)
    distance, classes = distance_to_classes(features, references, reference_labels)
    return distance.gather(1, _columns(aligned(features, labels, "features"), classes)[:, None])[:, 0]


def stranger_distance(
    features: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    *,
    count: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """For every class, the mean squared distance of images of *other* classes to its nearest reference.

    Returns:
        (K,) distances and the (K,) ascending classes of the references. NaN for a class that all images
        belong to.
    """
    references, reference_labels = _balance(references, reference_labels, count, seed)
    distance, classes = distance_to_classes(features, references, reference_labels)
    return _strangers(distance, aligned(features, labels, "features"), classes), classes


def scaled_leakage(distance: Tensor, unseen: Tensor, stranger: Tensor) -> Tensor:
    """(stranger - distance) / (stranger - unseen): 0 = a stranger, 1 = an unseen real photo of the person.

    Elementwise with broadcasting; NaN where strangers are no farther than the person (such features do not
    tell people apart).
    """
    span = stranger - unseen
    return torch.where(span > 0, (stranger - distance) / span, torch.nan)


def knn_distances(
    features: Tensor,
    labels: Tensor,
    *,
    references: Tensor,
    reference_labels: Tensor,
    unseen: Tensor,
    unseen_labels: Tensor,
    count: int | None = None,
    seed: int = 0,
) -> KnnDistances:
    """The distance of reconstructions and its two references, all from one network.

    Args:
        features: (N, d) of reconstructions, aimed at ``labels`` (N,).
        references: (M, d) of private training photos; ``count`` a person are used (None: as many as the
            person with the fewest has), chosen by ``seed``: the same for every defence.
        unseen: (U, d) of held-out private photos. They give both references.

    Raises:
        UserError: if shapes disagree or an aimed person has no references.
    """
    references, reference_labels = _balance(references, reference_labels, count, seed)
    distance, classes = distance_to_classes(features, references, reference_labels)
    column = _columns(aligned(features, labels, "features"), classes)
    per_image = distance.gather(1, column[:, None])[:, 0]
    attacked = identity_means(per_image, labels)
    seen = torch.searchsorted(classes.cpu(), attacked.identity)

    natural, _ = distance_to_classes(unseen, references, reference_labels)
    unseen_labels = aligned(unseen, unseen_labels, "unseen").to(natural.device)
    own = unseen_labels[:, None] == classes
    own_mean = torch.where(own, natural, 0).sum(0) / own.sum(0)  # 0 / 0 is the documented NaN
    strangers = _strangers(natural, unseen_labels, classes)
    return KnnDistances(
        per_image.cpu().double(),
        attacked.identity,
        attacked.mean,
        own_mean.cpu().double()[seen],
        strangers.cpu().double()[seen],
    )


def _balance(references: Tensor, labels: Tensor, count: int | None, seed: int) -> tuple[Tensor, Tensor]:
    labels = aligned(references, labels, "references")
    chosen = balanced_references(labels, count=count, seed=seed)
    return references[chosen], labels[chosen]


def _strangers(distance: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    other = labels.to(distance.device)[:, None] != classes
    return torch.where(other, distance, 0).sum(0) / other.sum(0)


def _columns(labels: Tensor, classes: Tensor) -> Tensor:
    labels = labels.to(classes.device)
    column = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    missing = labels[classes[column] != labels]
    if len(missing):
        raise UserError(
            f"references: expected photos of class {int(missing[0])}, got none; add its private photos"
        )
    return column
