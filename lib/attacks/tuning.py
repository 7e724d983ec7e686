"""Pseudo-private tuning of a generator (PPDG-MI): pivots, distances, and the copy that learns to make images.

Distances are taken between descriptions (m, D) of images: the published ones come from a VGG-16 with LPIPS weights,
which an attacker need not have and which small faces do not suit; ours join coarse pixels and the target's own
penultimate features, which the attacker holds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.attacks.access import Access
from lib.attacks.optimise import refine
from lib.errors import UserError

COARSE = 16  # side of the pixels that are compared
WIDTHS = 5  # kernels of the discrepancy
NOISE, NOISE_UNTIL = (
    0.05,
    0.75,
)  # of the projection, in deviations of the latents, and the share of steps with it
UP, DOWN = 0.05, 0.25  # shares of the steps over which the projection's learning rate rises and falls
CRITIC = 0.1  # weight of the projection's realness term

Distance = Callable[[Tensor, Tensor], Tensor]


def pointwise(made: Tensor, wanted: Tensor) -> Tensor:
    """(m, D) and (m, D), row by row, to the mean squared distance."""
    return (made - wanted).square().sum(1).mean()


def transport(made: Tensor, wanted: Tensor) -> Tensor:
    """Conditional transport of two sets (n, D) and (m, D): what it costs, one minus the cosine, to carry each point
    to the other set by softmax of the inner products; half of it in each direction."""
    inner = wanted @ made.T
    cost = 1 - F.normalize(wanted, dim=1) @ F.normalize(made, dim=1).T
    there = (cost * inner.softmax(0)).sum(0).mean()
    back = (cost * inner.softmax(1)).sum(1).mean()
    return 0.5 * (there + back)


def discrepancy(made: Tensor, wanted: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two sets (n, D) and (m, D), biased, under the sum of five Gaussian kernels
    exp(-d^2 / b_i), b_i = 2^i b / 4, b the mean squared distance of the joint set, without its gradient."""
    both = torch.cat([made, wanted])
    squared = (both[:, None] - both).square().sum(2)
    count = len(both)
    width = (squared.detach().sum() / (count**2 - count)).clamp_min(1e-12)
    kernel = sum((-squared / (width * 2**i / 4)).exp() for i in range(WIDTHS))
    n = len(made)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def describe(access: Access, images: Tensor) -> Tensor:
    """(m, D) of images (m, 3, S, S): coarse pixels, scaled so that their squared distance is the mean one, beside
    the target's features at unit length."""
    coarse = F.adaptive_avg_pool2d(images, min(COARSE, images.shape[-1])).flatten(1)
    features, _ = access.both(images)
    access.terms()  # an ingredient's are for the attack's own loss
    return torch.cat([coarse / math.sqrt(coarse.shape[1]), F.normalize(features, dim=1)], 1)


def synthesis_of(access: Access) -> list[nn.Module]:
    """The networks that make a prior's images of its latents.

    Raises:
        UserError: a prior without trainable ones.
    """
    found = [block for block in access.prior.blocks() if isinstance(block, nn.Module)]
    if not found:
        raise UserError(
            f"ppdg: expected a prior whose synthesis can be trained, got {access.prior.name}; use a StyleGAN"
        )
    return found


def tunable(access: Access) -> Access:
    """The same target behind a copy of the prior, counted together; its weights are still frozen."""
    copied = copy.copy(access)
    copied.prior = copy.deepcopy(access.prior)
    return copied


def project(
    access: Access,
    images: Tensor,
    distance: Distance,
    *,
    steps: int,
    learning_rate: float,
    noise: torch.Generator,
    joint: bool = False,
) -> Tensor:
    """Pivots (m, d): latents whose images come near ``images`` (m, 3, S, S), searched from the mean latent.

    An attack knows the latents of its own reconstructions, but a generator that already makes an image of a latent
    has nothing to learn there. Searching anew, as published, gives latents nearer the mean, where the prior draws
    from, and the distance that is left is what the tuning removes.

    Args:
        joint: the noise is in units of the latents' root mean square distance from their mean, as in the published
            projectors, sqrt(d) times their deviation in a coordinate, by which it is measured otherwise.
    """
    with torch.no_grad():
        wanted = describe(access, images)
        start = access.sample(len(images), generator=noise, truncation=0.0)
    spread = access.sample(600, generator=noise, truncation=1.0).std(0)
    if joint:
        spread = spread.square().sum().sqrt()
    shaken = torch.randn(steps, *start.shape, generator=noise).to(start.device) * spread * NOISE

    def objective(latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        strength = max(0.0, 1 - step / steps / NOISE_UNTIL) ** 2
        made = access.images(latents + strength * shaken[step])
        loss = distance(describe(access, made), wanted).expand(len(latents)) / len(latents)
        if access.prior.critic is not None:
            loss = loss + CRITIC * F.softplus(-access.critic(made)) / len(latents)
        return loss, loss.detach()

    pivots, _ = refine(
        access,
        start,
        objective,
        steps=steps,
        optimiser=partial(torch.optim.Adam, lr=learning_rate),
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(ramp, steps=steps)),
    )
    return pivots


def ramp(step: int, *, steps: int) -> float:
    """Learning rate over the projection: up evenly, down along a cosine."""
    done = (step + 0.5) / steps
    rise, fall = min(1.0, done / UP), min(1.0, (1 - done) / DOWN)
    return rise * (0.5 - 0.5 * math.cos(math.pi * fall))


def tune(
    access: Access, pivots: Tensor, images: Tensor, distance: Distance, *, steps: int, learning_rate: float
) -> None:
    """Train the prior's synthesis, in place, to make ``images`` (m, 3, S, S) of the pivots (m, d)."""
    weights = [weight for block in synthesis_of(access) for weight in block.parameters()]
    with torch.no_grad():
        wanted = describe(access, images)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.Adam(weights, lr=learning_rate)
    try:
        with torch.enable_grad():
            for _ in range(steps):
                loss = distance(describe(access, access.images(pivots)), wanted)
                found = torch.autograd.grad(loss, weights, allow_unused=True)
                for weight, gradient in zip(weights, found, strict=True):
                    weight.grad = gradient
                optimiser.step()
    finally:
        for weight in weights:
            weight.requires_grad_(False).grad = None
