"""MIRROR, model inversion with high fidelity, its genetic search (An et al., NDSS 2022), from scores.

The prior samples that the target recognises best are the first generation. Each further one keeps its fittest
member and replaces the others by children: genes (latent coordinates) of two parents, some of them mutated,
all clamped to the box of likely latents in P space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from lib.attacks.chunks import run_chunks
from lib.attacks.interface import Callback, Reconstructions, check_inputs, networks, storable
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import cross_entropy
from lib.attacks.oracle import Oracle, OracleAccess, QueryBudget, oracle_for
from lib.attacks.pspace import Box, from_p, to_p
from lib.attacks.search import PoolBudget, pool_latents, pool_starts, starts_of
from lib.attacks.selection import select
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "mirror_genetic"
SEES = "scores"


@dataclass(frozen=True, kw_only=True)
class MirrorGeneticBudget(PoolBudget, QueryBudget):
    """Defaults: the published scripts, with their crossover and their noise repaired.

    Attributes:
        pool: prior samples scored once for all identities (with their mirror images: two queries each), and
            on which the box is measured.
        population: members per identity; the first ones are the best of the pool, moved into the box.
        candidates: fittest members of the last generation, no two alike, among which the final selection
            chooses.
        steps: generations.
        learning_rate: the most that a mutation changes a gene, in standard deviations in P space.
        mutation_rate: probability that a gene mutates.
        stop_at: p_y of its fittest member at which an identity asks no more.
        truncation: every synthesis shrinks its latent by this towards the mean; what breeds, and is boxed, is
            the latent before that.
        width: of the box, in standard deviations in P space.
        reference: as the published code does by accident, genes come from parent 1 with probability
            F1 / (F1 + F2), which favours the worse parent since F = log p_y is negative, and one noise vector
            per generation serves all children.
    """

    pool: int = 100_000
    population: int = 1000
    candidates: int = 8
    steps: int = 100
    learning_rate: float = 0.1
    keep: int = 1
    mutation_rate: float = 0.1
    stop_at: float = 0.95
    truncation: float = 0.7
    width: float = 1.0
    reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("population")
        self.require_positive("width", "stop_at")
        for name in ("mutation_rate", "stop_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"budget {name}: expected 0 to 1, got {getattr(self, name)}; lower it")
        if self.population < max(2, self.candidates):
            raise UserError(
                f"budget population: expected at least 2 and the {self.candidates} candidates, got "
                f"{self.population}; raise it"
            )
        if self.population > self.pool:
            raise UserError(
                f"budget pool: expected at least the population of {self.population}, got {self.pool}; raise it"
            )
        self.require_cap(1, "of one generation", "pool, population, candidates or views")

    @property
    def pool_queries(self) -> int:
        return 2 * self.pool

    @property
    def fixed_queries(self) -> int:
        """The first generation is asked about too."""
        return self.population + super().fixed_queries

    @property
    def step_queries(self) -> int:
        """The fittest member is not asked about again."""
        return self.population - 1

    def short(self) -> Self:
        few = max(2, self.candidates)
        return replace(self, steps=2, views=2, pool=few, population=few)


Budget = MirrorGeneticBudget


def invert(
    target: Classifier | Oracle,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: MirrorGeneticBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`.

    The target may be an :class:`lib.attacks.oracle.Oracle` that reveals scores. ``initial`` holds the pool's
    best, before they enter the box; ``history`` the fittest members' mean -log p_y and p_y before each
    generation.

    Raises:
        UserError: also an oracle whose cap this budget could exceed, before the first query.
    """
    labels = check_inputs(target, prior, labels, gradients=False)
    oracle = oracle_for(target, reveals="scores")
    with frozen(*networks(target, prior)):
        access = OracleAccess(oracle, prior, attack=NAME, most=budget.most_queries(len(labels)))
        centre = access.sample(1, generator=generator(seed, NAME, "centre"), truncation=0.0)[0]
        samples = pool_latents(access, budget.pool, truncation=1.0, seed=seed)  # as scored, before truncation
        box = Box.of(samples, slope=prior.slope, width=budget.width)
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed, box=box, centre=centre, callback=callback),
            name=NAME,
            budget=budget,
            seed=seed,
            prepare=pool_starts(access, budget, seed=seed, candidates=budget.population, callback=callback),
            callback=callback,
            checkpoint=checkpoint,
        )


@torch.no_grad()
def _attack(
    access: OracleAccess,
    labels: Tensor,
    prepared: dict[str, Tensor],
    *,
    budget: MirrorGeneticBudget,
    seed: int,
    box: Box,
    centre: Tensor,
    callback: Callback | None,
) -> dict[str, Tensor]:
    """One chunk: k labels on the device, their starts (k, population, d), truncated."""
    starts = starts_of(prepared)
    streams = [generator(seed, NAME, "generations", label) for label in labels.tolist()]

    def shown(latents: Tensor) -> Tensor:
        return storable(torch.lerp(centre, latents, budget.truncation))

    def score(latents: Tensor, labels: Tensor) -> Tensor:
        """log p_y (k, m) of latents (k, m, d)."""
        flat = labels.repeat_interleave(latents.shape[1])
        batch = budget.chunk * budget.candidates
        parts = zip(shown(latents).flatten(0, 1).split(batch), flat.split(batch), strict=True)
        fitness = [-cross_entropy(access.logits(access.images(part)), label) for part, label in parts]
        return torch.cat(fitness).view(latents.shape[:2])

    population = centre + (starts - centre) / budget.truncation
    box.clamp_(population)
    fitness = score(population, labels)
    history = torch.empty(budget.paid_steps, 2, device=access.device)
    for step in range(budget.paid_steps):
        best = fitness.amax(1)
        history[step:] = torch.stack([-best.mean(), best.exp().mean()])
        active = (best < math.log(budget.stop_at)).nonzero()[:, 0]
        rows = active.tolist()
        if not rows:
            break
        parents, fit = population[active], fitness[active]
        draws = Draws.of([streams[row] for row in rows], *parents.shape[1:], shared=budget.reference)
        children = breed(parents, fit, draws.to(access.device), box=box, budget=budget)
        elite = fit.argmax(1, keepdim=True)
        population[active] = torch.cat([take(parents, elite), children], 1)
        fitness[active] = torch.cat([fit.gather(1, elite), score(children, labels[active])], 1)
        if callback:
            callback({"stage": "generations", "done": step + 1, "total": budget.paid_steps})
    latents = shown(population)
    latents = take(latents, fittest(latents, fitness, budget.candidates))
    judged = select(access, latents, labels, budget=budget, loss=cross_entropy, seed=seed)
    return {"latents": latents, "initial": starts[:, : budget.candidates], "history": history, **judged}


class Draws(NamedTuple):
    """Uniform numbers in [0, 1) for one generation of k identities, c children each, d genes.

    ``parents`` (k, c, 2); ``genes``, ``mutates`` (k, c, d); ``noise`` (k, c, d), or (k, 1, d) where all children
    share it.
    """

    parents: Tensor
    genes: Tensor
    mutates: Tensor
    noise: Tensor

    @classmethod
    def of(cls, streams: list[torch.Generator], members: int, genes: int, *, shared: bool) -> Draws:
        """Each identity's from its own stream, on the CPU."""
        children = members - 1
        shapes = (children, 2), (children, genes), (children, genes), (1 if shared else children, genes)
        each = [[torch.rand(shape, generator=stream) for shape in shapes] for stream in streams]
        return cls(*(torch.stack(numbers) for numbers in zip(*each, strict=True)))

    def to(self, device: torch.device) -> Draws:
        return Draws(*(numbers.to(device) for numbers in self))


def breed(
    population: Tensor, fitness: Tensor, draws: Draws, *, box: Box, budget: MirrorGeneticBudget
) -> Tensor:
    """Children (k, n - 1, d) of members (k, n, d) with fitness log p_y (k, n).

    Parents are drawn in proportion to p_y; a gene is one parent's (:func:`share_of_first`); it mutates by a
    uniform step in P space.
    """
    cumulative = fitness.double().softmax(1).cumsum(1)
    wanted = draws.parents.double().flatten(1)
    chosen = torch.searchsorted(cumulative, wanted, right=True).clamp_max(population.shape[1] - 1)
    first, second = take(population, chosen).unflatten(1, (-1, 2)).unbind(2)
    share = share_of_first(
        *fitness.gather(1, chosen).unflatten(1, (-1, 2)).unbind(2), reference=budget.reference
    )
    genes = torch.where(draws.genes < share[..., None], first, second)
    noise = budget.learning_rate * box.spread * (2 * draws.noise - 1)
    mutants = from_p(to_p(genes, box.slope) + noise, box.slope)
    children = torch.where(draws.mutates < budget.mutation_rate, mutants, genes)
    box.clamp_(children)
    return children


def share_of_first(first: Tensor, second: Tensor, *, reference: bool) -> Tensor:
    """Probability that a gene is parent 1's, from both parents' F = log p_y: p1 / (p1 + p2). With ``reference``
    F1 / (F1 + F2)."""
    if reference:
        return (first / (first + second)).nan_to_num(0.5)  # two parents of p_y = 1
    return (first - second).sigmoid()


def fittest(latents: Tensor, fitness: Tensor, count: int) -> Tensor:
    """(k, count) indices of the fittest members (k, n, d), best first, no two of equal latents unless there
    are no others."""
    chosen = []
    for _ in range(count):
        best = fitness.argmax(1, keepdim=True)
        chosen.append(best)
        fitness = fitness.masked_fill((latents == take(latents, best)).all(2), -torch.inf)
    return torch.cat(chosen, 1)


def take(members: Tensor, index: Tensor) -> Tensor:
    """(k, m, d): members (k, n, d) of each identity at its indices (k, m)."""
    return members.gather(1, index[..., None].expand(-1, -1, members.shape[2]))
