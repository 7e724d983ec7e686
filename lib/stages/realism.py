"""How natural reconstructions look, over identities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lib.evaluation import kernel
from lib.statistics import Interval

ROWS = 1024


def kid_by_identity(fake: Tensor, fake_labels: Tensor, real: Tensor, real_labels: Tensor) -> Interval:
    """Unbiased KID (Binkowski et al. 2018) of all images, with a jackknife interval over identities.

    Leaving an identity out removes its fakes and its photos; the kernel sums are kept per pair of identities,
    so that each of the K estimates costs K^2 additions.
    """
    people = torch.unique(fake_labels)
    one_fake = (fake_labels[:, None] == people).double()
    one_real = (real_labels[:, None] == people).double()
    mine = one_real.any(1)
    real, one_real = real[mine].double(), one_real[mine]
    fake = fake.double()

    within_fake = _block_sums(fake, one_fake, fake, one_fake)
    within_real = _block_sums(real, one_real, real, one_real)
    between = _block_sums(fake, one_fake, real, one_real)
    fakes, reals = one_fake.sum(0), one_real.sum(0)

    def estimate(keep: Tensor) -> Tensor:
        n, m = (fakes * keep).sum(), (reals * keep).sum()
        same = keep @ within_fake @ keep / (n * (n - 1)) + keep @ within_real @ keep / (m * (m - 1))
        return same - 2 * (keep @ between @ keep) / (n * m)

    count = len(people)
    every = torch.ones(count, dtype=torch.float64)
    value = float(estimate(every))
    if count < 3:
        return Interval(value, math.nan, math.nan, count)
    left_out = torch.stack([estimate(row) for row in every - torch.eye(count, dtype=torch.float64)])
    error = float(((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt())
    return Interval(value, value - 1.96 * error, value + 1.96 * error, count)


def _block_sums(first: Tensor, one_first: Tensor, second: Tensor, one_second: Tensor) -> Tensor:
    """(K, K) sums of the kernel over pairs of images of two people, an image with itself left out; some rows at a time,
    so that many photos need no square of memory."""
    total = torch.zeros(one_first.shape[1], one_second.shape[1], dtype=first.dtype)
    for rows in torch.arange(len(first)).split(ROWS):
        part = kernel(first[rows], second)
        if first is second:
            part[torch.arange(len(rows)), rows] = 0
        total += one_first[rows].T @ (part @ one_second)
    return total
