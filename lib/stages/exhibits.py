"""Which people and photos the notebooks show: the same few everywhere, so that committed pages never add up
to more than twelve people with two photos each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.data import Images, World
from lib.stages import inversion

PEOPLE = 12
PHOTOS = 2


def shown_people(classes: int) -> list[int]:
    """At most :data:`PEOPLE` class numbers, evenly spaced over all ``classes``."""
    return inversion.evenly_spaced(classes, PEOPLE)


def shown_photos(world: World) -> Images:
    """The first :data:`PHOTOS` training photos of every shown person, person by person."""
    labels = world.train.labels
    index = [(labels == k).nonzero().squeeze(1)[:PHOTOS] for k in shown_people(len(world.train.names))]
    return world.train.take(torch.cat(index))


def by_person(photos: Images) -> list[Tensor]:
    """One batch (n,3,S,S) in [0,1] per person, in the order of :func:`person_names`."""
    return [photos.float(photos.labels == k) for k in dict.fromkeys(photos.labels.tolist())]


def person_names(names: Sequence[str], labels: Sequence[int] | None = None) -> list[str]:
    """``Gerhard_Schroeder`` as it is read: ``Gerhard Schroeder``, of all names or those of ``labels``."""
    chosen = names if labels is None else [names[k] for k in labels]
    return [name.replace("_", " ") for name in chosen]
