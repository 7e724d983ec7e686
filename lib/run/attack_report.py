"""Notebooks 14 and 15: attacks side by side, what they find and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lib import attacks, evaluation
from lib.plots import label
from lib.run import inversion, success
from lib.run.exhibits import by_person, person_names, shown_people, shown_photos
from lib.run.inversion import Attack
from lib.run.tables import points
from lib.run.workbook import Workbook

Group = tuple[str, str, str, str]  # attack, prior, budget, defence


def runs(book: Workbook, *, white_box: bool) -> list[Attack]:
    """The study's compared attacks that see gradients, or those that do not."""
    found = book.listed_attacks(book.study.compared)
    return [run for run in found if (attacks.get(run.attack).sees == "gradients") == white_box]


def groups(found: Sequence[Attack]) -> dict[Group, list[Attack]]:
    """Attack, prior, budget and model to its attack seeds, in the order given."""
    made: dict[Group, list[Attack]] = {}
    for run in found:
        made.setdefault((run.attack, run.prior, run.budget, run.defence), []).append(run)
    return made


def comparison(found: Sequence[Attack]) -> pd.DataFrame:
    """A row per attack and model: AttAcc by the main evaluator and the panel's majority, the verifier's match
    rate, ``gain`` of the main evaluator over the prior samples, ``passes`` through the target, seconds and
    memory per person (seconds on the machine that made them), the number of attack seeds."""
    rows = []
    for (attack, prior, budget, defence), seeds in groups(found).items():
        cost = inversion.reconstruct(seeds[0]).cost
        rows.append(
            {
                "attack": attack,
                "prior": prior,
                "defence": defence,
                "model": label(defence),
                "budget": budget,
                "main": success.mean(seeds, "main"),
                "panel_majority": success.mean(seeds, "panel_majority"),
                "verifier_match": success.mean(seeds, "verifier"),
                "gain": success.gain(seeds, "main"),
                "passes": success.passes(seeds),
                "seconds": cost["seconds"],
                "memory_mb": cost.get("peak_memory_mb", float("nan")),
                "seeds": len(seeds),
            }
        )
    return pd.DataFrame(rows)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a person reads it."""
    rows = table.drop(columns="defence").assign(
        gain=[points(interval) for interval in table["gain"]],
        passes=[f"{value:,.0f}" for value in table["passes"]],
        seconds=[f"{value:.1f}" for value in table["seconds"]],
        memory_mb=[f"{value:,.0f}" for value in table["memory_mb"]],
    )
    for column in ("main", "panel_majority", "verifier_match"):
        rows[column] = [interval.percent().rpartition(", n")[0] for interval in table[column]]
    names = {"memory_mb": "peak MB", "gain": "gain over prior samples", "main": "AttAcc, main"}
    rows = rows.rename(columns=names).rename(columns=lambda name: name.replace("_", " "))
    return rows.set_index(["attack", "prior", "model"])


def bars(table: pd.DataFrame) -> pd.DataFrame:
    """Columns value, low, high of the main evaluator, ``attack`` (with its prior), ``defence``, ``model`` and
    ``passes``."""
    return pd.DataFrame(
        {
            "attack": [f"{row.attack}\n{row.prior}" for row in table.itertuples()],
            "defence": table["defence"],
            "model": table["model"],
            "value": [interval.value for interval in table["main"]],
            "low": [interval.low for interval in table["main"]],
            "high": [interval.high for interval in table["main"]],
            "passes": table["passes"],
        }
    )


def sheet(book: Workbook, found: Sequence[Attack], defence: str) -> dict[str, Any]:
    """Arguments of :func:`lib.plots.side_by_side`: people in rows; private photos, then the best reconstruction
    of every attack on one model, marked by the main evaluator."""
    people = shown_people(len(book.world.train.names))
    reconstructed, marks = {}, {}
    for (attack, prior, _, model), seeds in groups(found).items():
        if model != defence:
            continue
        made = inversion.reconstruct(seeds[0])
        first = made.selected[people, :1]
        seen = inversion.judge_reconstructions(seeds[0])["reconstructions"]
        right = evaluation.hits(seen.logits["main"], seen.labels).view(len(made.labels), -1)
        name = f"{attack}\n{prior}".replace("_", "\n", 1)
        reconstructed[name] = list(inversion.pictures(seeds[0], people, first))
        marks[name] = right[people].gather(1, first).tolist()
    return {
        "private": [photos[:1] for photos in by_person(shown_photos(book.world))],
        "reconstructed": reconstructed,
        "people": person_names(book.world.train.names, people),
        "marks": marks,
        "heading": "private",
    }


def sheet_caption(sheet: dict[str, Any], defence: str) -> str:
    """How many of the shown faces the main evaluator takes for the person, per attack."""
    parts = [
        f"{name.replace(chr(10), ' ')}: {sum(map(sum, frames))} of {len(frames)}"
        for name, frames in sheet["marks"].items()
    ]
    return (
        f"{label(defence)}, {len(sheet['people'])} people evenly spaced over the private ones, one private photo "
        f"and the reconstruction that the target likes best. Taken for the person by the main evaluator: "
        f"{'; '.join(parts)}."
    )


def what_we_saw(book: Workbook, table: pd.DataFrame) -> str:
    """Which attack is the strongest on every model, and which do not beat their own prior samples."""
    text = []
    for model, rows in table.groupby("model", sort=False):
        best = table.loc[max(rows.index, key=lambda i: rows["main"][i].value)]
        text.append(f"{model}: strongest is {best.attack} ({best.prior}), {best.main.percent()}.")
    weak = [f"{row.attack} on {row.model}" for row in table.itertuples() if not row.gain.low > 0]
    if not book.setup.conclusive:
        return " ".join(text) + " **Too small to conclude.**"
    if weak:
        text.append(f"Not above their own prior samples by an interval: {', '.join(weak)}.")
    else:
        text.append("Every attack beats its own prior samples by an interval.")
    return " ".join(text)
