"""Settle an attack's constants: a fixed grid on a throw-away target, chosen by what that target says alone.

The target is NoDef of a training seed that no result uses; no evaluator is asked. Every attack gets the trials
that its grid lists (``grids`` in the setup), so that none is tuned harder than its file says.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib import attacks, results, store
from lib.attacks.access import Access
from lib.attacks.interface import Budget
from lib.attacks.losses import cross_entropy
from lib.attacks.selection import rank
from lib.errors import UserError
from lib.results.schema import PUBLISHED
from lib.runtime import device, frozen, seed_for
from lib.setups import Setup
from lib.stages import inversion
from lib.stages.inversion import Attack
from lib.stages.knowledge import knowledge
from lib.stages.progress import report

SEED = 9  # of the throw-away training and of these attacks
PEOPLE = 16  # attacked per trial, evenly spaced over all
LENGTH = 4.0  # training length of the throw-away target, in multiples of the recipe


def trials(setup: Setup, attack: str) -> tuple[str, str, list[dict[str, Any]]]:
    """Prior, budget and the constants of every trial of an attack's grid.

    Raises:
        UserError: the setup has no grid for it.
    """
    if attack not in setup.grids:
        raise UserError(f"{setup.name}: no grid for {attack!r}; expected one of {', '.join(setup.grids)}")
    grid = dict(setup.grids[attack])
    prior, budget = grid.pop("prior"), grid.pop("budget")
    return (
        prior,
        budget,
        [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())],
    )


def settle(setup: Setup, name: str) -> pd.DataFrame:
    """Run the grid; save ``settled/<setup>__<attack>.csv`` and return its rows, best first: the constants, the
    throw-away target's mean p_y over random views of what the attack keeps (``target_confidence``, the criterion: by
    random views, as attacks choose, because white-box attacks bring any loss of the plain images near zero), its cross
    entropy of the plain images, and seconds per identity. Trials made before, with the same values
    and of the same target, prior and attack (``made_of``), are not repeated."""
    prior, budget, grid = trials(setup, name)
    run, made_of = _run(setup, name), _made_of(setup, name)
    trained, method = run.target(), attacks.get(name)
    model, faces = trained.model.to(device()), run.load_prior()
    known = knowledge(setup, name, "none", trained)
    table, done = _tables(setup, name)[0], _tried(setup, name)
    people = torch.tensor(inversion.evenly_spaced(model.num_classes, PEOPLE))
    rows = []  # of this grid
    for count, constants in enumerate(grid):
        report(f"settle {name}", count, len(grid))
        values = {**run.values, **constants}
        text = _text(run.values, constants)
        if text in done:
            rows.append(done[text])
            continue
        chosen = method.budget(**values)
        made = method.invert(model, faces, people, budget=chosen, seed=SEED, knowledge=known)
        index = made.selected + torch.arange(len(people))[:, None] * made.latents.shape[1]
        with torch.no_grad():
            images = made.render(index.flatten(), lambda z: inversion.synthesise(faces, z))
            images = images.unflatten(0, index.shape).to(device())
            with frozen(model):
                seen = rank(
                    Access(model, faces, fast=False),
                    images,
                    people.to(device()),
                    budget=_views(chosen, candidates=index.shape[1]),
                    loss=cross_entropy,
                    seed=seed_for(SEED, "settle"),  # not the views by which the attack chose
                )
        done[text] = {
            "setup": setup.name,
            "attack": name,
            "prior": prior,
            "budget": budget,
            **{key: str(value) for key, value in constants.items()},
            "target_confidence": float(seen["confidence"].mean()),
            "target_loss": float(seen["loss"].mean()),
            "seconds": made.cost["seconds"],
            "people": len(people),
            "values": text,
            "made_of": made_of,
        }
        rows.append(done[text])
        everything = _sorted(list(done.values()))  # trials of earlier grids, too
        table.parent.mkdir(parents=True, exist_ok=True)
        store.write_aside(table, partial(everything.to_csv, index=False, float_format="%.4f"))
    report(f"settle {name}", len(grid), len(grid))
    return _sorted(rows)


def tried(setup: Setup) -> pd.DataFrame:
    """Every trial of the grids of a setup that is made, best first per attack: ``attack, prior, constants, target
    confidence, chosen`` (whether the setup has them now). Empty where none was made."""
    columns = ["attack", "prior", "constants", "target confidence", "chosen"]
    rows = []
    for name in setup.grids:
        prior, _, grid = trials(setup, name)
        usual, found = _usual(setup, name), _tried(setup, name)
        now = attacks.get(name).budget(**usual)
        for constants in grid:
            if row := found.get(_text(usual, constants)):
                chosen = all(_plain(getattr(now, key)) == _plain(value) for key, value in constants.items())
                text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in constants.items())
                rows.append((name, prior, text, row["target_confidence"], chosen))
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["attack", "target confidence"], ascending=[True, False], ignore_index=True)


def coverage(setup: Setup) -> str:
    """How much of the grids is tried with the constants that the setup has beside them, in words."""
    if not setup.grids:
        return f"Preset {setup.name} has no grids: its constants are taken as they are."
    missing, count = _missing(setup), sum(len(trials(setup, name)[2]) for name in setup.grids)
    left = ", ".join(f"{name} {number}" for name, number in missing.items() if number)
    made = f"Preset {setup.name}: {count - sum(missing.values())} of {count} trials are made"
    return f"{made}; missing: {left}." if left else f"{made}."


def settled(setup: Setup) -> set[tuple[str, str, str]]:
    """Attack, prior and budget of the grids that are tried whole; what has other constants was not settled by them."""
    complete = [name for name, count in _missing(setup).items() if not count]
    return {(name, *trials(setup, name)[:2]) for name in complete}


def _missing(setup: Setup) -> dict[str, int]:
    """Trials that an attack's grid lacks, with the constants that the setup has beside them."""
    found = {}
    for name in setup.grids:
        (*_, grid), usual, done = trials(setup, name), _usual(setup, name), _tried(setup, name)
        found[name] = sum(_text(usual, constants) not in done for constants in grid)
    return found


def _run(setup: Setup, name: str) -> Attack:
    """The attack on the throw-away target that the trials of a grid vary."""
    prior, budget, _ = trials(setup, name)
    return Attack(setup, "none", SEED, name, prior, budget, SEED, LENGTH)


def _usual(setup: Setup, name: str) -> dict[str, Any]:
    """The constants that a grid's trials share with the setup."""
    return _run(setup, name).values


def _made_of(setup: Setup, name: str) -> str:
    """What a trial depends on beside its constants, in short: the keys of the target, the prior and the students, and
    the attack's revision. Nothing is trained for it."""
    run = _run(setup, name)
    stage = inversion.reconstruction_stage(run, run.target_stage())
    return hashlib.sha256(json.dumps([stage.upstream, stage.version]).encode()).hexdigest()[:16]


def _views(budget: Budget, *, candidates: int) -> Budget:
    """The views alone of a budget, of which another attack's own checks would not let the candidates be changed."""
    return Budget(
        candidates=candidates,
        steps=1,
        learning_rate=1.0,
        keep=1,
        views=budget.views,
        view_scale=budget.view_scale,
        view_ratio=budget.view_ratio,
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(usual: dict[str, Any], constants: dict[str, Any]) -> str:
    """All constants of a trial, by which it is known."""
    return json.dumps({**usual, **constants}, sort_keys=True)


def _tables(setup: Setup, attack: str) -> list[Path]:
    """Where trials lie: those of an earlier run here first, then the committed ones."""
    folders = (results.output_dir(setup.name), PUBLISHED)
    return [folder / "settled" / f"{setup.name}__{attack}.csv" for folder in folders]


def _sorted(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).sort_values("target_confidence", ascending=False, ignore_index=True)


def _tried(setup: Setup, attack: str) -> dict[str, dict[str, Any]]:
    """Trials of an earlier run, here or committed, by all their constants: those made of what there is now, and those
    of before that was written down."""
    found: dict[str, dict[str, Any]] = {}
    for path in _tables(setup, attack):
        if path.is_file():
            table = pd.read_csv(path, dtype={"values": str, "made_of": str})
            if "made_of" in table:
                table = table[table["made_of"].isna() | (table["made_of"] == _made_of(setup, attack))]
            found |= {row["values"]: row for row in table.to_dict("records")}
    return found
