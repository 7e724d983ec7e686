"""Fair tuning: every defence at a few strengths, under one rule, and what the strengths buy.

Every family of a study's ``strengths`` is trained once per strength, with one training seed, and attacked by one attack
(``swept``). The tuned strength is the strongest whose validation accuracy is at most :data:`TOLERANCE` below NoDef's;
attacks are not consulted. What the tuned strengths take is :mod:`lib.reports.tuned`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib import plots, results, statistics
from lib.defences import canonical, parse, registry, spell
from lib.errors import UserError
from lib.plots import label
from lib.reports.made import made
from lib.reports.tables import percent, quantity
from lib.reports.tradeoff_report import ALLOWED_LOSS
from lib.reports.workbook import WEAKER, Workbook
from lib.stages import measures, records, success
from lib.stages.inversion import Attack
from lib.statistics import Interval, Points

TOLERANCE = 0.02  # of validation accuracy
COLUMNS = ["family", "strength", "defence", "validation", "natural", "attack", "moved", "acted"]


def families(book: Workbook) -> dict[str, list[str]]:
    """Family to its defences, weakest first; the reference ``none`` is strength 0 of all and is not listed. Of a
    partial book those that are made.

    Raises:
        UserError: the study sweeps nothing.
    """
    if not book.study.strengths:
        raise UserError(f"study {book.study.setup}: expected `strengths` to sweep, got none; list them")
    listed = {f: [attack_on(book, name) for name in names] for f, names in book.study.strengths.items()}
    there = {run.defence for run in made(book, [run for runs in listed.values() for run in runs])}
    kept = {f: [run.defence for run in runs if run.defence in there] for f, runs in listed.items()}
    return {family: names for family, names in kept.items() if names}


def untried(book: Workbook, table: pd.DataFrame) -> str:
    """Families of which the ``table`` lacks strengths, so that what is chosen of them is not tuned; empty if there is
    none."""
    wanted = {family: len(names) for family, names in book.study.strengths.items() if family != WEAKER}
    there = {family: int((table["family"] == family).sum()) for family in wanted}
    begun = [f"{f} {there[f]} of {count}" for f, count in wanted.items() if 0 < there[f] < count]
    none = sum(count == 0 for count in there.values())
    text = [f"Not tuned yet, of strengths made: {', '.join(begun)}."] if begun else []
    return " ".join([*text, f"No strength yet of {none} families."] if none else text)


def unchosen(book: Workbook, table: pd.DataFrame) -> str:
    """The models of the ``table`` that the study looks at further, over training seeds, under other attacks and in
    pairs, and that the rule did not choose; empty if there is none."""
    fixed = (canonical(name, book.setup.defences) for name in book.study.met_defences)
    looked_at = [*tuned_in(book, book.study.repeated), *fixed]
    chosen = set(table.loc[table["chosen"], "defence"])
    others = [label(n) for n in dict.fromkeys(looked_at) if n in set(table["defence"]) - chosen]
    return f"Looked at further, but not chosen by the rule so far: {', '.join(others)}." if others else ""


def attack_on(book: Workbook, defence: str) -> Attack:
    """The attack that every point of the sweep meets, first seeds."""
    return book.listed_attacks([book.study.swept], [defence])[0]


def attacks(book: Workbook) -> list[Attack]:
    """The attack on NoDef and on every point of the sweep."""
    if not book.study.strengths:
        return []
    names = ["none", *(defence for defences in families(book).values() for defence in defences)]
    return [attack_on(book, defence) for defence in names]


def measure(book: Workbook) -> pd.DataFrame:
    """Train and attack (or load) every point.

    Returns:
        A row per family and strength: columns ``family, strength`` (from 1; NoDef's row is family ``none``, 0),
        ``defence, validation, natural`` (Interval, test photos), ``attack`` (Interval, main evaluator), ``moved``
        (what the defence says at the end of the quantities that it must move), ``acted`` (None: nothing to show),
        ``chosen`` and ``front`` (whether no other point is better in both). Saved as ``curves/<setup>__strengths``.
    """
    listed = [("none", 0, "none")]
    listed += [(f, _rank(book, f, name), name) for f, names in families(book).items() for name in names]
    rows = [_point(book, *row) for row in listed]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["chosen"] = _chosen(table)
    natural, leak = ([interval.value for interval in table[side]] for side in ("natural", "attack"))
    table["front"] = statistics.pareto_front(natural, leak)
    _save(book, table)
    return table


def _rank(book: Workbook, family: str, defence: str) -> int:
    """Of a defence in its whole family, from 1, made or not."""
    return [attack_on(book, name).defence for name in book.study.strengths[family]].index(defence) + 1


def _point(book: Workbook, family: str, strength: int, defence: str) -> dict[str, object]:
    attack = attack_on(book, defence)
    accuracy = natural(attack)
    return {
        "family": family,
        "strength": strength,
        "defence": defence,
        "validation": accuracy["validation"].value,
        "natural": accuracy["test"],
        "attack": success.mean(success.measure([attack])),
        "moved": moved(attack),
        "acted": acted(attack),
    }


def moved(attack: Attack) -> str:
    """What the defence of the model attacked says at the end of the quantities that it must move."""
    recorded = records.answers_of(attack).training.get("diagnostics") or {}
    return "; ".join(f"{quantity(name)} {value:.3g}" for name, value in recorded.items())


def acted(attack: Attack) -> bool | None:
    """Whether every part of the defence did what it is for, by its own criterion; None where none has one."""
    said = registry.acted(attack.defence, records.answers_of(attack).training, attack.setup.defences)
    shown = [part for part in said.values() if part is not None]
    return all(shown) if shown else None


def silent(table: pd.DataFrame) -> list[str]:
    """The points whose defence is not shown to have acted."""
    return [row.defence for row in table.itertuples() if row.acted is False]


def natural(attack: Attack) -> dict[str, Interval]:
    """Natural accuracy of the model attacked, per split."""
    rows, _ = measures.target_rows(attack.setup, attack.defence, attack.training_seed, attack.multiple)
    top1 = [row for row in rows if row["metric"] == "natural_accuracy"]
    return {row["split"]: Interval(row["value"], row["low"], row["high"], row["n"]) for row in top1}


def _chosen(table: pd.DataFrame) -> np.ndarray:
    """The strongest of each family that loses at most the tolerance; where none does, nothing."""
    base = table.loc[table["family"] == "none", "validation"]
    if base.empty:
        return np.zeros(len(table), dtype=bool)
    # a hair of slack: a loss of exactly the tolerance is allowed, whatever its last bit
    allowed = table["validation"] >= base.iloc[0] - TOLERANCE - 1e-9
    able = table[allowed & ~table["family"].isin(["none", WEAKER])]
    best = able.groupby("family")["strength"].idxmax()
    return table.index.isin(best)


def picked(book: Workbook) -> list[str]:
    """The points that the rule chooses of the families that are made whole, NoDef with them; nothing is made for it."""

    def there(name: str) -> bool:
        run = attack_on(book, name)
        return run.is_sized and success.is_there(run)

    listed = [("none", 0, "none")]
    for family, names in book.study.strengths.items():
        if all(map(there, names)):
            listed += [(family, strength, name) for strength, name in enumerate(names, 1)]
    if len(listed) == 1 or not there("none"):
        return []
    table = pd.DataFrame(listed, columns=COLUMNS[:3])
    answers = (records.answers_of(attack_on(book, name)) for name in table["defence"])
    table["validation"] = [known.right["validation"].double().mean().item() for known in answers]
    return table.loc[_chosen(table), "defence"].tolist()


def tuned_in(book: Workbook, listed: Sequence[str]) -> list[str]:
    """The listed defences and compositions. As soon as a family is made whole, the point that the rule chose of it
    stands in the place of the first of its strengths that is listed, everywhere; further ones stay."""
    family = {attack_on(book, n).defence: f for f, names in book.study.strengths.items() for n in names}
    best = {family[name]: name for name in picked(book) if name in family}
    written = [[spell([term]) for term in parse(canonical(text, book.setup.defences))] for text in listed]
    first: dict[str, str] = {}
    for name in (name for parts in written for name in parts if name in family):
        first.setdefault(family[name], name)
    tuned = {name: best[f] for f, name in first.items() if f in best}
    return list(dict.fromkeys("+".join(tuned.get(name, name) for name in parts) for parts in written))


def follows_the_rule(table: pd.DataFrame) -> bool:
    """Whether of every family the chosen point loses at most the tolerance and every stronger one more, and where none
    is chosen all lose more; NoDef and its weaker models are not chosen."""
    base = table.loc[table["family"] == "none", "validation"].iloc[0]
    for family, rows in table.groupby("family"):
        best = rows.loc[rows["chosen"], "strength"]
        if len(best) > 1 or (len(best) and family in ("none", WEAKER)):
            return False
        lost = base - rows["validation"] > TOLERANCE + 1e-9
        beyond = rows["strength"] > (best.iloc[0] if len(best) else 0)
        if family not in ("none", WEAKER) and (lost[rows["chosen"]].any() or not lost[beyond].all()):
            return False
    return True


def points(
    book: Workbook, attacks: Sequence[Attack], judge: str = "main", seeds: Sequence[int] = ()
) -> Points:
    """Attacked models as points of privacy (by one judge) and utility: under their own training seed, or each under
    all of ``seeds``."""
    rounds = [[replace(attack, training_seed=seed) for attack in attacks] for seed in seeds] or [attacks]
    leaks = [[outcome.per_person(judge) for outcome in success.measure(runs)] for runs in rounds]
    return Points(
        np.array(leaks), np.array([[_accuracies(run) for run in runs] for runs in rounds]), book.test_photos
    )


def _accuracies(attack: Attack) -> list[float]:
    """Natural accuracy of the model attacked, person by person."""
    rows = measures.target_rows(attack.setup, attack.defence, attack.training_seed, attack.multiple)[1]
    return [row["value"] for row in sorted(rows, key=lambda row: row["identity"])]


def matched(book: Workbook, table: pd.DataFrame) -> pd.DataFrame:
    """Per family, with NoDef as its weakest point: ``hypervolume`` (Interval; of the box between NoDef's accuracy less
    :data:`ALLOWED_LOSS` with its AttAcc and full accuracy with chance) and AttAcc at 0, 1, 3 and 5 points of accuracy
    lost, interpolated (columns ``0 points`` ...); NaN where it is not reached."""
    base = points(book, [attack_on(book, "none")])
    (natural,), (leak,) = base.means()
    rows = []
    for family, group in table[table["family"] != "none"].groupby("family", sort=False):
        ours = points(book, [attack_on(book, defence) for defence in ("none", *group["defence"])])
        volume = Interval(np.nan, np.nan, np.nan, ours.identities)
        if leak > base.chance:
            corners = {"reference": (natural - ALLOWED_LOSS, leak), "ideal": (1.0, base.chance)}
            volume = statistics.hypervolume_interval(ours, seed=measures.SEED, **corners)
        losses = statistics.matched_loss(ours, base, seed=measures.SEED)
        rows.append(
            {"family": family, "strengths": len(group), "hypervolume": volume}
            | {f"{100 * found.loss:.0f} points": found.attack for found in losses}
        )
    return pd.DataFrame(rows)


def curve_row(
    attack: Attack, curve: str, interval: Interval, *, metric: str, evaluator: str = "", split: str = "",
    x_name: str = "none", x: float = 0.0,
) -> dict[str, object]:  # fmt: skip
    """One row of ``curves/`` about one attacked model."""
    return {
        "setup": attack.setup.name,
        "defence": attack.defence,
        "training_steps": records.answers_of(attack).steps,
        "prior": attack.prior,
        "attack": attack.attack,
        "budget": attack.budget,
        "training_seed": attack.training_seed,
        "attack_seed": attack.attack_seed,
        "curve": curve,
        "x_name": x_name,
        "x": x,
        "metric": metric,
        "evaluator": evaluator,
        "split": split,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
    }


def _save(book: Workbook, table: pd.DataFrame) -> None:
    rows = []
    for row in table.itertuples():
        attack, place = attack_on(book, row.defence), {"x_name": "strength", "x": float(row.strength)}
        rows += [
            curve_row(attack, "strength", row.natural, metric="natural_accuracy", split="test", **place),
            curve_row(
                attack, "strength", row.attack, metric="attack_accuracy_top1", evaluator="main", **place
            ),
        ]
    if rows:
        results.save_curves(rows, f"{book.setup.name}__strengths")


# --- as a person reads it ------------------------------------------------------------------------------------


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The points of the sweep."""
    rows = {
        "validation accuracy": [f"{100 * value:.1f} %" for value in table["validation"]],
        "natural accuracy": [percent(interval) for interval in table["natural"]],
        "AttAcc, main": [percent(interval) for interval in table["attack"]],
        "rule": ["chosen" if chosen else "" for chosen in table["chosen"]],
        "Pareto front": ["on it" if front else "" for front in table["front"]],
        "what it must move": table["moved"].tolist(),
        "acted": [{True: "yes", False: "no"}.get(said, "") for said in table["acted"]],
    }
    index = pd.MultiIndex.from_arrays(
        [table["family"], table["defence"].map(label)], names=["family", "defence"]
    )
    return pd.DataFrame(rows, index=index)


def shown_matched(found: pd.DataFrame) -> pd.DataFrame:
    """Hypervolume and AttAcc at fixed losses, per family."""
    volumes = [interval.plain(count=False) for interval in found["hypervolume"]]
    rows = found.assign(hypervolume=volumes)
    for column in [name for name in found if name.endswith("points")]:
        rows[column] = [percent(i) if np.isfinite(i.value) else "not reached" for i in found[column]]
    lost = {n: f"AttAcc, {'1 point' if n == '1 points' else n} lost" for n in found if n.endswith("points")}
    return rows.rename(columns=lost).set_index("family")


def figure(book: Workbook, table: pd.DataFrame) -> Axes:
    """The strengths in the plane of privacy and utility; saved as ``figures/<setup>__strengths``."""
    frame = pd.DataFrame(
        {
            "family": table["family"],
            "defence": table["defence"],
            "strength": table["strength"],
            "chosen": table["chosen"],
            "front": table["front"],
            **{
                f"{side}{end}": [getattr(i, name) for i in table[side]]
                for side in ("natural", "attack")
                for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
        }
    )
    kept, tried = table["chosen"].sum(), set(table["family"]) - {"none", WEAKER}
    lost = f"{100 * TOLERANCE:.0f} points of validation accuracy"
    title = f"{kept} of {len(tried)} families have a strength that loses at most {lost}"
    if untried(book, table):
        title = "Strengths made so far"
    drawn = plots.strengths(frame, title=title if book.conclusive else "Too small to conclude")
    results.save_figure(drawn.figure, f"{book.setup.name}__strengths", book.setup.name)
    return drawn


def caption(book: Workbook, table: pd.DataFrame) -> str:
    """What the figure is of."""
    return (
        f"Preset {book.setup.name}: {len(table)} models of one training seed, attacked by {book.study.swept}; 95 % "
        f"intervals over people. Lines join a family's strengths from NoDef on; a ring marks the strongest that loses "
        f"at most {100 * TOLERANCE:.0f} points of validation accuracy; the grey steps are the Pareto front: "
        f"{', '.join(label(name) for name in table.loc[table['front'], 'defence'])}. One training of every model, and "
        f"NoDef's checkpoints of that one: notebook 06 has several, so its numbers differ. {untried(book, table)}"
    ).rstrip()
