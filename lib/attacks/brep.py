"""BREP-MI, boundary-repelling model inversion (Kahla et al., CVPR 2022), from predicted labels alone.

From a prior sample that the target gives the label, a sphere's centre is pushed away from those of its points
that have another label; whenever nearly all points have the label, the sphere grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.attacks.chunks import run_chunks
from lib.attacks.interface import Callback, Reconstructions, check_inputs, networks, storable
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import cross_entropy
from lib.attacks.oracle import HIDDEN, Oracle, OracleAccess, QueryBudget, oracle_for
from lib.attacks.search import PoolBudget, pool_latents
from lib.attacks.selection import select
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "brep"
SEES = "labels"
STEP = 1 / 3  # step length in radii
REPORT_EVERY = 100  # passes


@dataclass(frozen=True, kw_only=True)
class BrepBudget(PoolBudget, QueryBudget):
    """Defaults: the published attack, whose passes and start search have no limit. All lengths are in standard
    deviations of the prior's latents around their mean, coordinate by coordinate; the published latents are
    standard normal.

    Attributes:
        pool: prior samples that may be asked about for starts; the search ends when every label has enough.
        candidates: independent runs per identity, each from the next of the pool's samples with its label
            (from the first ones again if there are too few) and with its own directions.
        steps: most passes per run, each of ``directions`` + 1 queries.
        learning_rate: longest step length; a third of the radius where that is less.
        chunk: identities per chunk; memory grows with chunk x candidates x directions.
        directions: points on the sphere per pass.
        radius: of the first sphere. growth: its factor. max_radius: a run ends beyond it.
        grow_at: the sphere grows if the votes' sum, +1 for a point with the label and -1 for another, exceeds
            this share of them (at .75 of 32: 29 points with the label).
        clamp: starts and centres lie within this.
        patience: accepted passes without growth after which a run ends.
        reference: divide the step of a growing pass by ``growth``, as the published code does.
    """

    pool: int = 20_000
    candidates: int = 1
    steps: int = 10_000
    learning_rate: float = 3.0
    keep: int = 1
    directions: int = 32
    radius: float = 2.0
    growth: float = 1.3
    max_radius: float = 100.0
    grow_at: float = 0.75
    clamp: float = 1.5
    patience: int = 1000
    reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("directions", "patience")
        self.require_positive("radius", "growth", "max_radius", "clamp")
        if self.growth <= 1:
            raise UserError(f"budget growth: expected above 1, got {self.growth}; use e.g. 1.3")
        if not 0 <= self.grow_at < 1:
            raise UserError(f"budget grow_at: expected 0 to below 1, got {self.grow_at}; use e.g. 0.75")
        if self.max_radius < self.radius:
            raise UserError(
                f"budget max_radius: expected at least the radius of {self.radius}, got {self.max_radius}; raise it"
            )
        self.require_cap(1, "of one pass", "pool, directions, candidates or views")

    @property
    def pool_queries(self) -> int:
        return self.pool

    @property
    def step_queries(self) -> int:
        return self.candidates * (self.directions + 1)


Budget = BrepBudget


def invert(
    target: Classifier | Oracle,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: BrepBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`.

    The target may be an :class:`lib.attacks.oracle.Oracle`; of one that reveals scores only the labels are used.
    A run's result is the centre of its last growth, or the last centre if its sphere never grew. A label that
    no sample of the pool has is a failure: its reconstructions are the pool's first samples, their
    ``confidence`` is 0. Elsewhere it is the share of views with the label. ``history`` holds minus the mean
    radius and the mean share of points with the label.

    Raises:
        UserError: also an oracle whose cap this budget could exceed, before the first query.
    """
    labels = check_inputs(target, prior, labels, gradients=False)
    oracle = oracle_for(target, reveals="labels")
    with frozen(*networks(target, prior)):
        access = LabelAccess(oracle, prior, attack=NAME, most=budget.most_queries(len(labels)))
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed, callback=callback),
            name=NAME,
            budget=budget,
            seed=seed,
            prepare=partial(_prepare, access, budget=budget, seed=seed, callback=callback),
            callback=callback,
            checkpoint=checkpoint,
        )


class LabelAccess(OracleAccess):
    """Access that keeps nothing of an answer but its label."""

    def named(self, latents: Tensor) -> Tensor:
        """(B,) int64: the labels of the images of latents (B, d)."""
        return super().logits(self.images(latents)).argmax(1)

    def logits(self, images: Tensor) -> Tensor:
        answer = super().logits(images)
        label = answer.argmax(1, keepdim=True)
        return torch.full_like(answer, HIDDEN).scatter_(1, label, 1.0).log()


@torch.no_grad()
def _prepare(
    access: LabelAccess, labels: Tensor, *, budget: BrepBudget, seed: int, callback: Callback | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Starts (K, n, d) in standard deviations and whether a label was hit (K,); the mean and standard
    deviation (d,) of the prior's latents."""
    mean, deviation = access.moments(generator=generator(seed, NAME, "scale"))
    pool = pool_latents(access, budget.pool, truncation=budget.truncation, seed=seed)
    pool = ((pool - mean) / deviation).clamp(-budget.clamp, budget.clamp)
    wanted, done, named = labels.to(access.device), 0, []
    found = torch.zeros_like(wanted)
    for part in pool.split(budget.chunk * budget.candidates * budget.directions):
        named.append(access.named(storable(mean + deviation * part)))
        found += (named[-1][:, None] == wanted).sum(0)
        done += len(part)
        if callback:
            callback({"stage": "start search", "done": done, "total": budget.pool})
        if (found >= budget.candidates).all():
            break
    starts = pool[first_hits(torch.cat(named), wanted, budget.candidates)]
    return {"starts": starts.cpu(), "hit": (found > 0).cpu()}, {"mean": mean, "deviation": deviation}


def first_hits(named: Tensor, wanted: Tensor, count: int) -> Tensor:
    """(K, count) first rows of the pool whose labels ``named`` (S,) are the ``wanted`` (K,), S >= count: again from the
    first where there are fewer, the first rows of all where there is none."""
    order = named.argsort(stable=True)
    begin, end = (torch.searchsorted(named[order], wanted, right=right)[:, None] for right in (False, True))
    turn = torch.arange(count, device=named.device).expand(len(wanted), count)
    found = end - begin
    at = begin + turn % found.clamp(1, count)
    return torch.where(found > 0, order[at.clamp_max(len(named) - 1)], turn)


@torch.no_grad()
def _attack(
    access: LabelAccess,
    labels: Tensor,
    prepared: dict[str, Tensor],
    *,
    budget: BrepBudget,
    seed: int,
    callback: Callback | None,
) -> dict[str, Tensor]:
    """One chunk: k labels on the device; their runs, identity-major, each with a state of its own."""
    starts, hit, mean, deviation = (prepared[name] for name in ("starts", "hit", "mean", "deviation"))
    shape, dim = starts.shape[:2], len(mean)
    wanted = labels.repeat_interleave(budget.candidates)
    streams = [
        generator(seed, NAME, "directions", label, run)
        for label in labels.tolist()
        for run in range(budget.candidates)
    ]
    centre = starts.flatten(0, 1).clone()
    best = centre.clone()
    radius = torch.full_like(centre[:, 0], budget.radius)
    inside_share = torch.zeros_like(radius)
    idle = torch.zeros_like(wanted)  # accepted passes since the last growth
    settled = torch.zeros_like(wanted, dtype=torch.bool)  # an accepted pass grew the sphere
    alive = hit.repeat_interleave(budget.candidates)
    history = torch.stack([-radius.mean(), inside_share.mean()]).repeat(budget.paid_steps, 1)
    for step in range(budget.paid_steps):
        active = alive.nonzero()[:, 0]
        rows = active.tolist()
        if not rows:
            break
        normal = torch.stack([torch.randn(budget.directions, dim, generator=streams[row]) for row in rows])
        directions = F.normalize(normal.to(access.device), dim=2)
        points = centre[active, None] + radius[active, None, None] * directions
        answers = access.named((mean + deviation * points).flatten(0, 1)).view(points.shape[:2])
        inside = answers == wanted[active, None]
        move, wider = repel(inside, directions, radius[active], budget)
        moved = (centre[active] + move).clamp(-budget.clamp, budget.clamp)
        stays = access.named(storable(mean + deviation * moved)) == wanted[active]
        grew = wider > radius[active]
        final = stays & (grew | ~settled[active])
        best[active] = torch.where(final[:, None], moved, best[active])
        centre[active] = torch.where(stays[:, None], moved, centre[active])
        settled[active] |= stays & grew
        idle[active] = torch.where(grew, 0, idle[active] + stays)
        radius[active] = wider
        inside_share[active] = inside.float().mean(1)
        alive[active] = (idle[active] < budget.patience) & (wider <= budget.max_radius)
        history[step:] = torch.stack([-radius.mean(), inside_share.mean()])
        if callback and (step + 1) % REPORT_EVERY == 0:
            callback({"stage": "passes", "done": step + 1, "total": budget.paid_steps})
    initial, latents = (
        storable(mean + deviation * each).view(*shape, dim) for each in (starts.flatten(0, 1), best)
    )
    judged = select(access, latents, labels, budget=budget, loss=cross_entropy, seed=seed)
    judged["confidence"] = judged["confidence"] * hit[:, None]
    return {"latents": latents, "initial": initial, "history": history, **judged}


def repel(inside: Tensor, directions: Tensor, radius: Tensor, budget: BrepBudget) -> tuple[Tensor, Tensor]:
    """One pass's move of the centres (A, d) and their radius afterwards (A,).

    The move is the mean over all points of -u where the point is outside, times min(R / 3, learning_rate).

    Args:
        inside: (A, N) bool: which points have the label.
        directions: (A, N, d) unit vectors u from centre to point. radius: (A,) R of this pass.
    """
    votes = 2.0 * inside.sum(1) - inside.shape[1]
    wider = torch.where(votes > budget.grow_at * inside.shape[1], budget.growth * radius, radius)
    length = (STEP * radius).clamp_max(budget.learning_rate)
    if budget.reference:
        length = length * radius / wider
    away = -(directions * ~inside[..., None]).mean(1)
    return length[:, None] * away, wider
