"""The published way, its ways replaced one after another, and ours: timed in turn, so that whatever else the
machine does hits all of them alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean, median

import pandas as pd
import torch

from lib.attacks.interface import device_of
from lib.attacks.optimise import target_confidence
from lib.attacks.ppa import PpaBudget
from lib.runtime import frozen
from tests.bench import ours, published
from tests.bench.clock import PHASES, Clock
from tests.bench.measures import Outcome
from tests.bench.published import MEASURES, Ways
from tests.bench.world import World

PUBLISHED, OURS = "published", "ours"
LABELS = {
    "activations": "+ styles on activations",
    "frozen": "+ frozen networks",
    "rendered_once": "+ images rendered once",
    "top_k": "+ one top-k",
    "features_once": "+ features kept",
    "channels_last": "+ channels last",
    "folded": "+ norms folded",
    "quiet": "+ nothing read back",
    "large_batches": "+ larger batches",
}
FULL = PpaBudget()  # MIDRE's
FULL_PEOPLE, FULL_PHOTOS = 530, 30  # FaceScrub's people share one pool; photos a person of lfw64, about


@dataclass
class Timed:
    """One way of working: a clock and an outcome per round."""

    name: str
    run: Callable[..., Outcome]
    clocks: list[Clock] = dataclasses.field(default_factory=list)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)

    def once(self, world: World, budget: PpaBudget, seed: int) -> None:
        clock = Clock()
        outcome = self.run(world, budget, seed=seed, clock=clock)
        outcome.measures["target_confidence"] = _target_confidence(world, outcome)
        self.outcomes.append(outcome)
        self.clocks.append(clock)


@torch.no_grad()
def _target_confidence(world: World, outcome: Outcome) -> float:
    """Mean p_y of the kept images as they are: both sides by the same rule, outside the clock."""
    index = outcome.selected[..., None].expand(-1, -1, outcome.latents.shape[-1])
    kept = outcome.latents.gather(1, index)
    where = device_of(world.target)
    labels = torch.tensor(world.labels, device=where).repeat_interleave(kept.shape[1])
    with frozen(world.target):
        logits = world.target(world.prior.synthesise(kept.flatten(0, 1).to(where)))
    return target_confidence(logits, labels).mean().item()


def lineup(ablation: bool) -> list[Timed]:
    """Published first, ours last, between them one measure more each time."""
    ways = Ways()
    line = [Timed(PUBLISHED, partial(published.run, ways=ways))]
    for measure in MEASURES if ablation else ():
        ways = dataclasses.replace(ways, **{measure: True})
        line.append(Timed(LABELS[measure], partial(published.run, ways=ways)))
    # bf16 is no way of working but another precision, so it is told apart
    line.append(Timed(OURS, lambda *args, **kwargs: _ours(False, *args, **kwargs)))
    line.append(Timed(f"{OURS}, bf16 target", lambda *args, **kwargs: _ours(True, *args, **kwargs)))
    return line


def _ours(fast: bool, world: World, budget: PpaBudget, *, seed: int, clock: Clock) -> Outcome:
    return ours.run(world, dataclasses.replace(budget, fast=fast), seed=seed, clock=clock)


def compare(
    world: World,
    budget: PpaBudget,
    *,
    rounds: int,
    ablation: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[Timed]:
    """Time everybody ``rounds`` times, each round from another seed, which all share, and in another order."""
    line = lineup(ablation)
    warm = dataclasses.replace(budget, steps=1, views=1)
    for member in (line[0], line[-2], line[-1]):  # kernels are chosen and memory is fetched at the first call
        member.run(world, warm, seed=0, clock=Clock())
    for number in range(rounds):
        for member in line[:: -1 if number % 2 else 1]:
            member.once(world, budget, seed=number)
            say(f"round {number + 1} of {rounds}: {member.name}")
    return line


def scales(world: World, budget: PpaBudget) -> dict[str, float]:
    """How much more of each phase MIDRE's budget asks of an identity than ``budget`` does."""
    people = len(world.labels)
    photos = len(world.photos) / people
    return {
        "search": (FULL.pool / FULL_PEOPLE) / (budget.pool / people),
        "optimise": FULL.candidates * FULL.steps / (budget.candidates * budget.steps),
        "select": FULL.candidates * FULL.views / (budget.candidates * budget.views),
        "judge": FULL.candidates / budget.candidates,
        "references": FULL_PHOTOS / photos,
    }


def summary(line: list[Timed], world: World, budget: PpaBudget) -> pd.DataFrame:
    """One row per way of working: medians of times, means of measures over rounds.

    Seconds are per identity. Ratios are taken within a round against the published way, by wall and by
    processor time; ``full_ratio`` by processor time too, each phase scaled to MIDRE's budget. ``step`` is the
    factor by which the row is faster than the one above it.
    """
    people = len(world.labels)
    factors = scales(world, budget)
    once = dict.fromkeys(PHASES, 1.0)
    rows, above = [], line[0]
    for member in line:
        row = {"way": member.name}
        row["seconds"] = median(_total(c.wall, once) for c in member.clocks) / people
        row["cpu_seconds"] = median(_total(c.processor, once) for c in member.clocks) / people
        for name, kind, scale in (
            ("ratio", "wall", once),
            ("cpu_ratio", "processor", once),
            ("full_ratio", "processor", factors),
        ):
            row[name] = _ratio(line[0], member, kind, scale)
        row["step"] = _ratio(above, member, "processor", once)
        row |= {f"cpu_{p}": median(c.processor[p] for c in member.clocks) / people for p in PHASES}
        row |= {name: mean(o.measures[name] for o in member.outcomes) for name in member.outcomes[0].measures}
        rows.append(row)
        above = member
    return pd.DataFrame(rows)


def _total(seconds: dict[str, float], scale: dict[str, float]) -> float:
    return sum(seconds[phase] * scale[phase] for phase in PHASES)


def _ratio(first: Timed, second: Timed, kind: str, scale: dict[str, float]) -> float:
    pairs = zip(first.clocks, second.clocks, strict=True)
    return median(_total(getattr(a, kind), scale) / _total(getattr(b, kind), scale) for a, b in pairs)
