"""Notebook 12: what pairs of defences do together, at the budget of the sweep.

A pair's effect is compared with the sum of what each does alone: AttAcc(pair) - AttAcc(A) - AttAcc(B) +
AttAcc(NoDef), paired by person (defences specification, section 10).
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lib import plots, results, statistics
from lib.defences import parse, spell
from lib.errors import UserError
from lib.plots import label
from lib.reports import sweep
from lib.reports.made import made
from lib.reports.tables import established, limits, p_value, readable, rule
from lib.reports.tables import points as points_text
from lib.reports.workbook import Workbook
from lib.stages import measures, records, success
from lib.stages.inversion import Attack

JUDGES = ("main", success.VERIFIER)
ROLES = ("NoDef", "first", "second", "pair")


def pairs(book: Workbook) -> dict[str, tuple[str, str]]:
    """Every listed pair, of strengths as the rule tunes them, and the two defences it is made of.

    Raises:
        UserError: a composition of another number of defences.
    """
    found = {}
    for text in sweep.tuned_in(book, book.study.combined):
        terms = [spell([term]) for term in parse(text)]
        if len(terms) != 2:
            raise UserError(
                f"study {book.study.setup}: expected pairs such as re(0.1,0.4)+negls(-0.05) in `combined`, got "
                f"{text!r}; list two defences joined with +"
            )
        found[text] = (terms[0], terms[1])
    names = dict.fromkeys(name for text, parts in found.items() for name in (text, *parts))
    there = {run.defence for run in made(book, [sweep.attack_on(book, name) for name in names])}
    return {text: parts for text, parts in found.items() if {text, *parts} <= there}


def attacks(book: Workbook) -> list[Attack]:
    """The sweep's attack on NoDef, on every pair and on its parts, each model once."""
    names = [name for pair, parts in pairs(book).items() for name in ("none", *parts, pair)]
    return [sweep.attack_on(book, name) for name in dict.fromkeys(names)]


def measure(book: Workbook) -> pd.DataFrame:
    """Train and attack (or load) every pair and its parts.

    Returns:
        A row per pair and role (``NoDef, first, second, pair``): columns ``pair, role, defence, steps`` (of its
        training), and the Intervals ``natural`` (test photos) and one per judge of :data:`JUDGES`, its share of
        reconstructions taken for the person.
    """
    rows = []
    for pair, parts in pairs(book).items():
        for role, defence in zip(ROLES, ("none", *parts, pair), strict=True):
            attack = sweep.attack_on(book, defence)
            outcome = success.measure([attack])
            row = {
                "pair": pair,
                "role": role,
                "defence": defence,
                "steps": records.answers_of(attack).steps,
                "natural": sweep.natural(attack)["test"],
            }
            rows.append(row | {judge: success.mean(outcome, judge) for judge in JUDGES})
    return pd.DataFrame(rows, columns=["pair", "role", "defence", "steps", "natural", *JUDGES])


def other_lengths(table: pd.DataFrame) -> list[str]:
    """The models that were trained longer or shorter than the pair that they are compared with, with their steps."""
    pairs = table[table["role"] == "pair"].set_index("pair")["steps"]
    other = table[table["steps"] != table["pair"].map(pairs)].drop_duplicates("defence")
    return [f"{label(row.defence)} ({row.steps} steps)" for row in other.itertuples()]


def interactions(book: Workbook) -> pd.DataFrame:
    """Per pair, columns of Intervals, paired by person: per judge ``<judge>`` (the interaction), ``<judge> over
    first`` and ``<judge> over second`` (that part's AttAcc minus the pair's: what the pair takes on top of it), and
    ``natural`` (the interaction of accuracies) and ``cost`` (accuracy of the part that is better on validation photos
    minus the pair's). By the main evaluator, Holm's p over all pairs: ``p`` of the interaction, ``p over parts`` of the
    pair taking more than each (the larger of the two). Saved as ``curves/<setup>__combinations``."""
    rows = []
    for pair, parts in pairs(book).items():
        row: dict[str, object] = {"pair": pair}
        found = {
            judge: sweep.points(book, [sweep.attack_on(book, name) for name in ("none", *parts, pair)], judge)
            for judge in JUDGES
        }
        for judge, points in found.items():
            none, first, second, both = points.attack[0]
            row[judge] = statistics.interaction(both, first, second, none, seed=measures.SEED)
            for role, part in (("first", first), ("second", second)):
                taken = statistics.compare_paired(part, both, seed=measures.SEED)
                row |= {f"{judge} over {role}": taken.difference, f"{judge} p {role}": taken.p_value}
        points = found["main"]
        none, first, second, both = points.attack[0]
        row["p"] = statistics.sign_flip_p_value(both - first - second + none, seed=measures.SEED)
        row["p over parts"] = max(row["main p first"], row["main p second"])
        none, first, second, both = points.accuracy[0]
        counted = {"photos": points.photos, "seed": measures.SEED}
        row["natural"] = statistics.interaction(both, first, second, none, **counted)
        validated = [sweep.natural(sweep.attack_on(book, part))["validation"].value for part in parts]
        better = first if validated[0] >= validated[1] else second  # by other photos than those compared here
        row["cost"] = statistics.compare_paired(better, both, **counted).difference
        rows.append(row)
    table = pd.DataFrame(rows)
    for column in ("p", "p over parts"):
        if len(table):
            table[column] = statistics.holm(table[column])
    _save(book, table)
    return table


def made_of_parts(table: pd.DataFrame) -> bool:
    """Whether the rows of every pair in :func:`measure` are of NoDef, its two parts and the pair, in this order."""
    return all(
        list(rows["defence"]) == ["none", *(spell([term]) for term in parse(pair)), pair]
        for pair, rows in table.groupby("pair")
    )


def adds_up(table: pd.DataFrame, found: pd.DataFrame) -> bool:
    """Whether every interaction is what the four AttAccs of :func:`measure` make."""
    signs = dict(zip(ROLES, (1, -1, -1, 1), strict=True))
    made = {
        pair: sum(signs[row.role] * row.main.value for row in rows.itertuples())
        for pair, rows in table.groupby("pair")
    }
    return all(abs(made[row["pair"]] - row["main"].value) < 1e-6 for row in found.to_dict("records"))


def _save(book: Workbook, table: pd.DataFrame) -> None:
    kept = [
        sweep.curve_row(
            sweep.attack_on(book, row["pair"]),
            "interaction",
            row[judge],
            metric="interaction",
            evaluator=judge,
        )
        for _, row in table.iterrows()
        for judge in JUDGES
    ]
    if kept:
        results.save_curves(kept, f"{book.setup.name}__combinations")


# --- as a person reads it ------------------------------------------------------------------------------------


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """What :func:`measure` found."""
    rows = table.rename(columns={"main": "AttAcc, main", success.VERIFIER: "verifier match rate"})
    rows = rows.assign(pair=rows["pair"].map(label), defence=rows["defence"].map(label))
    return readable(rows.drop(columns="role").set_index(["pair", "defence"])).rename(
        columns={"natural": "natural accuracy"}
    )


def shown_interactions(table: pd.DataFrame) -> pd.DataFrame:
    """What :func:`interactions` found, in points."""
    names = {
        "main": "interaction, AttAcc main",
        "verifier": "interaction, verifier match rate",
        "main over first": "first alone minus pair, AttAcc main",
        "main over second": "second alone minus pair, AttAcc main",
        "natural": "interaction, natural accuracy",
        "cost": "accuracy of the part that validates better minus pair's",
    }
    rows = {text: [points_text(interval) for interval in table[column]] for column, text in names.items()}
    rows |= {
        "p of the interaction, Holm": list(map(p_value, table["p"])),
        "p of taking more than each, Holm": list(map(p_value, table["p over parts"])),
    }
    return pd.DataFrame(rows, index=pd.Index(table["pair"].map(label), name="pair"))


def figure(book: Workbook, table: pd.DataFrame) -> Axes:
    """AttAcc of NoDef, of each part and of the pair, a row a pair."""
    bars = pd.DataFrame(
        {
            "pair": table["pair"].map(label),
            "role": table["role"],
            **limits(table["main"]),
        }
    )
    title = "Pairs of defences and their parts" if book.conclusive else "Too small to conclude"
    return plots.grouped_intervals(
        bars, x="pair", by="role", y_label="AttAcc, main evaluator", title=title, looks=plots.PARTS
    )


def caption(book: Workbook, table: pd.DataFrame) -> str:
    """What the figure is of, and whether all its models were trained equally long."""
    models, uneven = table["defence"].nunique(), other_lengths(table)
    length = f"Not trained equally long: {'; '.join(uneven)}" if uneven else "All were trained equally long"
    return (
        f"Preset {book.setup.name}: {models} models of one training seed, attacked by {book.study.swept}; 95 % "
        f"intervals over people. First and second part: in the order of the pair's name. {length}."
    )


def what_we_saw(book: Workbook, table: pd.DataFrame) -> str:
    """Whether the parts add up, and whether the pair takes more than its better part, in a sentence and by pair."""
    text, apart, ahead = [], 0, 0
    for row in table.to_dict("records"):
        together = row["main"]
        adds = "the effects on AttAcc are not established to differ from their sum"
        if established(together, row["p"]):
            apart += 1
            adds = (
                f"together they take {'more' if together.high < 0 else 'less'} than the sum of their effects"
            )
        both = (row["main over first"], row["main over second"])
        better = all(over.low > 0 and established(over, row["p over parts"]) for over in both)
        ahead += better
        least = min(both, key=lambda interval: interval.value)
        over = "takes more from the attack than either alone" if better else (
            "is not established to take more from the attack than the better of the two alone"
        )  # fmt: skip
        text.append(
            f"- {label(row['pair'])}: {adds} ({points_text(together)}); the pair {over} ({points_text(least)} over it)."
        )
    listed = len(book.study.combined)
    if len(text) < listed:
        text.append(f"- {len(text)} of {listed} listed pairs are made.")
    if not book.conclusive:
        return "\n".join([*text, "", "**Too small to conclude.**"])
    answer = (
        f"**Pairs established to take more from the attack than either part alone: {ahead} of {len(table)}; to take "
        f"another amount than the sum of both: {apart}.**"
    )
    seeds = (
        f"{rule('the pairs')} One training seed: intervals are over people alone, so chance in training is in every "
        "number."
    )
    return "\n".join([answer, "", *text, "", seeds])
