"""How the training loop calls on a composition of defences: one criterion, united taps, chained views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from lib.errors import UserError
from lib.training.interface import Defence, Recipe, View


def chained(views: Sequence[View], photos: int, images: Tensor) -> Tensor:
    """The step's views one after another. Rows that a defence appended are seen like the photos they follow:
    row i through the view of photo i modulo the number of photos."""
    if views and len(images) % photos:
        raise UserError(
            f"training: expected whole copies of the batch of {photos} rows to be appended, got {len(images)} "
            "rows; append a row for every photo"
        )
    groups = images.split(photos) if views else (images,)
    for apply in views:
        groups = [apply(group) for group in groups]
    return groups[0] if len(groups) == 1 else torch.cat(groups)


def criterion_of(
    defences: Sequence[Defence], recipe: Recipe, photos: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The one criterion of a composition, else cross-entropy with the recipe's label smoothing; of what follows the
    first ``photos`` rows cross-entropy in any case, where a defence that appends wants it.

    Raises:
        UserError: two defences define one.
    """
    own = [defence for defence in defences if defence.criterion is not None]
    if len(own) > 1:
        raise UserError(
            f"{own[0].name} and {own[1].name} both replace the loss; a composition can have one criterion"
        )
    usual = partial(F.cross_entropy, reduction="none", label_smoothing=recipe.label_smoothing)
    if not own:
        return usual
    if not any(defence.appends_cross_entropy for defence in defences):
        return own[0].criterion
    return lambda logits, y: torch.cat(
        [own[0].criterion(logits[:photos], y[:photos]), usual(logits[photos:], y[photos:])]
    )


def watch(
    model: nn.Module, defences: Sequence[Defence]
) -> tuple[dict[Defence, list[nn.Module]], dict[nn.Module, Tensor], list[RemovableHandle]]:
    """Hooks on the union of all taps; modules by defence, outputs of the current step by module, the hooks."""
    tapped = {defence: defence.taps(model) for defence in defences}
    seen: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, _, output: seen.__setitem__(m, output))
        for module in {m for modules in tapped.values() for m in modules}
    ]
    return tapped, seen, hooks


def state_of(defences: Sequence[Defence]) -> list[dict[str, Any]]:
    """What a checkpoint keeps of each defence."""
    return [
        {
            "nets": [[net.state_dict(), optimiser.state_dict()] for net, optimiser in defence.nets()],
            "tensors": defence.tensors(),
        }
        for defence in defences
    ]


def restore_state(defences: Sequence[Defence], states: list[dict[str, Any]]) -> None:
    """Put back what :func:`state_of` kept."""
    for defence, state in zip(defences, states, strict=True):
        for (net, optimiser), (weights, moments) in zip(defence.nets(), state["nets"], strict=True):
            net.load_state_dict(weights)
            optimiser.load_state_dict(moments)
        for name, tensor in defence.tensors().items():
            tensor.copy_(state["tensors"][name])
