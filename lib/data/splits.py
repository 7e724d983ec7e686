"""Who is private, who helps, and which photos are for training, validation and test."""

from __future__ import annotations

import torch

from lib.data.images import Images
from lib.errors import UserError
from lib.runtime import generator, seed_for


def choose_people(images: Images, *, min_images: int, max_images: int, seed: int) -> tuple[Images, Images]:
    """Split into people with at least ``min_images`` photos (at most ``max_images`` of each are kept,
    0 = all) and all the others.

    Raises:
        UserError: nobody, or only one person, has enough photos.
    """
    counts = torch.bincount(images.labels, minlength=len(images.names))
    enough = counts >= min_images
    if enough.sum() < 2:
        raise UserError(
            f"expected at least 2 people with {min_images} or more photos, found {int(enough.sum())} "
            f"(the largest has {int(counts.max())}); add photos or lower min_images"
        )
    kept = []
    for label in enough.nonzero().squeeze(1).tolist():
        where = (images.labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(where), generator=generator(seed, "people", images.names[label]))
        kept.append(where[order[: max_images or len(where)]].sort().values)
    return images.take(torch.cat(kept)).relabelled(), images.take(~enough[images.labels])


def split_photos(images: Images, *, validation: float, test: float, seed: int) -> dict[str, Images]:
    """Split each person's photos into train, validation and test, each with at least one photo.

    Raises:
        UserError: a person has fewer than three photos, or the fractions leave nothing to train on.
    """
    check_shares(validation, test)
    parts: dict[str, list[torch.Tensor]] = {"train": [], "validation": [], "test": []}
    for label, name in enumerate(images.names):
        where = (images.labels == label).nonzero().squeeze(1)
        if len(where) < 3:
            raise UserError(
                f"{name}: expected at least 3 photos (train, validation, test), found {len(where)}"
            )
        where = where[torch.randperm(len(where), generator=generator(seed, "split", name))]
        tests = min(max(1, round(test * len(where))), len(where) - 2)
        validations = min(max(1, round(validation * len(where))), len(where) - tests - 1)
        parts["test"].append(where[:tests])
        parts["validation"].append(where[tests : tests + validations])
        parts["train"].append(where[tests + validations :])
    return {name: images.take(torch.cat(index).sort().values) for name, index in parts.items()}


def check_shares(validation: float, test: float) -> None:
    """Raises: UserError for shares of a person's photos that are none, or leave nothing to train on."""
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise UserError(
            f"split: expected fractions in (0,1) that leave something for training, got validation={validation}, "
            f"test={test}"
        )


def cut_by_name(images: Images, shares: dict[str, float], *, seed: int) -> dict[str, Images]:
    """Cut people (not photos) into disjoint sets by a hash of their name, so that the cut of one person
    never depends on who else is there.

    Raises:
        UserError: shares that are more than all.
    """
    if not shares:
        return {}
    if min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-9:
        raise UserError(
            f"data.others: expected shares of at least 0 that sum to at most 1, got {shares}; lower them"
        )
    edges, total = {}, 0.0
    for name, share in shares.items():
        edges[name] = (total, total := total + share)
    place = torch.tensor([seed_for(seed, "cut", name) / 2**63 for name in images.names])
    sets = {}
    for name, (low, high) in edges.items():
        people = (place >= low) & (place < high)
        sets[name] = images.take(people[images.labels]).relabelled()
    return sets


def hold_out(images: Images, share: float, *, seed: int) -> tuple[Images, Images]:
    """Split photos at random into (kept, held out)."""
    order = torch.randperm(len(images), generator=generator(seed, "held out"))
    cut = round(len(images) * (1 - share))
    return images.take(order[:cut].sort().values), images.take(order[cut:].sort().values)
