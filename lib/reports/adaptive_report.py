"""Notebook 16: attacks that know of the erasing, against the same attack that does not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib import attacks, plots, statistics
from lib.attacks.adaptive.feature_shift import WEIGHT
from lib.plots import label
from lib.plots.style import grid, legend_below
from lib.reports.attack_report import Group, groups, main_lines, some
from lib.reports.made import made
from lib.reports.tables import established, limits, p_value, percent, points, rule
from lib.reports.workbook import Workbook
from lib.stages import measures, success
from lib.stages.inversion import Attack
from lib.stages.knowledge import CONTROL, law_of
from lib.stages.success import Outcome
from lib.statistics import Interval

NEAR = 1.15  # ratio of passes up to which two budgets are called equal
NEARLY = f"at most {100 * (NEAR - 1):.0f} % more or fewer"
BEYOND = f"more than on NoDef, attacked with the law of {label(CONTROL)}"  # head of the column


class Judge(NamedTuple):
    """The columns of the comparison that are by one judge, and what people call them."""

    name: str
    heading: str
    value: str
    gained: str
    beyond: str
    p: str


JUDGES = {
    "main": Judge("main evaluator", "AttAcc, main", "main", "same_steps", "beyond", "p"),
    "verifier": Judge(
        "verifier",
        "match rate, verifier",
        "verifier_match",
        "same_steps_verifier",
        "beyond_verifier",
        "p_verifier",
    ),
}


def runs(book: Workbook) -> list[Attack]:
    """The study's adaptive attacks, with the plain attacks of all budgets that they are compared with."""
    adaptive = book.listed_attacks(book.study.adaptive)
    bases = {(attacks.get(run.attack).base, run.prior) for run in adaptive}
    plain = [
        run
        for run in book.listed_attacks(main_lines(book.study.compared))
        if (run.attack, run.prior) in bases
    ]
    return some(book, made(book, [*adaptive, *(run for run in plain if run not in adaptive)]))


def masks_of(attack: str) -> int:
    """Erased views per image: K of ``eotK``, 0 without."""
    found = re.search(r"\+eot(\d+)", attack)
    return int(found[1]) if found else 0


def comparison(found: Sequence[Attack]) -> pd.DataFrame:
    """A row per model, attack and budget, with ``masks``, whether it has ``other`` ingredients, ``people`` attacked,
    attack ``seeds``, AttAcc by the main evaluator and the verifier, ``passes``. Of those with ingredients the paired
    differences to the same attack without them, by the attack seeds that both have: ``same_steps`` (main evaluator)
    and ``same_steps_verifier`` under the same budget, with Holm's p over all of that judge's (``p``, ``p_verifier``),
    and what each exceeds the same ingredient's on NoDef by, the control (``beyond``, ``beyond_verifier``; Intervals);
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
            if a != attack and (a, p, d) == (base, prior, defence) and success.shared_seeds(seeds, s)
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
                "verifier_match": success.mean(seeds, success.VERIFIER),
                "passes": spent,
                "people": len(seeds[0].people),
                "seeds": len(seeds),
                "same_steps": success.compare(seeds, same) if same else None,
                "same_steps_verifier": success.compare(seeds, same, success.VERIFIER) if same else None,
                "beyond": _beyond(grouped, seeds, same, "main"),
                "beyond_verifier": _beyond(grouped, seeds, same, success.VERIFIER),
                "nearest_budget": nearest[0].attack.budget if nearest else "",
                "same_passes": success.compare(seeds, nearest) if nearest else None,
            }
        )
    order = list(dict.fromkeys(key[3] for key in grouped))
    table = pd.DataFrame(sorted(rows, key=lambda row: order.index(row["defence"])))
    for judge in JUDGES.values():
        compared = table[judge.gained].notna()
        table[judge.p] = float("nan")
        if compared.any():
            found = [one.p_value for one in table.loc[compared, judge.gained]]
            table.loc[compared, judge.p] = statistics.holm(found)
    return table


def _ratio(first: float, second: float) -> float:
    return max(first, second) / min(first, second)


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
    if (
        run.defence == "none"
        or not same
        or None in control
        or not success.shared_seeds(seeds, same, *control)
    ):
        return None
    sides = success.paired(seeds, same, *control)
    people = set.intersection(*(set(side[0].people.tolist()) for side in sides))
    best = success.fewest(*sides)
    values = [
        success.over_seeds(side, judge, best=best)[np.isin(side[0].people, sorted(people))] for side in sides
    ]
    return statistics.interaction(*values, seed=measures.SEED)


def shown(table: pd.DataFrame, judge: str = "main") -> pd.DataFrame:
    """What one of :data:`JUDGES` says, as a person reads it."""
    by = JUDGES[judge]
    rows = pd.DataFrame(
        {
            "model": table["model"],
            "attack": table["attack"],
            "budget": table["budget"],
            "people": table["people"],
            "seeds": table["seeds"],
            "passes": [f"{value:,.0f}" for value in table["passes"]],
            by.heading: table[by.value].map(percent),
            "minus plain": ["" if found is None else points(found.difference) for found in table[by.gained]],
            "p, Holm": table[by.p].map(p_value),
            BEYOND: ["" if found is None else points(found) for found in table[by.beyond]],
        }
    )
    return rows.set_index(["model", "attack", "budget"])


def alike(found: Sequence[Attack], defence: str) -> list[Attack]:
    """On one model every ingredient, and the attack without it, on all people under the budget that most ingredients
    of that attack were added to."""
    here = [run for run in found if run.defence == defence and not run.people]
    budgets: dict[str, list[str]] = {}
    for run in here:
        if "+" in run.attack:
            budgets.setdefault(attacks.get(run.attack).base, []).append(run.budget)
    usual = {base: max(used, key=used.count) for base, used in budgets.items()}
    return [run for run in here if run.budget == usual.get(attacks.get(run.attack).base)]


def caption(book: Workbook, table: pd.DataFrame) -> str:
    """What a name without a number means, and by which law the control is attacked."""
    own = law_of(book.setup, "none")
    others = [label(name) for name in dict.fromkeys(table["defence"]) if law_of(book.setup, name) != own]
    text = (
        f"Attack seeds are averaged first; 95 % intervals over people. `feature_shift` without a number has the weight "
        f"{WEIGHT:g}. On NoDef the ingredients know the law of {label(CONTROL)}"
    )
    if others:
        text += (
            f", which is not that of {', '.join(others)}: there the control erases otherwise than the attack"
        )
    return f"{text}."


def equal_passes_caption() -> str:
    """What :func:`equal_passes` compares with."""
    return (
        f"K masks cost K times the passes. Here is each beside the plain attack whose passes come nearest, {NEARLY}; "
        "without one it has no row. Intervals are of each comparison alone."
    )


def equal_passes(table: pd.DataFrame) -> pd.DataFrame:
    """The comparisons with a plain attack of about as many passes, by the main evaluator, as a person reads them."""
    level = table[table["same_passes"].notna()]
    rows = pd.DataFrame(
        {
            "model": level["model"],
            "attack": level["attack"],
            "budget": level["budget"],
            "passes": [f"{value:,.0f}" for value in level["passes"]],
            "budget of the plain attack": level["nearest_budget"],
            "minus that": [points(found.difference) for found in level["same_passes"]],
        }
    )
    return rows.set_index(["model", "attack", "budget"])


def by_masks(
    found: Sequence[Attack], *, budget: str, attack: str = "ppa", judge: str = "main", few: bool = False
) -> pd.DataFrame:
    """Columns masks, defence, value, low, high: of one attack under one budget, no other ingredients; 0 masks is the
    plain attack. Those that were run on fewer people than others are left out; or, with ``few``, all are of the people
    that the fewest were run on (no rows if all have the same)."""
    kept = {
        key: seeds
        for key, seeds in groups(found).items()
        if attacks.get(key[0]).base == attack
        and key[2] == budget
        and not re.sub(r"\+eot\d+", "", key[0]).count("+")
    }
    counts = [len(seeds[0].people) for seeds in kept.values()]
    if few:
        kept = kept if counts and min(counts) < max(counts) else {}
        people = min((seeds[0].people for seeds in kept.values()), key=len, default=None)
    else:
        kept = {key: seeds for key, seeds in kept.items() if len(seeds[0].people) == max(counts)}
        people = None
    return pd.DataFrame(
        {
            "masks": [masks_of(name) for name, *_ in kept],
            "defence": [defence for *_, defence in kept],
            **limits([success.mean(seeds, judge, people=people) for seeds in kept.values()]),
        }
    )


def masks_figure(
    found: Sequence[Attack], *, budget: str, y_label: str, title: str, judge: str = "main"
) -> Figure:
    """AttAcc against K: on all people, and beside it on the few that a costly K was run on, if any."""
    every, few = (by_masks(found, budget=budget, judge=judge, few=part) for part in (False, True))
    count = min(len(outcome.people) for outcome in success.measure(found))
    panels = {f"{title}, all people": every} | (
        {f"The {count} people of the largest K": few} if len(few) else {}
    )
    figure, axes = grid(len(panels), columns=2, width=4.8 * len(panels), height=4.0)
    for ax, (name, rows) in zip(axes, panels.items(), strict=True):
        plots.interval_curves(
            rows,
            x="masks",
            evenly=True,
            x_label="erased views per image, K (0: plain)",
            y_label=y_label,
            title=name,
            ax=ax,
        )
        if legend := ax.get_legend():
            legend.remove()
    legend_below(figure, axes)
    return figure


def views_counted(table: pd.DataFrame) -> bool:
    """Whether K erased views cost K times the passes of the plain attack under the same budget on as many people
    (fewer people share the pool among them)."""
    found = {(r.attack, r.budget, r.defence, r.main.n): r.passes for r in table.itertuples()}
    rows = [r for r in table.itertuples() if r.masks and not r.other]
    plain = [(attacks.get(r.attack).base, r.budget, r.defence, r.main.n) for r in rows]
    pairs = [(r.passes, r.masks * found[key]) for r, key in zip(rows, plain, strict=True) if key in found]
    return bool(pairs) and all(math.isclose(paid, due) for paid, due in pairs)


def what_we_saw(book: Workbook, table: pd.DataFrame) -> str:
    """The answer, and per model: the ingredient that is best by the main evaluator, of those that met all people, or
    that none exceeds the plain attack, and what every judge establishes of all at the same steps, after Holm's
    correction over all its comparisons, with how much of it is not seen on NoDef; then the comparisons at equal
    passes."""
    text, everybody = [], table["people"].max()
    for model, rows in table.groupby("model", sort=False):
        tried = rows[rows["same_steps"].notna()]
        whole = tried[tried["people"] == everybody]
        if whole.empty:
            continue
        best = max(whole.itertuples(), key=lambda row: row.same_steps.difference.value)
        gain = best.same_steps.difference
        lead = "best is" if gain.value > 0 else "no ingredient exceeds the plain attack; the closest is"
        line = f"- **{model}**: {lead} {best.attack}, {points(gain)} against the plain attack."
        for judge in JUDGES.values():
            sides: dict[str, list[str]] = {"stronger": [], "weaker": []}
            for row in tried.to_dict("records"):
                gained = row[judge.gained].difference
                if not established(gained, row[judge.p]):
                    continue
                beyond = "" if row[judge.beyond] is None else f"; {points(row[judge.beyond])} beyond NoDef's"
                sides["stronger" if gained.value > 0 else "weaker"].append(
                    f"{row['attack']} ({points(gained)}{beyond})"
                )
            said = "; ".join(f"{side}: {', '.join(names) or 'none'}" for side, names in sides.items())
            line += f" Established by the {judge.name}: {said}."
        level = rows[rows["same_passes"].notna()]
        behind, ahead = (
            [f"{row.attack} {row.budget}" for row in level.itertuples() if clear(row.same_passes.difference)]
            for clear in (lambda found: found.high < 0, lambda found: found.low > 0)
        )
        if len(level):
            line += (
                f" Of {len(level)} compared with a plain attack of as many passes ({NEARLY}), each by its interval "
                "alone: "
                f"{_counted('stronger', ahead)}; {_counted('weaker', behind)}."
            )
        text.append(line)
    counted = int(table["same_steps"].notna().sum())
    if not book.conclusive:
        return "\n".join([*text, "", "**Too small to conclude.**"])
    ending = rule(f"the {counted} comparisons by a judge")
    return "\n".join([f"**{_answer(table)}**", "", *text, "", ending])


def _counted(side: str, names: Sequence[str]) -> str:
    """How many are on a side, and which."""
    return f"{len(names)} {side} ({', '.join(names)})" if names else f"none {side}"


def _answer(table: pd.DataFrame) -> str:
    """Whether what erasing takes from the plain attack comes back when the attacker knows of it: an ingredient that
    helps on an erasing model, and there by more than on NoDef."""
    undone = [
        f"{row['attack']} on {row['model']}"
        for row in table.to_dict("records")
        for judge in JUDGES.values()
        if row[judge.beyond] is not None
        and established(row[judge.gained].difference, row[judge.p])
        and row[judge.gained].difference.low > 0
        and row[judge.beyond].low > 0
    ]
    if undone:
        return f"A part of the protection is of attacks that do not know of it: {', '.join(dict.fromkeys(undone))}."
    return (
        "No ingredient is shown to undo erasing, that is, to help on an erasing model and there by more than on "
        "NoDef: that erasing only misleads the plain attack is not established."
    )
