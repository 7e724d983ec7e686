"""Notebook 16: attacks that know of the erasing, against the same attack that does not."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pandas as pd

from lib import attacks, statistics
from lib.plots import label
from lib.reports.attack_report import groups
from lib.reports.made import made
from lib.reports.tables import LEVEL, limits, p_value, percent, points
from lib.reports.workbook import Workbook
from lib.stages import success
from lib.stages.inversion import Attack

P_VALUES = {"p": "same_steps", "p_verifier": "same_steps_verifier"}  # column -> the comparisons it is of


def runs(book: Workbook) -> list[Attack]:
    """The study's adaptive attacks, with the plain attacks they are compared with."""
    return made(book, book.listed_attacks(book.study.adaptive))


def masks_of(attack: str) -> int:
    """Erased views per image: K of ``eotK``, 0 without."""
    found = re.search(r"\+eot(\d+)", attack)
    return int(found[1]) if found else 0


def comparison(found: Sequence[Attack]) -> pd.DataFrame:
    """A row per attack, budget and model, with ``masks``, whether it has ``other`` ingredients, AttAcc by the main
    evaluator, the panel's majority and the verifier, and ``passes``. Of those with ingredients the paired differences
    to the same attack without them: ``same_steps`` (main evaluator) and ``same_steps_verifier`` under the same budget,
    with Holm's p over all of that judge's (``p``, ``p_verifier``); ``same_passes`` under the ``nearest_budget`` in
    passes."""
    grouped = groups(found)
    plain = {key: seeds for key, seeds in grouped.items() if "+" not in key[0]}
    rows = []
    for (attack, prior, budget, defence), seeds in grouped.items():
        spent = success.passes(seeds)
        rivals = [
            s for (a, p, _, d), s in plain.items() if (a, p, d) == (attacks.get(attack).base, prior, defence)
        ]
        same, nearest = None, None
        if "+" in attack:
            same = plain.get((attacks.get(attack).base, prior, budget, defence))
            nearest = min(rivals, key=lambda s: abs(success.passes(s) - spent), default=None)
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
                "same_steps": success.compare(seeds, same) if same else None,
                "same_steps_verifier": success.compare(seeds, same, success.VERIFIER) if same else None,
                "nearest_budget": nearest[0].attack.budget if nearest else "",
                "same_passes": success.compare(seeds, nearest) if nearest else None,
            }
        )
    table = pd.DataFrame(rows)
    for p, column in P_VALUES.items():
        compared = table[column].notna()
        table[p] = float("nan")
        if compared.any():
            table.loc[compared, p] = statistics.holm([one.p_value for one in table.loc[compared, column]])
    return table


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a person reads it."""
    rows = table.drop(columns=["defence", "masks", "other"])
    for column in ("main", "panel_majority", "verifier_match"):
        rows[column] = table[column].map(percent)
    for column in ("same_steps", "same_steps_verifier", "same_passes"):
        rows[column] = ["" if found is None else points(found.difference) for found in table[column]]
    for p in P_VALUES:
        rows[p] = table[p].map(p_value)
    rows["passes"] = [f"{value:,.0f}" for value in table["passes"]]
    names = {
        "main": "AttAcc, main",
        "same_steps": "against plain, same steps",
        "same_steps_verifier": "against plain, same steps, verifier",
        "p": "p, Holm",
        "p_verifier": "p, Holm, verifier",
        "nearest_budget": "nearest plain budget",
        "same_passes": "against it",
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
    every judge establishes of all at the same steps, after Holm's correction over all its comparisons."""
    text = []
    for model, rows in table.groupby("model", sort=False):
        tried = rows[rows["same_steps"].notna()]
        if tried.empty:
            continue
        best = max(tried.itertuples(), key=lambda row: row.same_steps.difference.value)
        gain = best.same_steps.difference
        lead = "best is" if gain.value > 0 else "no ingredient exceeds the plain attack; the closest is"
        line = f"- **{model}**: {lead} {best.attack}, {points(gain)} against the plain attack."
        for judge, (p, column) in zip(("main evaluator", "verifier"), P_VALUES.items(), strict=True):
            sides: dict[str, list[str]] = {"stronger": [], "weaker": []}
            for row in tried[tried[p] < LEVEL].to_dict("records"):
                gained = row[column].difference
                sides["stronger" if gained.value > 0 else "weaker"].append(
                    f"{row['attack']} ({points(gained)})"
                )
            said = "; ".join(f"{side}: {', '.join(names) or 'none'}" for side, names in sides.items())
            line += f" Established by the {judge}: {said}."
        text.append(line)
    counted = int(table["same_steps"].notna().sum())
    ending = f"Established: Holm's p below {LEVEL} over the {counted} comparisons of a judge."
    return "\n".join([*text, "", ending if book.setup.conclusive else "**Too small to conclude.**"])
