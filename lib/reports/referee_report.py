"""Notebook 17: the referee's verdict on stored attacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lib import attacks, evaluation, results, statistics, store
from lib.attacks.referee import Diagnostic, Entry, Evidence, Member, Verdict, choose, judge, plain_confidence
from lib.attacks.referee.ensemble import VIEWS
from lib.attacks.referee.flags import Curve
from lib.defences import acted, build, canonical
from lib.defences.names import Overrides
from lib.errors import UserError
from lib.plots import label
from lib.reports import sweep
from lib.reports.attack_growth import constants
from lib.reports.budget import curve_attacks
from lib.reports.made import made
from lib.reports.tables import points
from lib.reports.workbook import Workbook
from lib.runtime import device
from lib.stages import inversion, measures, records, success, targets
from lib.stages.inversion import Attack
from lib.stages.success import Outcome
from lib.statistics import Interval
from lib.store import Stage

LOOKS = 16  # px


def runs(book: Workbook) -> list[Attack]:
    """The ensemble of the study on the models that it is to judge; on no model a part of it."""
    listed = book.listed_attacks(book.study.referee, book.study.referee_defences, book.study.referee_seeds)
    there = made(book, listed)
    whole = Counter(run.defence for run in listed)
    counted = Counter(run.defence for run in there)
    return [run for run in there if counted[run.defence] == whole[run.defence]]


def verdicts(book: Workbook) -> dict[str, Verdict]:
    """The referee's verdict on every compared model of the run."""
    found = runs(book)
    if not found:
        raise UserError(
            f"referee: expected a model with the whole ensemble ({', '.join(book.study.referee)}), got none; make them "
            f"with `python -m lib.run batch {book.setup.name}`, or add such a model to `defences`"
        )
    models = dict.fromkeys(run.defence for run in found)
    return {model: judge(evidence(book, [run for run in found if run.defence == model])) for model in models}


def evidence(book: Workbook, members: list[Attack]) -> Evidence:
    """What the store knows of one model's ensemble."""
    setup, answers = book.setup, records.answers_of(members[0])
    records_of = {member(run): _seen(run) for run in members}  # first: a new one renews what the judges said
    found = {member(outcome.attack): outcome for outcome in success.measure(members)}
    for one, outcome in found.items():
        if outcome.of != records_of[one].meta.get("of"):
            raise UserError(
                f"referee: expected records of the same images, but what the target and what the judges say of "
                f"{one.label} on {label(outcome.attack.defence)} were made of two runs of it; remove both files "
                f"({stage(outcome.attack).stem}.*, {success.stage(outcome.attack).stem}.*) from the records and run "
                f"`python -m lib.run batch {setup.name}`"
            )
    seen = {one: record.tensors for one, record in records_of.items()}
    main = next(iter(setup.evaluators))
    judged = inversion.judge_photos(setup, targets.judge(setup, main), main)["test"]
    return Evidence(
        {
            member: Entry(seen[member]["looks"].float() / 255, outcome.history, _descent(outcome.attack))
            for member, outcome in found.items()
        },
        choose({member: parts["confidence"] for member, parts in seen.items()}),
        {
            role: {member: outcome.hits[role] for member, outcome in found.items()}
            for role in setup.evaluators
        },
        {member: outcome.hits[success.VERIFIER] for member, outcome in found.items()},
        {member: outcome.before[success.VERIFIER] for member, outcome in found.items()},
        answers.right["test"],
        evaluation.hits(judged.logits[main], judged.labels),
        answers.labels["test"],
        _curves(book, members),
        diagnostic(members[0].defence, answers.training, setup.defences),
        _adapted(members[0].defence, answers.training, setup.defences),
    )


def confidence(attack: Attack) -> Tensor:
    """(K, m): what the target says of an attack's reconstructions through the referee's views."""
    return _seen(attack).tensors["confidence"]


def _seen(attack: Attack) -> store.Artifact:
    """``confidence`` (K, m), and ``looks`` (K, m, 3, s, s) uint8: the reconstructions, small, to see copies by; a
    record."""

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        made, model = inversion.reconstruct(attack), attack.target().model.to(device())
        images = inversion.pictures(attack, range(len(made.labels)), made.selected)
        found = plain_confidence(model, images, made.labels, seed=measures.SEED)
        looks = adaptive_avg_pool2d(images.flatten(0, 1), LOOKS).mul(255).round().byte()
        return {"confidence": found, "looks": looks.unflatten(0, images.shape[:2])}, {}

    return store.get(stage(attack), make, of=records.source(attack))


def stage(attack: Attack) -> Stage:
    """Of the record."""
    images = records.source(attack)
    params = {"setup": attack.setup.name, "seed": measures.SEED, "views": VIEWS, "looks": LOOKS}
    return Stage("refereed", f"{images.label}, refereed", params, (images.key,))


def member(attack: Attack) -> Member:
    """A run as the referee knows it."""
    return Member(attack.attack, attack.prior, attack.budget, attack.attack_seed)


def _descent(attack: Attack) -> tuple[float, float]:
    return attacks.get(attack.attack).budget(**attack.values).descent


def curve_runs(book: Workbook, models: Sequence[str] = ()) -> list[Attack]:
    """The ensemble's attacks under the other budgets that the study lists for its budget curves, of the same constants,
    on every compared model (or those given)."""
    members = set(map(_search, book.study.referee))
    lines = [line for line in book.study.curves if _search(line) in members]
    return book.listed_attacks(lines, models, book.compared_seeds[:1])


def _search(line: str) -> tuple[str, str]:
    attack, _, budget = line.rpartition(" ")
    return attack, constants(budget)


def _curves(book: Workbook, members: list[Attack]) -> dict[str, Curve]:
    """Every member under all its budgets that were run on this model, first attack seed, by equally many images."""
    model = members[0].defence
    first = [run for run in members if run.attack_seed == members[0].attack_seed]
    smaller = filter(success.is_there, [*curve_runs(book, [model]), *curve_attacks(book, model)])
    by_budget = {(member(run).search, run.budget): run for run in [*smaller, *first]}
    found: dict[str, list[Outcome]] = {}
    for (search, _), outcome in zip(by_budget, success.measure(list(by_budget.values())), strict=True):
        found.setdefault(search, []).append(outcome)
    return {
        search: [(one.passes, one.per_person(best=success.fewest(outcomes))) for one in outcomes]
        for search, outcomes in found.items()
    }


def diagnostic(defence: str, training: Mapping[str, Any], overrides: Overrides) -> Diagnostic:
    """What the parts of a defence recorded of themselves in training; NoDef has nothing to move."""
    recorded = training.get("diagnostics") or {}
    if not recorded:
        return Diagnostic("no defence", float("nan"), True)
    idle = [part for part, moved in acted(defence, training, overrides).items() if moved is False]
    (first, value), *_ = recorded.items()
    name = first.rpartition(".")[2].replace("_", " ")
    return Diagnostic(f"{name} ({', '.join(idle)} did not act)" if idle else name, float(value), not idle)


def _adapted(defence: str, training: Mapping[str, Any], overrides: Overrides) -> bool:
    """Whether the ingredients, which all address erasing, address every part of a defence; NoDef has none."""
    parts = build(defence, overrides) if training.get("diagnostics") else []
    return all(hasattr(part, "law") for part in parts)


def save(book: Workbook, found: Mapping[str, Verdict]) -> None:
    """The number of every model, and how many flags are not clear, as ``curves/<setup>__referee``."""
    rows, first = [], {run.defence: run for run in reversed(runs(book))}
    main, takes = next(iter(book.setup.evaluators)), protection(found)
    for model, verdict in found.items():
        doubts = float(sum(flag.state != "clear" for flag in verdict.flags))
        counted = Interval(doubts, doubts, doubts, len(verdict.flags))
        for metric, value, who in (
            ("attack_accuracy_top1", verdict.accuracy, main),
            ("flags", counted, ""),
            *([("privacy_gain", takes[model], main)] if model in takes else []),
        ):
            row = sweep.curve_row(first[model], "referee", value, metric=metric, evaluator=who)
            rows.append(
                row | {"attack": "referee", "prior": "ensemble", "budget": "ensemble", "attack_seed": None}
            )
    results.save_curves(rows, f"{book.setup.name}__referee", allow_missing={"attack_accuracy_top1"})


def protection(found: Mapping[str, Verdict]) -> dict[str, Interval]:
    """Of every model but NoDef what it takes from the ensemble: NoDef's number minus its own, paired by person; of none
    without NoDef."""
    if "none" not in found:
        return {}
    undefended = found["none"].right
    return {
        model: statistics.compare_paired(undefended, verdict.right, seed=measures.SEED).difference
        for model, verdict in found.items()
        if model != "none"
    }


def summary(found: dict[str, Verdict]) -> pd.DataFrame:
    """A row per model: the number with its interval, what the model takes of NoDef's, paired by person, whether it is
    established, and the flags raised."""
    rows, taken = [], protection(found)
    for model, verdict in found.items():
        raised = [flag.name for flag in verdict.flags if flag.state != "clear"]
        rows.append(
            {
                "model": label(model),
                "AttAcc of what the target likes best": verdict.accuracy.percent(),
                "NoDef minus model": points(taken[model]) if model in taken else "",
                "strongest member alone": _strongest(verdict),
                "verdict": verdict.outcome,
                "flags raised or open": "; ".join(raised) or "none",
            }
        )
    return pd.DataFrame(rows).set_index("model")


def _strongest(verdict: Verdict) -> str:
    row = verdict.members.sort_values("attack_accuracy").iloc[-1]
    return f"{100 * row.attack_accuracy:.1f} %, {row.name}"


def members(verdict: Verdict) -> pd.DataFrame:
    """Of every member alone: what it sees, the target's mean confidence through the referee's views, AttAcc of what the
    target likes best, and of how many people the choice among all members is its."""
    shares = {
        "target_confidence": "mean confidence of the target",
        "attack_accuracy": "AttAcc alone, main",
    }
    rows = verdict.members.rename(columns={**shares, "chosen": "people it is chosen for"})
    for name in shares.values():
        rows[name] = [f"{100 * value:.1f} %" for value in rows[name]]
    return rows


def not_judged(book: Workbook, found: Mapping[str, Verdict]) -> str:
    """Defences that have a page and were not put to the referee."""
    left = [label(name) for name in book.study.pages if canonical(name, book.setup.defences) not in found]
    return f"Not put to the referee: {', '.join(left)}." if left else ""


def flag_grid(found: dict[str, Verdict]) -> pd.DataFrame:
    """Flags in rows, models in columns: clear, raised or open."""
    columns = {label(model): {f.name: f.state for f in verdict.flags} for model, verdict in found.items()}
    return pd.DataFrame(columns).rename_axis("flag")


def findings(verdict: Verdict) -> pd.DataFrame:
    """What each flag measured, in words."""
    return verdict.table()[["state", "finding"]]


def doubts(found: dict[str, Verdict]) -> str:
    """What was measured for every flag of a model that is not clear, a block a model."""
    blocks = []
    for model, verdict in found.items():
        lines = [f"- {f.name} ({f.state}): {f.sentence}" for f in verdict.flags if f.state != "clear"]
        blocks.append("\n".join([f"**{label(model)}**", "", *(lines or ["- every flag is clear"])]))
    return "\n\n".join(blocks)


def _answer(found: Mapping[str, Verdict]) -> str:
    """Which numbers are to be believed, in a sentence."""
    kinds = {
        "established": [model for model, verdict in found.items() if verdict.established],
        "a floor, of which more may leak": [model for model, verdict in found.items() if verdict.is_floor],
    }
    kinds["doubtful"] = [model for model in found if model not in sum(kinds.values(), [])]
    parts = [f"{kind}: {', '.join(map(label, models)) or 'none'}" for kind, models in kinds.items()]
    return f"**Of {len(found)} numbers: {'; '.join(parts)}.**"


def what_we_saw(book: Workbook, found: dict[str, Verdict]) -> str:
    """The verdicts in words, and what every model takes of NoDef's number."""
    taken, text = protection(found), [_answer(found)] if book.conclusive else []
    for model, verdict in found.items():
        less = f" NoDef minus this: {points(taken[model])}, paired by person." if model in taken else ""
        text.append(f"{label(model)}: {verdict.sentence()}{less}")
    text += filter(None, [not_judged(book, found)])
    if not book.conclusive:
        text.append("**Too small to conclude.**")
    return "\n\n".join(text)
