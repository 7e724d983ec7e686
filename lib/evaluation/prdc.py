"""Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020,
arXiv 2002.09797), in their standard definitions.

The PPA code counts only the ball of the *nearest* photo for precision and recall and divides density by the
number of photos (metrics specification, section 5); neither is done here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lib.errors import UserError
from lib.evaluation.inputs import aligned, matrix


class Prdc(NamedTuple):
    """Fractions in [0, 1], density >= 0. With few fakes a class recall means little: print both counts."""

    precision: float
    recall: float
    density: float
    coverage: float
    real_count: int
    fake_count: int


def prdc(real: Tensor, fake: Tensor, *, k: int = 3) -> Prdc:
    """Precision, recall, density and coverage with balls to the k-th nearest neighbour of the own set.

    Args:
        real: (N, d) features of photos. fake: (M, d) features of reconstructions.

    Raises:
        UserError: if k < 1, a set has fewer than k + 1 rows, shapes disagree or values are not finite.
    """
    real = matrix(real, "real")
    fake = matrix(fake, "fake", width=real.shape[1])
    if k < 1 or min(len(real), len(fake)) < k + 1:
        raise UserError(
            f"PRDC: expected k >= 1 and at least k + 1 = {k + 1} images in both sets, got {len(real)} "
            f"real and {len(fake)} fake; lower k or add images"
        )
    real_radius, fake_radius = _radius(real, k), _radius(fake, k)
    between = torch.cdist(real, fake)
    in_real, in_fake = between < real_radius[:, None], between < fake_radius
    return Prdc(
        precision=float(in_real.any(0).double().mean()),
        recall=float(in_fake.any(1).double().mean()),
        density=float(in_real.sum() / (k * len(fake))),
        coverage=float(in_real.any(1).double().mean()),
        real_count=len(real),
        fake_count=len(fake),
    )


def prdc_per_class(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, *, k: int = 3
) -> dict[int, Prdc]:
    """:func:`prdc` within each class that has fakes (class 0 like any other, unlike in the PPA code).

    Raises:
        UserError: as :func:`prdc`, for the first class with too few images.
    """
    real_labels, fake_labels = aligned(real, real_labels, "real"), aligned(fake, fake_labels, "fake")
    result = {}
    for label in torch.unique(fake_labels).tolist():
        own_real, own_fake = real[real_labels == label], fake[fake_labels == label]
        if min(len(own_real), len(own_fake)) < k + 1:
            raise UserError(
                f"PRDC of class {label}: expected at least k + 1 = {k + 1} images in both sets, got "
                f"{len(own_real)} real and {len(own_fake)} fake; lower k or add images"
            )
        result[label] = prdc(own_real, own_fake, k=k)
    return result


def _radius(rows: Tensor, k: int) -> Tensor:
    # The k + 1 smallest, since the nearest row of each is itself.
    return torch.cdist(rows, rows).kthvalue(k + 1, dim=1).values
