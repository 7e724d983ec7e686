"""Notebooks 14 and 15: how much memory an attack takes at its peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lib import attacks
from lib.attacks import Budget, Knowledge
from lib.data import load_world
from lib.models import build_classifier
from lib.priors import Prior
from lib.reports.attack_report import Settled
from lib.reports.workbook import Workbook
from lib.runtime import device
from lib.stages import inversion, priors
from lib.stages.inversion import Attack

SIZES = ("chunk", "candidates", "population", "directions", "feature_steps", "hidden", "batch", "buffer")
"""Of a budget: what is held at once, and which layers are passed."""
PHOTOS = 64


def measure(book: Workbook, runs: Sequence[Attack]) -> dict[Settled, float | None]:
    """Megabytes that each attack, prior and budget takes here beyond its networks and photos; None where the system
    does not tell.

    Measured now and all alike, on one chunk of people under the budget's own sizes with a few steps and a small pool,
    which go through the networks batch by batch. The networks are untrained ones of the same kinds, for what they have
    learnt takes no room. Budgets of the same sizes are measured once.
    """
    network = inversion.stand_in(book.setup).eval()
    faces = {
        kind: priors.stand_in(book.setup, kind, network) for kind in dict.fromkeys(r.prior for r in runs)
    }
    found: dict[Settled, float | None] = {}
    known: dict[Any, float | None] = {}
    for run in runs:
        budget = attacks.get(run.attack).budget(**run.values)
        sizes = (run.attack, run.prior, *(getattr(budget, name, None) for name in SIZES))
        if sizes not in known:
            known[sizes] = _peak(run, budget, network, faces[run.prior])
        found[run.attack, run.prior, run.budget] = known[sizes]
    return found


def _peak(run: Attack, budget: Budget, network: torch.nn.Module, faces: Prior) -> float | None:
    setup, method = run.setup, attacks.get(run.attack)
    own = {name: getattr(budget, name) for name in SIZES if hasattr(budget, name)}
    if hasattr(budget, "pool"):
        batch = budget.chunk * budget.candidates * own.get("directions", 1)
        own["pool"] = min(budget.pool, max(batch, own.get("population", 0)))
    kinds = (student["network"] for student in setup.students) if "students" in method.needs else ()
    students = tuple(
        build_classifier(kind, network.num_classes, setup.image_size).to(device()).eval() for kind in kinds
    )
    found = method.invert(
        network,
        faces,
        range(min(budget.chunk, network.num_classes)),
        budget=replace(budget.short(), **own),
        seed=0,
        knowledge=Knowledge(public=load_world(setup).public.pixels[:PHOTOS], students=students),
    )
    return found.cost.get("memory_mb")
