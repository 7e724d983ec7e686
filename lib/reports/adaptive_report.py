"""Notebook 16: attacks that know of the erasing, against the same attack that does not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lib import attacks, statistics
from lib.plots import label
from lib.reports.attack_report import Group, groups
from lib.reports.made import made
from lib.reports.tables import LEVEL, established, limits, p_value, percent, points
from lib.reports.workbook import Workbook
from lib.stages import measures, success
from lib.stages.inversion import Attack
from lib.stages.success import Outcome
from lib.statistics import Interval

P_VALUES = {"p": "same_steps", "p_verifier": "same_steps_verifier"}  # column -> the comparisons it is of
NEAR = 1.5  # ratio of passes up to which two budgets are called equal


def runs(book: Workbook) -> list[Attack]:
    """The study's adaptive attacks, with the plain attacks of all budgets that they are compared with."""
    adaptive = book.listed_attacks(book.study.adaptive)
    bases = {(attacks.get(run.attack).base, run.prior) for run in adaptive}
    plain = [run for run in book.listed_attacks(book.study.compared) if (run.attack, run.prior) in bases]
    return made(book, [*adaptive, *(run for run in plain if run not in adaptive)])


def masks_of(attack: str) -> int:
    """Erased views per image: K of ``eotK``, 0 without."""
    found = re.search(r"\+eot(\d+)", attack)
    return int(found[1]) if found else 0


def comparison(found: Sequence[Attack]) -> pd.DataFrame:
    """A row per attack, budget and model, with ``masks``, whether it has ``other`` ingredients, AttAcc by the main
    evaluator, the panel's majority and the verifier, and ``passes``. Of those with ingredients the paired differences
    to the same attack without them, by the attack seeds that both have: ``same_steps`` (main evaluator) and
    ``same_steps_verifier`` under the same budget, with Holm's p over all of that judge's (``p``, ``p_verifier``), and
    what each exceeds the same ingredient's on NoDef by, the control (``beyond``, ``beyond_verifier``; Intervals);
    ``same_passes`` under the ``nearest_budget`` in passes, if that is within :data:`NEAR`."""
    grouped = groups(found)
    plain = {key: seeds for key, seeds in grouped.items() if "+" not in key[0]}
    rows = []
    for (attack, prior, budget, defence), seeds in grouped.items():
        spent = success.passes(seeds)
        base = attacks.get(attack).base
        rivals = {
            b: s
            for (a, p, b, d), s in plain.items()
            if a != attack and (a, p, d) == (base, prior, defence) and _shared(seeds, s)
        }
        same = rivals.get(budget)
        nearest = min(rivals.values(), key=lambda s: _ratio(success.passes(s), spent), default=None)
        if nearest and _ratio(success.passes(nearest), spent) > NEAR:
            nearest = None
        rows.append(
            {
                "attack": attack,
                "budget": budget,
                "defence": defence,
                "model": label(defence),
                "masks": masks_of(attack),
                "other": bool(re.sub(r"\+eot\d+", "", attack).count("+")),
                "main": success.mean(seeds, "main"),
                "panel_majority": success.mean(seeds, "panel_majority"),
                "verifier_match": success.mean(seeds, success.VERIFIER),
                "passes": spent,
                "seeds": len(seeds),
                "same_steps": success.compare(*_paired(seeds, same)) if same else None,
                "same_steps_verifier": success.compare(*_paired(seeds, same), success.VERIFIER)
                if same
                else None,
                "beyond": _beyond(grouped, seeds, same, "main"),
                "beyond_verifier": _beyond(grouped, seeds, same, success.VERIFIER),
                "nearest_budget": nearest[0].attack.budget if nearest else "",
                "same_passes": success.compare(*_paired(seeds, nearest)) if nearest else None,
            }
        )
    table = pd.DataFrame(rows)
    for p, column in P_VALUES.items():
        compared = table[column].notna()
        table[p] = float("nan")
        if compared.any():
            table.loc[compared, p] = statistics.holm([one.p_value for one in table.loc[compared, column]])
    return table


def _ratio(first: float, second: float) -> float:
    return max(first, second) / min(first, second)


def _paired(*sides: Sequence[Outcome]) -> list[list[Outcome]]:
    """Each side's outcomes of the attack seeds that all have."""
    shared = _shared(*sides)
    return [[one for one in side if one.attack.attack_seed in shared] for side in sides]


def _shared(*sides: Sequence[Outcome]) -> set[int]:
    return set.intersection(*({one.attack.attack_seed for one in side} for side in sides))


def _beyond(
    grouped: Mapping[Group, list[Outcome]],
    seeds: Sequence[Outcome],
    same: Sequence[Outcome] | None,
    judge: str,
) -> Interval | None:
    """What an ingredient adds on this model less what it adds on NoDef."""
    run = seeds[0].attack
    control = [
        grouped.get((name, run.prior, run.budget, "none"))
        for name in (run.attack, attacks.get(run.attack).base)
    ]
    if run.defence == "none" or not same or None in control or not _shared(seeds, same, *control):
        return None
    sides = _paired(seeds, same, *control)
    people = set.intersection(*(set(side[0].people.tolist()) for side in sides))
    values = [success.over_seeds(side, judge)[np.isin(side[0].people, sorted(people))] for side in sides]
    return statistics.interaction(*values, seed=measures.SEED)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a person reads it."""
    rows = table.drop(columns=["defence", "masks", "other"])
    for column in ("main", "panel_majority", "verifier_match"):
        rows[column] = table[column].map(percent)
    for column in ("same_steps", "same_steps_verifier", "same_passes"):
        rows[column] = ["" if found is None else points(found.difference) for found in table[column]]
    for column in ("beyond", "beyond_verifier"):
        rows[column] = ["" if found is None else points(found) for found in table[column]]
    for p in P_VALUES:
        rows[p] = table[p].map(p_value)
    rows["passes"] = [f"{value:,.0f}" for value in table["passes"]]
    names = {
        "main": "AttAcc, main",
        "same_steps": "against plain, same steps",
        "same_steps_verifier": "against plain, same steps, verifier",
        "beyond": "more than on NoDef",
        "beyond_verifier": "more than on NoDef, verifier",
        "p": "p, Holm",
        "p_verifier": "p, Holm, verifier",
        "nearest_budget": "plain budget of as many passes",
        "same_passes": "against that",
    }
    rows = rows.rename(columns=names).rename(columns=lambda name: name.replace("_", " "))
    return rows.set_index(["model", "attack", "budget"])


def by_masks(table: pd.DataFrame, *, budget: str, attack: str = "ppa", judge: str = "main") -> pd.DataFrame:
    """Columns masks, defence, value, low, high: of one attack under one budget, no other ingredients; 0 masks is the
    plain attack."""
    same = table["attack"].map(lambda name: attacks.get(name).base) == attack
    rows = table[same & (table["budget"] == budget) & ~table["other"]]
    return pd.DataFrame(
        {
            "masks": rows["masks"].to_numpy(),
            "defence": rows["defence"].to_numpy(),
            **limits(rows[judge]),
        }
    )


def views_counted(table: pd.DataFrame) -> bool:
    """Whether K erased views cost K times the passes of the plain attack under the same budget on as many people
    (fewer people share the pool among them)."""
    found = {(r.attack, r.budget, r.defence, r.main.n): r.passes for r in table.itertuples()}
    rows = [r for r in table.itertuples() if r.masks and not r.other]
    plain = [(attacks.get(r.attack).base, r.budget, r.defence, r.main.n) for r in rows]
    pairs = [(r.passes, r.masks * found[key]) for r, key in zip(rows, plain, strict=True) if key in found]
    return bool(pairs) and all(math.isclose(paid, due) for paid, due in pairs)


def what_we_saw(book: Workbook, table: pd.DataFrame) -> str:
    """Per model: the ingredients that are best by the main evaluator, or that none exceeds the plain attack, and what
    every judge establishes of all at the same steps, after Holm's correction over all its comparisons, with how much of
    it is not seen on NoDef; then the comparisons at equal passes, and whether erasing only misled the attack."""
    text = []
    for model, rows in table.groupby("model", sort=False):
        tried = rows[rows["same_steps"].notna()]
        if tried.empty:
            continue
        best = max(tried.itertuples(), key=lambda row: row.same_steps.difference.value)
        gain = best.same_steps.difference
        lead = "best is" if gain.value > 0 else "no ingredient exceeds the plain attack; the closest is"
        line = f"- **{model}**: {lead} {best.attack}, {points(gain)} against the plain attack."
        judges = zip(
            ("main evaluator", "verifier"), P_VALUES.items(), ("beyond", "beyond_verifier"), strict=True
        )
        for judge, (p, column), control in judges:
            sides: dict[str, list[str]] = {"stronger": [], "weaker": []}
            for row in tried[tried[p] < LEVEL].to_dict("records"):
                gained = row[column].difference
                beyond = "" if row[control] is None else f"; {points(row[control])} beyond NoDef's"
                sides["stronger" if gained.value > 0 else "weaker"].append(
                    f"{row['attack']} ({points(gained)}{beyond})"
                )
            said = "; ".join(f"{side}: {', '.join(names) or 'none'}" for side, names in sides.items())
            line += f" Established by the {judge}: {said}."
        level = rows[rows["same_passes"].notna()]
        behind, ahead = (
            [f"{row.attack} {row.budget}" for row in level.itertuples() if clear(row.same_passes.difference)]
            for clear in (lambda found: found.high < 0, lambda found: found.low > 0)
        )
        if len(level):
            line += (
                f" Against a plain attack of as many passes, each by its interval alone: more from "
                f"{', '.join(ahead) or 'none'}, less from {', '.join(behind) or 'none'} of {len(level)}."
            )
        text.append(line)
    counted = int(table["same_steps"].notna().sum())
    ending = f"Established: Holm's p below {LEVEL} over the {counted} comparisons of a judge."
    if not book.setup.conclusive:
        return "\n".join([*text, "", "**Too small to conclude.**"])
    return "\n".join([*text, "", ending, "", _answer(table)])


def _answer(table: pd.DataFrame) -> str:
    """Whether what erasing takes from the plain attack comes back when the attacker knows of it: an ingredient that
    helps on an erasing model, and there by more than on NoDef."""
    undone = [
        f"{row['attack']} on {row['model']}"
        for row in table.to_dict("records")
        for (p, column), control in zip(P_VALUES.items(), ("beyond", "beyond_verifier"), strict=True)
        if row[control] is not None
        and established(row[column].difference, row[p])
        and row[column].difference.low > 0
        and row[control].low > 0
    ]
    if undone:
        return f"So a part of the protection is of attacks that do not know of it: {', '.join(dict.fromkeys(undone))}."
    return (
        "So no ingredient is shown to undo erasing, that is, to help on an erasing model and there by more than on "
        "NoDef: that erasing only misleads the plain attack is not established."
    )
