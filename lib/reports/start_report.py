"""Notebook 00: what leaks from the models that come with the repository, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from lib import evaluation, results, statistics, store
from lib.plots import label
from lib.plots.style import EVALUATORS
from lib.reports.prior_quality import sample_images
from lib.reports.tables import points
from lib.reports.workbook import Workbook
from lib.results import PUBLISHED, show_number, summarise
from lib.results.sentences import show_interval
from lib.stages import inversion, measures, priors, targets
from lib.stages.exhibits import person_names, shown_people
from lib.stages.inversion import Attack
from lib.statistics import Interval

BUDGET = "start"
TRUNCATION = 0.7  # of the samples shown
SHOWN = (
    ("natural_accuracy", ""),
    ("attack_accuracy_top1", "main"),
    ("attack_accuracy_top1", "panel_majority"),
    ("verifier_match", "verifier"),
    ("verifier_rank1_accuracy", "verifier"),
)
NAMES = {
    ("natural_accuracy", ""): "natural accuracy",
    ("attack_accuracy_top1", "main"): "AttAcc, main evaluator",
    ("attack_accuracy_top1", "panel_majority"): "AttAcc, panel majority",
    ("verifier_match", "verifier"): "verifier match",
    ("verifier_rank1_accuracy", "verifier"): "verifier rank 1",
}
COMMITTED = "committed study"
ABSENT = "not there yet"


def shipped(book: Workbook) -> pd.DataFrame:
    """The networks that the page loads: kind, parameters, what is known of them, where they lie."""
    trained = [targets.target(book.setup, d, book.training_seeds[0]) for d in book.defences]
    stages = [(t.stage, "target") for t in trained]
    stages += [(targets.judge_stage(book.setup, role), role) for role in (*book.setup.evaluators, "verifier")]
    stages += [(priors.stage(book.setup, kind), "prior") for kind in book.setup.priors]
    rows = []
    for stage, role in stages:
        artifact = store.find(stage)
        if artifact is None:
            continue
        right = artifact.meta.get("validation_accuracy")
        rows.append(
            {
                "network": stage.label.removeprefix(f"{book.setup.name} "),
                "role": role.replace("_", " "),
                "numbers": f"{sum(t.numel() for t in artifact.tensors.values()) / 1e6:.2f} M",
                "training steps": str(artifact.meta.get("steps", "none")),
                "validation photos right": "" if right is None else show_number(right, "accuracy"),
                "from": "zoo" if artifact.path.is_relative_to(store.ZOO) else "cache",
            }
        )
    return pd.DataFrame(rows).set_index("network")


def prior_samples(book: Workbook, count: int = 10) -> dict[str, Tensor]:
    """Images (n,3,S,S) in [0,1] of every prior that is there; this page never trains one."""
    stages = {kind: priors.stage(book.setup, kind) for kind in book.setup.priors}
    there = [kind for kind, stage in stages.items() if store.exists(stage)]
    if not there:  # the one that the attack needs
        there = [book.study.prior]
    return {kind: sample_images(book.setup, kind, count, truncation=TRUNCATION) for kind in there}


def quick_attacks(book: Workbook) -> list[Attack]:
    """Every defence of the page attacked with the budget of this page."""
    return [book.attack(defence, budget=BUDGET) for defence in book.defences]


def budget_card(attacks: Sequence[Attack]) -> pd.DataFrame:
    """This page's budget beside the study's."""
    first = attacks[0]
    headline = {**first.values, **first.setup.budget(first.attack, "headline")}
    names = {
        "pool": "prior samples searched",
        "candidates": "candidates optimised per person",
        "steps": "optimisation steps",
        "views": "random views for the selection",
        "keep": "reconstructions kept per person",
    }
    columns = {f"this page ({BUDGET})": first.values, "the study (headline)": headline}
    return pd.DataFrame({c: {names[k]: values[k] for k in names} for c, values in columns.items()})


def faces(attacks: Sequence[Attack]) -> dict[str, Any]:
    """Arguments of :func:`lib.plots.side_by_side`: per person the prior sample that the first model's best
    reconstruction started from, then every model's kept reconstructions, marked by the main evaluator."""
    trained = attacks[0].target()
    people = shown_people(trained.model.num_classes)
    made = inversion.reconstruct(attacks[0])
    start = made.initial[people, made.selected[people, 0]]
    images = inversion.starting_pictures(attacks[0], start[:, None])
    shown: dict[str, Any] = {
        "private": list(images),
        "reconstructed": {},
        "people": person_names(trained.meta["names"], people),
        "marks": {},
        "heading": "start",
    }
    for attack in attacks:
        made = inversion.reconstruct(attack)
        images = inversion.pictures(attack, people, made.selected[people])
        seen = inversion.judge_reconstructions(attack)["reconstructions"]
        right = evaluation.hits(seen.logits["main"], seen.labels).view(len(made.labels), -1)
        shown["reconstructed"][label(attack.defence)] = list(images)
        shown["marks"][label(attack.defence)] = right.gather(1, made.selected)[people].tolist()
    return shown


def faces_caption(shown: dict[str, Any]) -> str:
    """How many of the shown images the main evaluator takes for the person, per model."""
    parts = [
        f"{name}: {sum(map(sum, frames))} of {sum(map(len, frames))}"
        for name, frames in shown["marks"].items()
    ]
    return (
        f"No photo is on this page: left the prior sample an attack starts from, then what it makes of it "
        f"with nothing but the model. {len(shown['people'])} of the people in the model, evenly spaced. Taken "
        f"for the person by the main evaluator: {'; '.join(parts)}."
    )


def measure(book: Workbook) -> pd.DataFrame:
    """Natural accuracies and the quick attacks' rows, saved and as one table."""
    return pd.concat([book.train(), book.invert(quick_attacks(book))], ignore_index=True)


def committed(book: Workbook) -> pd.DataFrame:
    """Headline rows of the committed study of this setup under its own attack seeds (the referee has more); empty if
    there is none."""
    table = results.load_tables(folder=PUBLISHED)
    wanted = (table["setup"] == book.setup.name) & (table["headline"] == 1)
    wanted &= table["attack_seed"].isna() | table["attack_seed"].isin(book.study.attack_seeds)
    return table[wanted & table["defence"].isin(book.defences)]


def comparison(table: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """This page's numbers beside the committed study's, with intervals: rows defence and metric."""
    columns = {"this page": _cells(table), COMMITTED: _cells(study)}
    defences = list(dict.fromkeys(table["defence"]))
    rows = [(defence, NAMES[key]) for key in SHOWN for defence in defences]
    index = pd.MultiIndex.from_tuples([(metric, d) for d, metric in rows], names=["metric", "model"])
    cells = {
        name: [found.get((defence, metric), ABSENT) for defence, metric in rows]
        for name, found in columns.items()
    }
    return pd.DataFrame(cells, index=index)


def _cells(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    wanted = pd.MultiIndex.from_frame(table[["metric", "evaluator"]]).isin(SHOWN)
    rows = table[wanted & ((table["metric"] != "natural_accuracy") | (table["split"] == "test"))]
    return {
        (row.defence, NAMES[row.metric, row.evaluator]): (
            f"{show_number(row.value, row.metric)} {show_interval(row.low, row.high, row.metric)}"
        )
        for row in summarise(rows, headline=False).itertuples()
    }


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """What :func:`lib.plots.attack_bars` takes: AttAcc by every evaluator, the verifier's match rate."""
    rows = summarise(table, headline=False)
    top1 = (rows["metric"] == "attack_accuracy_top1") & (rows["evaluator"] != "panel_unanimous")
    return rows[top1 | (rows["metric"] == "verifier_match")].reset_index(drop=True)


def chance(attacks: Sequence[Attack]) -> float:
    """Of guessing the person."""
    return 1 / attacks[0].target().model.num_classes


def differences(book: Workbook) -> dict[str, Interval]:
    """Judge -> how much less the last model leaks than the first (a fraction), paired by person, from the saved
    values of this page; empty with one model."""
    first, last = book.defences[0], book.defences[-1]
    if first == last:
        return {}
    table = results.load_identities(f"{book.setup.name}__*", folder=results.output_dir(book.setup.name))
    table = table[(table["budget"] == BUDGET) & (table["evaluator"] != "panel_unanimous")]
    table = table[table["metric"].isin(["attack_accuracy_top1", "verifier_match"])]
    found = {}
    for judge in [name for name in EVALUATORS if name in set(table["evaluator"])]:
        rows = table[table["evaluator"] == judge]
        leaks = (book.per_identity(rows, rows["metric"].iloc[0], judge, name) for name in (first, last))
        found[judge] = statistics.compare_paired(*leaks, seed=measures.SEED).difference
    return found


def bars_title(book: Workbook, found: dict[str, Interval]) -> str:
    """The finding of the bars: by how many judges the last model leaks measurably less, or more."""
    if not book.conclusive:
        return "Too small to conclude"
    if not found:
        return f"{label(book.defences[0])} leaks faces"
    less, more = (
        sum(side(d) for d in found.values()) for side in (lambda d: d.low > 0, lambda d: d.high < 0)
    )
    return f"{label(book.defences[-1])} leaks less by {less} of {len(found)} judges, more by {more}"


def differences_sentence(book: Workbook, found: dict[str, Interval]) -> str:
    """The paired differences, judge by judge."""
    if not found:
        return "One model only: nothing to compare."
    parts = "; ".join(f"{EVALUATORS[judge].label} {points(found[judge])}" for judge in found)
    first, last = label(book.defences[0]), label(book.defences[-1])
    small = "" if book.conclusive else " **Too small to conclude.**"
    return f"{first} minus {last}, paired by person, 95 % intervals: {parts}.{small}"


def bars_caption(book: Workbook, rows: pd.DataFrame) -> str:
    """What the bars are of."""
    images = book.attack(book.defences[0], budget=BUDGET).values["keep"]
    small = "" if book.conclusive else " Too small to conclude."
    return (
        f"Preset {book.setup.name}, budget {BUDGET}: {rows['n'].max()} people, {images} reconstructions each, "
        f"one training seed and one attack seed; 95 % intervals over people; dotted: chance.{small}"
    )


def beats_start(book: Workbook, table: pd.DataFrame) -> bool:
    """Whether every model's reconstructions beat the prior samples they started from, by the main evaluator."""
    curves = results.load_curves("prior-samples__*", folder=results.output_dir(book.setup.name))
    curves = curves[(curves["setup"] == book.setup.name) & (curves["budget"] == BUDGET)].assign(split="")
    pairs = [(_value(curves, name, *SHOWN[1]), _value(table, name, *SHOWN[1])) for name in book.defences]
    return all(before < after for before, after in pairs)


def beats_guessing(book: Workbook, table: pd.DataFrame, attacks: Sequence[Attack]) -> bool:
    """Whether the verifier finds the person in every model's reconstructions more often than by guessing."""
    return all(_value(table, defence, *SHOWN[4]) > chance(attacks) for defence in book.defences)


def recognises(book: Workbook, table: pd.DataFrame, attacks: Sequence[Attack]) -> bool:
    """Whether every model recognises unseen photos more often than a guess would, several times over."""
    return all(_value(table, defence, *SHOWN[0]) > 3 * chance(attacks) for defence in book.defences)


def _value(table: pd.DataFrame, defence: str, metric: str, evaluator: str) -> float:
    rows = table[
        (table["defence"] == defence) & (table["metric"] == metric) & (table["evaluator"] == evaluator)
    ]
    return float(rows[rows["split"].isin(["", "test"])]["value"].mean())


def finding(book: Workbook, table: pd.DataFrame, study: pd.DataFrame) -> str:
    """What the page shows in words, and what it does not."""
    people = int(table["n"].max())
    parts = []
    for defence in book.defences:
        right, leak, known = (
            show_number(_value(table, defence, metric, evaluator), metric)
            for metric, evaluator in (SHOWN[0], SHOWN[1], SHOWN[3])
        )
        parts.append(
            f"**{label(defence)}** recognises {right} of unseen photos; the main evaluator takes {leak} of its "
            f"reconstructions for the person, the verifier, which never saw these people, {known}"
        )
    text = f"Preset {book.setup.name}, {people} people, budget {BUDGET}. {'; '.join(parts)}."
    if not book.conclusive:
        return f"{text} **Too small to conclude.**"
    text += " A quick attack on one training seed is a demonstration: it says that faces leak, not how much."
    if study.empty:
        return f"{text} The study's numbers are {ABSENT}; `make run SETUP={book.setup.name}` makes them."
    seeds = study["training_seed"].nunique()
    return f"{text} What counts is the {COMMITTED} in the table, of {seeds} training seed(s)."
