"""Projected gradient descent in an l-infinity ball: one helper for training and for evaluation.

Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (ICLR 2018). One step from the
photo itself is FGSM (Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.runtime import full_precision
from lib.training.interface import View

SPACING = 2.0**-24  # no rounding of a sum in [0, 1] is larger


def ball(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The least and the greatest images in [0, 1] of which fp32, too, finds every pixel within ``eps``."""
    radius = max(0.0, eps - SPACING)
    return (images - radius).clamp_min(0), (images + radius).clamp_max(1)


def perturbed(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    targeted: bool = False,
    generator: torch.Generator | None = None,
    view: View | None = None,
    seen: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Move photos within ``eps`` so that the network's loss rises, or, targeted, falls.

    The network is used in the mode it is in; no gradient of its parameters is computed. All is fp32, autocast
    and TF32 off: in bf16 the numbers near 1 are 0.004 apart, and a smaller perturbation would round away.

    Args:
        images: (B,3,S,S) in [0,1]. labels: (B,) int64 or (B,C) probabilities.
        eps, step: largest change of a pixel and size of a step, in units of [0,1].
        generator: draws a uniform start within the ball; None starts at the photo.
        view: what is put between the photo and the network; where it hides the photo, the gradient is 0 and
            only the random start remains.
        seen: is given the logits (B,C) of every pass; those of the last one come before the last step.

    Returns:
        (B,3,S,S) in [0,1], no pixel further than ``eps`` from its photo.
    """
    images = images.detach().float()
    low, high = ball(images, eps)
    moved = images
    if generator is not None:
        draws = torch.rand(images.shape, generator=generator, device=images.device)
        moved = (images + eps * (2 * draws - 1)).clamp(low, high)
    towards = -step if targeted else step
    with torch.enable_grad(), full_precision(images.device):
        for _ in range(steps):
            moved = moved.requires_grad_()
            shown = moved if view is None else view(moved)
            logits = model(shown.contiguous(memory_format=torch.channels_last)).float()
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), moved)
            if seen is not None:
                seen(logits.detach())
            moved = (moved.detach() + towards * gradient.sign()).clamp(low, high)
    return moved


@contextlib.contextmanager
def held_statistics(model: nn.Module) -> Iterator[None]:
    """Within, batch norms in training mode go on using the batch's statistics but do not collect them."""
    collecting = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.track_running_stats
    ]
    for module in collecting:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in collecting:
            module.track_running_stats = True
