"""The ensemble: members' reconstructions, judged by the target under one protocol, the best per identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lib import attacks
from lib.attacks.access import Access
from lib.attacks.adaptive import Adapted
from lib.attacks.interface import Budget, Reconstructions, check_labels, device_of
from lib.attacks.losses import cross_entropy
from lib.attacks.selection import rank
from lib.errors import UserError
from lib.runtime import frozen, seed_for

if TYPE_CHECKING:
    from lib.attacks.knowledge import Knowledge
    from lib.priors import Prior

VIEWS = 30
BATCH_PEOPLE = 8


@dataclass(frozen=True)
class Member:
    """One attack of the ensemble.

    Attributes:
        attack: its name, with ingredients. prior, budget: what it searched and spent, by name.
        seed: attack seed.
    """

    attack: str
    prior: str
    budget: str
    seed: int

    @property
    def sees(self) -> str:
        """ "gradients", "scores" or "labels"."""
        return attacks.get(self.attack).sees

    @property
    def role(self) -> str:
        """ "white box", "adaptive" (with ingredients), "scores" or "label only"."""
        attack = attacks.get(self.attack)
        if attack.sees == "gradients":
            return "adaptive" if attack.ingredients else "white box"
        return "label only" if attack.sees == "labels" else "scores"

    @property
    def search(self) -> str:
        """What it does, whatever it spends: attack and prior."""
        return f"{self.attack}, {self.prior}"

    @property
    def label(self) -> str:
        return f"{self.attack}, {self.prior}, {self.budget}, seed {self.seed}"


@dataclass(frozen=True)
class Entry:
    """What a member brings.

    Attributes:
        images: (K, m, 3, S, S) in [0, 1]: the reconstructions it kept, identities in the order of the labels.
        history: rows ``step, loss, confidence`` of its optimisation.
        descent: of its budget, :attr:`lib.attacks.interface.Budget.descent`.
    """

    images: Tensor
    history: Sequence[Mapping[str, float]]
    descent: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, made: Reconstructions, prior: Prior, budget: Budget) -> Entry:
        """From an attack's result."""
        index = made.selected + torch.arange(len(made.labels))[:, None] * made.latents.shape[1]
        device = prior.sample(1, generator=torch.Generator().manual_seed(0)).device
        with torch.no_grad():
            images = made.render(index.flatten(), lambda latents: prior.synthesise(latents.to(device)))
        return cls(images.cpu().unflatten(0, index.shape), made.history, budget.descent)


@dataclass(frozen=True)
class Chosen:
    """The best of the ensemble per identity, by the target alone.

    Attributes:
        members: in a fixed order. confidence: (M, K) of each member's best reconstruction, the target's mean p_y
            over the same random views for all. image: (M, K) int64, which of the member's m that is.
    """

    members: tuple[Member, ...]
    confidence: Tensor
    image: Tensor

    @property
    def member(self) -> Tensor:
        """(K,) int64: whose reconstruction counts."""
        return self.confidence.argmax(0)

    @property
    def best(self) -> Tensor:
        """(K,): its confidence."""
        return self.confidence.amax(0)

    def pick(self, values: Mapping[Member, Tensor]) -> Tensor:
        """(K, ...): of per-reconstruction values (K, m, ...) of all members, those that count."""
        people = range(self.confidence.shape[1])
        where = zip(self.member.tolist(), people, strict=True)
        return torch.stack([values[self.members[m]][k, self.image[m, k]] for m, k in where])


def combine(
    target: nn.Module, entries: Mapping[Member, Entry], labels: Sequence[int] | Tensor, *, seed: int = 0
) -> Chosen:
    """Judge all entries by the plain target and choose.

    Members' own confidences are not asked: a label-only attack knows shares of labels, an adaptive one the
    answers about erased images. The views are drawn apart from those that any attack selects by, lest the
    attack whose seed is the referee's look best.

    Args:
        labels: (K,) the identities, in the order of the entries' images.

    Raises:
        UserError: no member, entries of other identities or shapes, or a target seen through an ingredient or
            an oracle.
    """
    if isinstance(target, Adapted) or hasattr(target, "ask"):
        raise UserError(
            f"referee: expected the plain target as judge, got {type(target).__name__}; pass the network itself"
        )
    labels = check_labels(target, labels)
    if not entries:
        raise UserError("referee: expected at least one member, got none; name its attacks")
    for member, entry in entries.items():
        if len(entry.images) != len(labels):
            raise UserError(
                f"referee: expected reconstructions of {len(labels)} identities, got {len(entry.images)} from "
                f"{member.label}; attack the same ones"
            )
        if entry.images.ndim != 5 or 0 in entry.images.shape:
            raise UserError(
                f"referee: expected images (K, m, 3, S, S), got {tuple(entry.images.shape)} from {member.label}; "
                "keep at least one reconstruction per identity"
            )
    return choose({m: plain_confidence(target, e.images, labels, seed=seed) for m, e in entries.items()})


def choose(confidences: Mapping[Member, Tensor]) -> Chosen:
    """The best per identity, from every member's :func:`plain_confidence` (K, m)."""
    members = tuple(sorted(confidences, key=lambda member: member.label))
    best = [confidences[member].max(1) for member in members]
    return Chosen(members, torch.stack([b.values for b in best]), torch.stack([b.indices for b in best]))


def plain_confidence(target: nn.Module, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
    """(K, m) on the CPU: the plain target's mean p_y of images (K, m, 3, S, S) of the identities ``labels`` (K,)
    over random views, an identity's own whatever the member."""
    device, count, seed = device_of(target), images.shape[1], seed_for(seed, "referee")
    budget = Budget(candidates=count, steps=1, learning_rate=1.0, keep=1, views=VIEWS)
    found = []
    with frozen(target):
        access = Access(target, None, fast=False)
        for part, names in zip(images.split(BATCH_PEOPLE), labels.split(BATCH_PEOPLE), strict=True):
            seen = rank(
                access, part.to(device), names.to(device), budget=budget, loss=cross_entropy, seed=seed
            )
            found.append(seen["confidence"].cpu())
    return torch.cat(found)


def run_members(
    target: nn.Module,
    labels: Sequence[int] | Tensor,
    members: Mapping[Member, Mapping[str, Any]],
    *,
    materials: Callable[[Member], tuple[Prior, Knowledge]],
) -> dict[Member, Entry]:
    """Run every member with the constants of its budget; black-box attacks make their own oracle.

    Args:
        materials: what a member searches and knows, each its own: ``re_prior`` and ``re_students`` are made of other
            photos, which no network tells by itself.

    Raises:
        UserError: what the attacks raise.
    """
    entries = {}
    for member, constants in members.items():
        method, (prior, knowledge) = attacks.get(member.attack), materials(member)
        budget = method.budget(**constants)
        made = method.invert(target, prior, labels, budget=budget, seed=member.seed, knowledge=knowledge)
        entries[member] = Entry.of(made, prior, budget)
    return entries
