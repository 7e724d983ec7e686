"""What tuned defences take from the attack and what they cost, paired with NoDef and with NoDef's own frontier.

Four times: what the sweep chose (:func:`chosen`), under further attacks, too (:func:`under`); models of a study under
other attacks (:func:`others`); the same at other training lengths (:func:`lengths`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from lib import results, statistics
from lib.plots import label
from lib.reports import sweep
from lib.reports.made import made
from lib.reports.tables import established, holms, p_value, percent, rule
from lib.reports.tables import points as points_text
from lib.reports.workbook import Workbook
from lib.stages import measures, success
from lib.stages.inversion import Attack
from lib.statistics import Interval

COLUMNS = [
    "defence", "natural", "attack", "verifier", "utility", "privacy", "privacy_verifier", "p", "dominates", "advantage",
    "outside", "seeds", "training",
]  # fmt: skip

P = "p by people alone, Holm"  # head of the column


def attacks(book: Workbook) -> list[Attack]:
    """What :func:`under` (of families that are made whole), :func:`others` and :func:`lengths` are made of."""
    three = (_under(book, sweep.picked(book)), _others(book), _lengths(book))
    return [attack for groups in three for runs in groups.values() for attack in runs.values()]


def chosen(book: Workbook, table: pd.DataFrame) -> pd.DataFrame:
    """:func:`compare` of what the sweep chose (``table``: of :func:`lib.reports.sweep.measure`)."""
    kept = list(table.loc[table["chosen"], "defence"])
    weaker = list(table.loc[table["family"] == sweep.WEAKER, "defence"])
    runs = {name: sweep.attack_on(book, name) for name in ("none", *weaker, *kept)}
    return corrected(compare(book, runs, kept, weaker))


def under(book: Workbook, table: pd.DataFrame) -> pd.DataFrame:
    """:func:`compare` of the same points under every attack of ``chosen_attacks``, with ``by``. Its differences to
    NoDef are saved as ``curves/<setup>__chosen``."""
    groups = _under(book, list(table.loc[table["chosen"], "defence"]))
    found = _grouped(book, groups)
    _save(book, "chosen", groups, found)
    return found


def others(book: Workbook) -> pd.DataFrame:
    """:func:`compare` of the models of ``met_defences`` under every attack of ``others``, with ``by``. Its differences
    to NoDef are saved as ``curves/<setup>__others``."""
    groups = _others(book)
    found = _grouped(book, groups)
    _save(book, "others", groups, found)
    return found


def lengths(book: Workbook) -> pd.DataFrame:
    """:func:`compare` of the same models at every training length, with ``by``; with ``moved``: what the defence says
    at the end of the quantities that it must move; and with ``longer``: what the longest training adds to ``privacy``
    over this one (Interval; None of NoDef and of the longest). Saved as ``curves/<setup>__lengths``, too."""
    groups = _lengths(book)
    found = _grouped(book, groups)
    if found.empty:
        return found.assign(longer=None, moved=None)
    leaks = {
        by: dict(zip(runs, sweep.points(book, list(runs.values())).attack[0], strict=True))
        for by, runs in groups.items()
    }
    last = leaks[list(leaks)[-1]]
    longer = []
    for here in leaks.values():
        for name in here:
            longer.append(None)
            if name != "none" and here is not last and name in last:
                four = (last["none"], last[name], here["none"], here[name])
                longer[-1] = statistics.interaction(*four, seed=measures.SEED)
    found = found.assign(
        longer=longer, moved=[sweep.moved(run) for runs in groups.values() for run in runs.values()]
    )
    _save(book, "lengths", groups, found)
    return found


def _save(
    book: Workbook, curve: str, groups: Mapping[str, Mapping[str, Attack]], found: pd.DataFrame
) -> None:
    if found.empty:
        return
    kinds = {
        "privacy": ("privacy_gain", "main"),
        "privacy_verifier": ("privacy_gain", success.VERIFIER),
        "longer": ("interaction", "main"),
    }
    attacked = [run for runs in groups.values() for run in runs.values()]
    rows = [
        sweep.curve_row(run, curve, row[column], metric=metric, evaluator=judge)
        for run, row in zip(attacked, found.to_dict("records"), strict=True)
        for column, (metric, judge) in kinds.items()
        if row.get(column) is not None
    ]
    results.save_curves(rows, f"{book.setup.name}__{curve}")


def by_line(lines: Sequence[str]) -> dict[str, str]:
    """Lines "attack prior budget" by their names: ``by`` attack and prior, and the budget where that is needed."""
    short = {line: f"by {' '.join(line.split()[:2])}" for line in lines}
    several = Counter(short.values())
    return {name if several[name] == 1 else f"by {line}": line for line, name in short.items()}


def _under(book: Workbook, models: Sequence[str]) -> dict[str, dict[str, Attack]]:
    return _by(book, book.study.chosen_attacks, models)


def _others(book: Workbook) -> dict[str, dict[str, Attack]]:
    return _by(book, book.study.others, book.study.met_defences)


def _by(book: Workbook, lines: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Attack]]:
    groups = {by: _runs(book, line, models) for by, line in by_line(lines).items()}
    return {by: runs for by, runs in groups.items() if runs}


def _lengths(book: Workbook) -> dict[str, dict[str, Attack]]:
    found = {}
    for multiple in book.study.lengths:
        steps = round(multiple * book.setup.target.recipe["steps"])
        if runs := _runs(book, book.study.lengths_attack, book.study.met_defences, multiple):
            found[f"{steps} steps, by {runs['none'].attack} {runs['none'].budget}"] = runs
    return found


def _runs(
    book: Workbook, line: str, models: Sequence[str], multiple: float | None = None
) -> dict[str, Attack]:
    """NoDef's first; none without it, or of it alone."""
    listed = book.listed_attacks([line], list(dict.fromkeys(["none", *models])), book.attack_seeds[:1])
    runs = made(book, [replace(run, multiple=multiple) for run in listed])
    return {run.defence: run for run in runs} if len(runs) > 1 and runs[0].defence == "none" else {}


def _grouped(book: Workbook, groups: Mapping[str, Mapping[str, Attack]]) -> pd.DataFrame:
    parts = [
        compare(book, runs, [n for n in runs if n != "none"]).assign(by=by) for by, runs in groups.items()
    ]
    return joined(parts)


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of :func:`compare`, with ``by``, as one, which p is corrected over."""
    if not parts:
        return pd.DataFrame(columns=[*COLUMNS, "by"])
    return corrected(pd.concat(parts, ignore_index=True))


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """The table with Holm's p in the place of p."""
    compared = table["p"].notna()
    found = table["p"].astype(object)
    if compared.any():
        found[compared] = statistics.holm(table.loc[compared, "p"].astype(float))
    return table.assign(p=found)


def compare(
    book: Workbook,
    runs: Mapping[str, Attack],
    defences: Sequence[str],
    weaker: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> pd.DataFrame:
    """Train and attack (or load) models, and pair them with NoDef.

    Args:
        runs: defence to its attack; has ``none``, ``defences`` and ``weaker``, checkpoints of the NoDef run.
        seeds: training seeds of every model, which intervals are then over, beside people; by default the run's.

    Returns:
        A row a model, NoDef's first, columns :data:`COLUMNS` of Intervals: ``natural`` accuracy, AttAcc (``attack``)
        and ``verifier`` match rate; of others than NoDef ``utility``, ``privacy`` and ``privacy_verifier``, the
        differences to NoDef paired by person, in favour of the defence when positive; ``p`` of ``privacy`` (sign flips,
        for :func:`corrected`), ``dominates``: the share of paired resamples in which it dominates NoDef. Of all, the
        ``advantage`` over NoDef's own frontier by the main evaluator, None without checkpoints (NoDef's own says how
        well the frontier fits), whether it is ``outside``, less accurate than any checkpoint, and AttAcc under each of
        the training ``seeds``; of others than NoDef and several of these, ``training``: ``privacy`` with Student's
        interval over them, which a bootstrap of so few would make too narrow. Empty without defences.
    """
    if not defences:
        return pd.DataFrame(columns=COLUMNS)
    names = ["none", *defences]
    attacked = [runs[defence] for defence in names]
    main, verifier = (sweep.points(book, attacked, judge, seeds) for judge in ("main", success.VERIFIER))
    over: list[statistics.Advantage | None] = [None] * len(names)
    if weaker:
        frontier = sweep.points(book, [runs[defence] for defence in (*weaker, "none")], seeds=seeds)
        over = statistics.advantage_over_frontier(main, frontier, chance=main.chance, seed=measures.SEED)
    nodef = sweep.points(book, attacked[:1], seeds=seeds)
    dominates = statistics.dominance_probability(main, nodef, seed=measures.SEED)
    rows = []
    counted = {"photos": main.photos, "seed": measures.SEED}
    for i, name in enumerate(names):
        row = {
            "defence": name,
            "natural": statistics.nested_mean(main.accuracy[:, i], **counted),
            "attack": statistics.nested_mean(main.attack[:, i], seed=measures.SEED),
            "verifier": statistics.nested_mean(verifier.attack[:, i], seed=measures.SEED),
            "seeds": statistics.summarise_seeds(main.attack[:, i], seed=measures.SEED),
        }
        if i:
            row["utility"] = statistics.compare_paired(
                main.accuracy[:, i], main.accuracy[:, 0], **counted
            ).difference
            taken, seen = (
                statistics.compare_paired(side.attack[:, 0], side.attack[:, i], seed=measures.SEED)
                for side in (main, verifier)
            )
            row |= {"privacy": taken.difference, "privacy_verifier": seen.difference}
            row |= {"p": taken.p_value, "dominates": float(dominates[i, 0])}
            if len(seeds) > 1:
                row["training"] = statistics.t_interval((main.attack[:, 0] - main.attack[:, i]).mean(1))
        if over[i]:
            row |= {"advantage": over[i].advantage, "outside": over[i].extrapolated}
        rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype(object).where(table.notna(), None)


# --- as a person reads it ------------------------------------------------------------------------------------


def shown(found: pd.DataFrame, *, privacy: bool = False) -> pd.DataFrame:
    """Models against NoDef; ``privacy`` alone where the same models' accuracy is shown elsewhere."""
    rows = {
        "defence": found["defence"].map(label),
        "natural accuracy": found["natural"].map(percent),
        "AttAcc, main": found["attack"].map(percent),
        "verifier match rate": found["verifier"].map(percent),
        "natural accuracy minus NoDef's": found["utility"].map(_points),
        "NoDef's AttAcc minus its own": found["privacy"].map(_points),
        P: found["p"].map(p_value),
        "P(dominates NoDef)": ["" if share is None else f"{share:.0%}" for share in found["dominates"]],
        "NoDef's verifier match rate minus its own": found["privacy_verifier"].map(_points),
    }
    index = ["defence"]
    if found["advantage"].notna().any():
        rows["advantage over NoDef's frontier"] = [
            "less accurate than any NoDef" if row.outside else _points(row.advantage)
            for row in found.itertuples()
        ]
    if "longer" in found:
        rows["what the longest training adds to it"] = found["longer"].map(_points)
        rows["what it must move"] = found["moved"]
    if "by" in found:
        rows, index = {"": found["by"], **rows}, ["", "defence"]
    table = pd.DataFrame(rows).set_index(index)
    elsewhere = ["natural accuracy", "natural accuracy minus NoDef's", "P(dominates NoDef)"]
    return table.drop(columns=elsewhere if privacy else [])


def _points(interval: Interval | None) -> str:
    return "" if interval is None else points_text(interval)


def what_we_saw(book: Workbook, found: Mapping[str, pd.DataFrame]) -> str:
    """In a sentence what the first table says, then of every table, under its name, a line a model: whether it leaks
    less than NoDef, and than a NoDef model of its accuracy."""
    ending = "**Too small to conclude.**"
    if book.conclusive:
        several = [
            name for name, table in found.items() if any(len(seeds.points) > 1 for seeds in table["seeds"])
        ]
        over = (
            f"{', '.join(several)}: intervals are over training seeds and people. Elsewhere o"
            if several
            else "O"
        )
        ending = (
            f"{over}ne training seed: intervals are over people alone. {rule('its table, by people alone,')} Of "
            "several trainings Student's interval over them has to exclude 0, too."
        )
    parts = [f"**{name}**\n\n{_lines(table)}" for name, table in found.items()]
    answer = _answer(next(iter(found.values()))) if book.conclusive else ""
    return "\n\n".join(filter(None, [answer, *parts, ending]))


def _answer(found: pd.DataFrame) -> str:
    """Of a table in a sentence: which models leak less than NoDef, and than a NoDef model of their accuracy."""
    rows = [row for row in found.itertuples() if row.defence != "none"]
    less = [row for row in rows if established(row.privacy, row.p) and row.privacy.low > 0]
    better = [row for row in less if row.advantage is not None and not row.outside and row.advantage.low > 0]
    leaking, ahead = (", ".join(label(row.defence) for row in side) or "none" for side in (less, better))
    if not rows:
        return ""
    return (
        f"**Of {len(rows)} chosen models these are established to leak less than NoDef: {leaking}; of them better than "
        f"a weaker NoDef of the same accuracy: {ahead}.**"
    )


def _lines(found: pd.DataFrame) -> str:
    text = []
    for row in found[found["defence"] != "none"].itertuples():
        less, trained = "is not established to leak less or more than NoDef", row.training
        if established(row.privacy, row.p):
            less = f"leaks {'less' if row.privacy.low > 0 else 'more'} than NoDef"
            if trained is not None and not trained.excludes(0):
                less += f" in these {trained.n} trainings, which is too few to say so of others"
        by = f", {row.by}," if "by" in found else ""
        line = f"- {label(row.defence)}{by} {less} ({points_text(row.privacy)}, {holms(row.p)})"
        if row.advantage is not None and row.outside:
            line += "; it is less accurate than any NoDef"
        elif row.advantage is not None:
            beats = "is not established to be better or worse than"
            if row.advantage.excludes(0):
                beats = "is better than" if row.advantage.low > 0 else "is worse than"
            line += (
                f"; by the interval alone it {beats} a weaker NoDef of its accuracy ({points_text(row.advantage)}, "
                "main evaluator)"
            )
        if "longer" in found and row.longer is not None:
            changes = "is not established to change that"
            if row.longer.excludes(0):
                changes = "adds to that" if row.longer.low > 0 else "takes from that"
            line += f"; by the interval alone the longest training {changes} ({points_text(row.longer)})"
        text.append(f"{line}.")
    return "\n".join(text) or "Nothing to compare yet."
