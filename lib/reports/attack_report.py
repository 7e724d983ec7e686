"""Notebooks 14 and 15: attacks side by side, what they find and what they cost."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from lib import attacks, results, statistics
from lib.errors import UserError
from lib.plots import label
from lib.reports.made import made
from lib.reports.sweep import curve_row
from lib.reports.tables import established, limits, percent, points, rule
from lib.reports.workbook import Workbook
from lib.stages import success
from lib.stages.exhibits import by_person, person_names, shown_people, shown_photos
from lib.stages.inversion import Attack
from lib.stages.success import Outcome

Group = tuple[str, str, str, str]  # attack, prior, budget, defence
Settled = tuple[str, str, str]  # attack, prior, budget
OTHERS = ("synthesis", "critic", "student")  # counters of networks besides the target


def runs(book: Workbook, *, white_box: bool) -> list[Attack]:
    """The study's compared attacks that see gradients, or those that do not."""
    return some(book, made(book, seeing(book.listed_attacks(book.study.compared), white_box)))


def some(book: Workbook, found: list[Attack]) -> list[Attack]:
    """The attacks of a page, where there are any.

    Raises:
        UserError: the run has none of the models that attacks are compared on, or none of the attacks is there.
    """
    if found:
        return found
    wanted = ", ".join(book.compared_models)
    if not set(book.compared_models) & set(book.defences):
        raise UserError(
            f"this page compares attacks on {wanted}: expected one of them among the defences, got "
            f"{', '.join(book.defences)}; add it, or give no defences"
        )
    raise UserError(
        f"this page compares attacks on {wanted}: expected some that the study of {book.setup.name} lists, got none; "
        f"make them with `python -m lib.run batch {book.setup.name}`"
    )


def described(book: Workbook, *, white_box: bool) -> pd.DataFrame:
    """The compared attacks, in the words that their files begin with: name in full, paper, what they see."""
    rows = []
    listed = some(book, seeing(book.listed_attacks(book.study.compared), white_box))
    for name in dict.fromkeys(run.attack for run in listed):
        method = attacks.get(name)
        full, paper = re.fullmatch(r"([^(]*)(?:\(([^)]*)\).*)?", method.about).groups()
        rows.append(
            {"attack": name, "name in full": full.strip(" ."), "paper": paper or "", "sees": method.sees}
        )
    return pd.DataFrame(rows).set_index("attack")


def main_lines(lines: Sequence[str]) -> list[str]:
    """Of lines "attack prior budget ..." the first of each attack and prior; further ones have other constants."""
    first: dict[tuple[str, ...], str] = {}
    for line in lines:
        first.setdefault(tuple(line.split()[:2]), line)
    return list(first.values())


def seeing(found: Sequence[Attack], gradients: bool) -> list[Attack]:
    """Those of the attacks that see gradients, or those that do not."""
    return [run for run in found if (attacks.get(run.attack).sees == "gradients") == gradients]


def groups(found: Sequence[Attack]) -> dict[Group, list[Outcome]]:
    """Attack, prior, budget and model to the outcomes of its attack seeds, in the order given."""
    grouped: dict[Group, list[Outcome]] = {}
    for outcome in success.measure(found):
        run = outcome.attack
        grouped.setdefault((run.attack, run.prior, run.budget, run.defence), []).append(outcome)
    return grouped


def comparison(found: Sequence[Attack]) -> pd.DataFrame:
    """A row per attack and model: AttAcc by the main evaluator and the panel's majority, the verifier's match
    rate, ``gain`` of the main evaluator over what it began with, ``protection`` (its AttAcc on NoDef minus that on
    the model, paired by person, over the attack seeds that are ``shared``; None on NoDef), ``passes`` through the
    target and images through ``others`` (the prior, its critic, students) and ``seconds`` per person (on the machine
    that made them), the number of ``people``, that of attack ``seeds`` and the ``run`` under the first."""
    rows, grouped = [], groups(found)
    for (attack, prior, budget, defence), seeds in grouped.items():
        cost, undefended = seeds[0].cost, grouped.get((attack, prior, budget, "none"))
        rows.append(
            {
                "attack": attack,
                "prior": prior,
                "defence": defence,
                "model": label(defence),
                "budget": budget,
                "main": success.mean(seeds, "main"),
                "panel_majority": success.mean(seeds, "panel_majority"),
                "verifier_match": success.mean(seeds, success.VERIFIER),
                "gain": success.gain(seeds, "main"),
                "protection": success.compare(undefended, seeds)
                if undefended and defence != "none"
                else None,
                "shared": sorted(success.shared_seeds(undefended, seeds)) if undefended else [],
                "passes": success.passes(seeds),
                "others": sum(cost.get(network, 0.0) for network in OTHERS),
                "seconds": cost["seconds"],
                "people": len(seeds[0].people),
                "seeds": len(seeds),
                "run": seeds[0].attack,
            }
        )
    return pd.DataFrame(rows)


def save(book: Workbook, table: pd.DataFrame, name: str) -> None:
    """The paired ``protection`` of every defended model as ``curves/<setup>__protection__<name>``."""
    rows = []
    for row in table[[found is not None for found in table["protection"]]].itertuples():
        kept = curve_row(
            row.run, "protection", row.protection.difference, metric="privacy_gain", evaluator="main"
        )
        several = len(row.shared) > 1
        rows.append({**kept, "attack_seed": None if several else row.shared[0]})  # else a mean over them
    if rows:
        results.save_curves(rows, f"{book.setup.name}__protection__{name}")


def shown(table: pd.DataFrame, settled: Collection[Settled] = ()) -> pd.DataFrame:
    """What every attack finds, as a person reads it; ``settled``: those whose grid of constants was tried whole."""
    rows = pd.DataFrame(
        {
            "attack": table["attack"],
            "prior": table["prior"],
            "model": table["model"],
            "budget": table["budget"],
            "constants": ["from a grid" if run in settled else "by hand" for run in _named(table)],
            "seeds": table["seeds"],
            "AttAcc, main": table["main"].map(percent),
            "panel majority": table["panel_majority"].map(percent),
            "verifier match": table["verifier_match"].map(percent),
            "gain over the start": table["gain"].map(points),
            "NoDef minus model": [
                "" if found is None else points(found.difference) for found in table["protection"]
            ],
        }
    )
    return rows.set_index(["attack", "prior", "model"])


def costs(table: pd.DataFrame, memory: Mapping[Settled, float | None]) -> pd.DataFrame:
    """What every attack costs, as a person reads it; ``memory``: of :func:`lib.reports.attack_memory.measure`."""
    rows = pd.DataFrame(
        {
            "attack": table["attack"],
            "prior": table["prior"],
            "model": table["model"],
            "budget": table["budget"],
            "passes per person": [f"{value:,.0f}" for value in table["passes"]],
            "images through other networks": [f"{value:,.0f}" for value in table["others"]],
            "seconds per person": [f"{value:.1f}" for value in table["seconds"]],
            "peak MB": ["" if (mb := memory.get(run)) is None else f"{mb:,.0f}" for run in _named(table)],
            "people at once": [
                min(attacks.get(row.attack).budget(**row.run.values).chunk, row.people)
                for row in table.itertuples()
            ],
        }
    )
    return rows.set_index(["attack", "prior", "model"])


def bars(table: pd.DataFrame) -> pd.DataFrame:
    """Columns value, low, high of the main evaluator, ``attack`` (with its prior), ``defence`` and ``passes``."""
    return pd.DataFrame(
        {
            "attack": _titles([(row.attack, row.prior, row.budget) for row in table.itertuples()]),
            "defence": table["defence"],
            **limits(table["main"]),
            "passes": table["passes"],
        }
    )


def _titles(named: Sequence[Settled]) -> list[str]:
    """Attack and prior under one another, and the budget where that is needed to tell them apart."""
    budgets: dict[tuple[str, str], set[str]] = {}
    for attack, prior, budget in named:
        budgets.setdefault((attack, prior), set()).add(budget)
    return [
        f"{attack}\n{prior}" + (f"\n{budget}" if len(budgets[attack, prior]) > 1 else "")
        for attack, prior, budget in named
    ]


def sheet(book: Workbook, found: Sequence[Attack], defence: str) -> dict[str, Any]:
    """Arguments of :func:`lib.plots.side_by_side`: people in rows; private photos, then the best reconstruction
    of every attack and prior on one model (of several budgets the last, with the constants that a grid chose where
    there are such), marked by the main evaluator."""
    people = shown_people(len(book.world.train.names))
    reconstructed, marks = {}, {}
    grouped = groups([run for run in found if run.defence == defence])
    titles = dict(zip(grouped, _titles([key[:3] for key in grouped]), strict=True))
    for key in {key[:2]: key for key in grouped}.values():
        name, seeds = titles[key].replace("_", "\n").replace("+", "\n+"), grouped[key]
        reconstructed[name] = list(seeds[0].faces[:, None])
        marks[name] = seeds[0].hits["main"][people, :1].tolist()
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


def _named(table: pd.DataFrame) -> list[Settled]:
    return list(zip(table["attack"], table["prior"], table["budget"], strict=True))


def _called(table: pd.DataFrame) -> dict[int, str]:
    """Row to its attack in words: ``ppa with eigenfaces``, and the budget where that is needed."""
    titles = [title.replace("\n", " with ", 1).replace("\n", ", ") for title in _titles(_named(table))]
    return dict(zip(table.index, titles, strict=True))


def what_we_saw(book: Workbook, table: pd.DataFrame, settled: Collection[Settled] = ()) -> str:
    """The attack that finds most on every model by two judges, against which of them a defence helps, and which
    do not beat what they began with; of which the constants were not ``settled``."""
    corrected, called = _corrected(table), _called(table)
    text = [_answer(table, corrected, called), _by_hand(table, settled)] if book.conclusive else []
    for model, rows in table.groupby("model", sort=False):
        best, likest = (
            table.loc[max(rows.index, key=lambda i, judge=judge: rows[judge][i].value)]
            for judge in ("main", "verifier_match")
        )
        text.append(
            f"- **{model}**: the main evaluator takes most for the person from {called[best.name]}, "
            f"{best.main.percent()}, for {best.passes:,.0f} {asked(best.attack)} a person; "
            f"the verifier, trained on other people, from {called[likest.name]}, "
            f"{likest.verifier_match.percent()}."
        )
        compared = rows[[found is not None for found in rows["protection"]]]
        if len(compared):
            text[-1] += (
                f" Against NoDef, same attack and budget, by person: {_protection(compared, corrected, called)}."
            )
    if not book.conclusive:
        return "\n".join([*text, "", "**Too small to conclude.**"])
    weak = [f"{row.attack} on {row.model}" for row in table.itertuples() if not row.gain.low > 0]
    if corrected:
        found = sum(map(len, _sides(table, corrected)))
        text += ["", rule(f"the {len(corrected)} comparisons with NoDef", found)]
    if weak:
        text += ["", f"Not above what they began with by an interval: {', '.join(weak)}."]
    else:
        text += ["", "Every attack beats what it began with by an interval."]
    return "\n".join([*text, _unlike(table)])


def _answer(table: pd.DataFrame, corrected: Mapping[int, float], called: Mapping[int, str]) -> str:
    """In a sentence: what is found on NoDef, and in how many comparisons a defence is established to change that."""
    text, undefended = "", table[table["defence"] == "none"]
    if len(undefended):
        order = sorted(undefended.itertuples(), key=lambda row: row.main.value)
        least, most = (
            f"{row.main.percent(count=False)} ({called[row.Index]}, {row.passes:,.0f} {asked(row.attack)} a person)"
            for row in (order[0], order[-1])
        )
        text = f"On NoDef the main evaluator takes from {least} to {most} of the reconstructions for the person. "
    if corrected:
        less, more = (len(side) for side in _sides(table, corrected))
        text += (
            f"In {less} of {len(corrected)} comparisons with NoDef an attack is established to find less on a defended "
            f"model, in {more} more."
        )
    return f"**{text.strip()}**\n" if text else ""


def _sides(table: pd.DataFrame, corrected: Mapping[int, float]) -> tuple[list[int], list[int]]:
    """The rows in which a defended model is established to leak less than NoDef, and more."""
    found = {i: table["protection"][i].difference for i in corrected}
    sure = [i for i, p in corrected.items() if established(found[i], p)]
    return [i for i in sure if found[i].low > 0], [i for i in sure if found[i].high < 0]


def _by_hand(table: pd.DataFrame, settled: Collection[Settled]) -> str:
    """Whose constants were not tried on the throw-away target."""
    runs = list(dict.fromkeys(_named(table)))
    left = [" ".join(run) for run in runs if run not in settled]
    if not left:
        return "The constants of every attack are from a grid tried on the throw-away target.\n"
    sure = ", ".join(" ".join(run) for run in runs if run in settled) or "none"
    return (
        f"Constants from a grid tried on the throw-away target: {sure}; by hand: {', '.join(left)}, whose rows say "
        "what these constants find and not what the attack can do.\n"
    )


def asked(attack: str) -> str:
    """What is counted of an attack."""
    return "passes" if attacks.get(attack).sees == "gradients" else "queries"


def _unlike(table: pd.DataFrame) -> str:
    """The attack whose reconstructions of NoDef the two judges differ on most."""
    rows = table[table["defence"] == "none"]
    if rows.empty:
        return ""
    widest = max(rows.itertuples(), key=lambda row: row.main.value - row.verifier_match.value)
    return (
        f"The judges are furthest apart on {_called(table)[widest.Index]} against NoDef: the main evaluator takes "
        f"{widest.main.percent()} for the person, the verifier {widest.verifier_match.percent()}; its faces in the "
        "sheet above show whether they are likenesses."
    )


def _corrected(table: pd.DataFrame) -> dict[int, float]:
    """Row to Holm's p of its ``protection``, over all of them."""
    compared = table["protection"].dropna()
    found = statistics.holm([one.p_value for one in compared]) if len(compared) else []
    return dict(zip(compared.index, found, strict=True))


def _protection(rows: pd.DataFrame, corrected: Mapping[int, float], called: Mapping[int, str]) -> str:
    """Attacks by whether they find less on a defended model, by the interval and Holm's p."""
    less, more = _sides(rows, {i: corrected[i] for i in rows.index})
    sides = {"less is found by": less, "more by": more}
    sides["no difference established for"] = [i for i in rows.index if i not in {*less, *more}]
    kinds = {
        words: [f"{called[i]} ({points(rows['protection'][i].difference)})" for i in side]
        for words, side in sides.items()
    }
    return "; ".join(f"{words} {', '.join(names)}" for words, names in kinds.items() if names)
