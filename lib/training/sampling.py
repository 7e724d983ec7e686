"""In which order photos come: shuffled, or in balanced batches of equally many photos of some people."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.errors import UserError
from lib.training.interface import Recipe


def batch_size(labels: Tensor, recipe: Recipe) -> int:
    """Photos in a batch: the recipe's, or all there are of ``labels`` (N,).

    Raises:
        UserError: fewer than two photos, or balanced batches that they cannot fill.
    """
    if len(labels) < 2:
        raise UserError(f"expected at least 2 training photos, got {len(labels)}")
    batch = min(recipe.batch, len(labels))
    if recipe.identities and batch < recipe.batch:
        raise UserError(
            f"expected photos for balanced batches of {recipe.batch} ({recipe.identities} people), got {len(labels)} "
            "photos; give more, or make the batches smaller"
        )
    if recipe.identities:
        check_balanced(labels, batch, recipe.identities)
    return batch


def check_balanced(labels: Tensor, batch: int, identities: int) -> None:
    """Refuse batches that ``labels`` (N,) cannot fill.

    Raises:
        UserError: see the messages.
    """
    if identities < 2 or batch % identities:
        raise UserError(
            f"balanced batches: expected at least 2 identities that divide the batch of {batch}, got {identities}; "
            "change identities or batch"
        )
    there = len(labels.unique())
    if there < identities:
        raise UserError(
            f"balanced batches: expected photos of at least {identities} people, got {there}; use fewer identities "
            "per batch and more photos of each"
        )


def epoch_order(labels: Tensor, batch: int, identities: int, generator: torch.Generator) -> Tensor:
    """The photos of an epoch, at least as many as its whole batches have; 0 identities shuffles all."""
    if not identities:
        return torch.randperm(len(labels), generator=generator, device=labels.device)
    steps = len(labels) // batch
    return balanced_order(labels, steps=steps, batch=batch, identities=identities, generator=generator)


def balanced_order(
    labels: Tensor, *, steps: int, batch: int, identities: int, generator: torch.Generator
) -> Tensor:
    """The photos of an epoch's balanced batches.

    Each batch has ``identities`` different people, drawn anew, and ``batch / identities`` photos of each; the
    photos of a person come in a random order, all of them before one comes again. (A person with fewer photos
    than that is several times in a batch with the same one.) Batches are shuffled within.

    Args:
        labels: (N,) of the photos, on the device; any numbers.

    Returns:
        (steps * batch,) indices into ``labels``.
    """
    device, each = labels.device, batch // identities
    people, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    shuffled = torch.randperm(len(labels), generator=generator, device=device)
    by_person = shuffled[labels[shuffled].argsort(stable=True)]
    first = counts.cumsum(0) - counts

    chosen = torch.rand(steps, len(people), generator=generator, device=device).argsort(1)[:, :identities]
    present = torch.zeros(steps, len(people), dtype=torch.int64, device=device).scatter_(1, chosen, 1)
    earlier = (present.cumsum(0) - present).gather(1, chosen)  # batches of this epoch that had the person
    visit = earlier[..., None] * each + torch.arange(each, device=device)
    photo = first[chosen][..., None] + visit % counts[chosen][..., None]
    batches = by_person[photo].flatten(1)
    within = torch.rand(batches.shape, generator=generator, device=device).argsort(1)
    return batches.gather(1, within).flatten()
