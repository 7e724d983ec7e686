"""What tuned defences take from the attack and what they cost, paired with NoDef and with NoDef's own frontier.

Three times: the strengths that the sweep chose, at its training length (:func:`chosen`); the models of a study's
``tuned`` at full length and with the study's own attack (:func:`measure`); some of them under stronger attacks
(:func:`stronger`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lib import statistics
from lib.plots import label
from lib.reports import sweep
from lib.reports.tables import percent
from lib.reports.tables import points as points_text
from lib.reports.workbook import Workbook
from lib.stages import measures, success
from lib.stages.inversion import Attack
from lib.statistics import Interval

COLUMNS = [
    "defence", "natural", "attack", "verifier", "utility", "privacy", "privacy_verifier", "advantage"
]  # fmt: skip


def attacks(book: Workbook) -> list[Attack]:
    """The study's attack on NoDef, on the checkpoints of its run and on every tuned model, and the stronger attacks on
    those that meet them, first seeds."""
    names = [*book.study.tuned, *(book.frontier_names if book.study.tuned else [])]
    own = [book.attack(defence) for defence in dict.fromkeys(names)]
    return own + [attack for runs in _stronger(book).values() for attack in runs]


def chosen(book: Workbook, table: pd.DataFrame) -> pd.DataFrame:
    """:func:`compare` of what the sweep chose (``table``: of :func:`lib.reports.sweep.measure`)."""
    kept = list(table.loc[table["chosen"], "defence"])
    weaker = list(table.loc[table["family"] == sweep.WEAKER, "defence"])
    return compare(
        book, {name: sweep.attack_on(book, name) for name in ("none", *weaker, *kept)}, kept, weaker
    )


def measure(book: Workbook, table: pd.DataFrame) -> pd.DataFrame:
    """:func:`compare` of the study's tuned models, with ``chosen``: whether the sweep chose this strength."""
    names = [book.attack(defence).defence for defence in book.study.tuned]
    weaker = book.frontier_names[:-1]
    found = compare(book, {name: book.attack(name) for name in ("none", *weaker, *names)}, names, weaker)
    kept = set(table.loc[table["chosen"], "defence"])
    return found.assign(chosen=[None if name == "none" else name in kept for name in found["defence"]])


def _stronger(book: Workbook) -> dict[str, list[Attack]]:
    models, seeds = list(dict.fromkeys(["none", *book.study.stronger_defences])), book.attack_seeds[:1]
    return {line: book.listed_attacks([line], models, seeds) for line in book.study.stronger}


def stronger(book: Workbook) -> pd.DataFrame:
    """:func:`compare` of the models of ``stronger_defences`` under every attack of ``stronger``, with ``line``."""
    parts = []
    for line, attacks in _stronger(book).items():
        runs = {attack.defence: attack for attack in attacks}
        parts.append(compare(book, runs, [name for name in runs if name != "none"]).assign(line=line))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS, "line"])


def compare(
    book: Workbook, runs: Mapping[str, Attack], defences: Sequence[str], weaker: Sequence[str] = ()
) -> pd.DataFrame:
    """Train and attack (or load) models, and pair them with NoDef.

    Args:
        runs: defence to its attack; has ``none``, ``defences`` and ``weaker``, checkpoints of the NoDef run.

    Returns:
        A row a model, NoDef's first, columns :data:`COLUMNS` of Intervals: ``natural`` accuracy, AttAcc (``attack``)
        and ``verifier`` match rate; of others than NoDef ``utility``, ``privacy`` and ``privacy_verifier``, the
        differences to NoDef paired by person, in favour of the defence when positive, and the ``advantage`` over
        NoDef's own frontier by the main evaluator, None without checkpoints. Empty without defences.
    """
    if not defences:
        return pd.DataFrame(columns=COLUMNS)
    names = ["none", *defences]
    attacked = [runs[defence] for defence in names]
    main, verifier = sweep.points(book, attacked), sweep.points(book, attacked, success.VERIFIER)
    over: list[statistics.Advantage | None] = [None] * len(names)
    if weaker:
        frontier = sweep.points(book, [runs[defence] for defence in (*weaker, "none")])
        over = statistics.advantage_over_frontier(main, frontier, chance=main.chance, seed=measures.SEED)
    rows = []
    for i, attack in enumerate(attacked):
        outcome = success.measure([attack])
        row = {
            "defence": names[i],
            "natural": sweep.natural(attack)["test"],
            "attack": success.mean(outcome),
            "verifier": success.mean(outcome, success.VERIFIER),
        }
        if i:
            counted = {"photos": main.photos, "seed": measures.SEED}
            row["utility"] = statistics.compare_paired(
                main.accuracy[:, i], main.accuracy[:, 0], **counted
            ).difference
            for column, seen in (("privacy", main), ("privacy_verifier", verifier)):
                row[column] = statistics.compare_paired(
                    seen.attack[:, 0], seen.attack[:, i], seed=measures.SEED
                ).difference
            row["advantage"] = over[i].advantage if over[i] else None
        rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype(object).where(table.notna(), None)


# --- as a person reads it ------------------------------------------------------------------------------------


def shown(found: pd.DataFrame) -> pd.DataFrame:
    """Models against NoDef."""
    rows = {
        "defence": found["defence"].map(label),
        "natural accuracy": found["natural"].map(percent),
        "AttAcc, main": found["attack"].map(percent),
        "verifier match rate": found["verifier"].map(percent),
        "natural accuracy minus NoDef's": found["utility"].map(_points),
        "NoDef's AttAcc minus its own": found["privacy"].map(_points),
        "NoDef's verifier match rate minus its own": found["privacy_verifier"].map(_points),
    }
    index = ["defence"]
    if found["advantage"].notna().any():
        rows["advantage over NoDef's frontier"] = found["advantage"].map(_points)
    if "chosen" in found:
        rows["chosen by the sweep"] = found["chosen"].map({True: "yes", False: "no", None: ""})
    if "line" in found:
        rows, index = {"attack": found["line"], **rows}, ["attack", "defence"]
    return pd.DataFrame(rows).set_index(index)


def _points(interval: Interval | None) -> str:
    return "" if interval is None else points_text(interval)


def what_we_saw(book: Workbook, found: Mapping[str, pd.DataFrame]) -> str:
    """Of every table, a paragraph under its name: which models leak less than NoDef, and than a NoDef model of their
    accuracy."""
    seeds = "One training seed: intervals are over people alone." if book.setup.conclusive else (
        "**Too small to conclude.**"
    )  # fmt: skip
    return "\n\n".join(f"**{name}.** {_lines(table)} {seeds}" for name, table in found.items())


def _lines(found: pd.DataFrame) -> str:
    text = []
    for row in found[found["defence"] != "none"].itertuples():
        less = "is not established to leak less or more than NoDef"
        if row.privacy.excludes(0):
            less = "leaks less than NoDef" if row.privacy.low > 0 else "leaks more than NoDef"
        by = f" by {row.line}" if "line" in found else ""
        line = f"{label(row.defence)} {less}{by} ({points_text(row.privacy)})"
        if row.advantage is not None:
            verb = "beats" if row.advantage.low > 0 else "is not established to beat"
            line += f" and {verb} NoDef's frontier ({points_text(row.advantage)})"
        text.append(line)
    return f"{'; '.join(text)}." if text else "No model."
