"""Notebook 17: the referee's verdict on stored attacks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lib import evaluation
from lib.attacks.referee import Diagnostic, Entry, Evidence, Member, Verdict, combine, judge
from lib.plots import label
from lib.run import inversion, measures, success, targets
from lib.run.budget import curve_attacks
from lib.run.inversion import Attack
from lib.run.workbook import Workbook
from lib.runtime import device


def runs(book: Workbook) -> list[Attack]:
    """The ensemble of the study on its compared models."""
    return book.listed_attacks(book.study.referee)


def verdicts(book: Workbook) -> dict[str, Verdict]:
    """The referee's verdict on every compared model of the run."""
    found = runs(book)
    models = dict.fromkeys(run.defence for run in found)
    return {model: judge(evidence(book, [run for run in found if run.defence == model])) for model in models}


def evidence(book: Workbook, members: list[Attack]) -> Evidence:
    """What the store knows of one model's ensemble."""
    setup, trained = book.setup, members[0].target()
    entries, hits, matches, before = {}, {role: {} for role in setup.evaluators}, {}, {}
    for attack in members:
        member = Member(attack.attack, attack.prior, attack.budget, attack.attack_seed)
        made = inversion.reconstruct(attack)
        people = range(len(made.labels))
        entries[member] = Entry(inversion.pictures(attack, people, made.selected), made.history)
        shape = made.selected.shape
        for role in setup.evaluators:
            hits[role][member] = _hits(attack, role).view(shape)
        matches[member] = success.right(attack, "verifier")[0].view(shape)
        before[member] = success.right(attack, "verifier", "prior_samples")[0].view(shape)
        labels = made.labels
    chosen = combine(trained.model.to(device()), entries, labels, seed=measures.SEED)
    main = next(iter(setup.evaluators))
    photos = inversion.judge_photos(setup, trained, "target")["test"]
    judged = inversion.judge_photos(setup, targets.judge(setup, main), main)["test"]
    return Evidence(
        entries,
        chosen,
        hits,
        matches,
        before,
        evaluation.hits(photos.logits["target"], photos.labels),
        evaluation.hits(judged.logits[main], judged.labels),
        photos.labels,
        _curve(book, members[0].defence),
        diagnostic(trained),
    )


def _hits(attack: Attack, role: str):
    made = inversion.reconstruct(attack)
    seen = inversion.judge_reconstructions(attack)["reconstructions"]
    kept = measures.kept_index(made.selected, made.latents.shape[1])
    return evaluation.hits(seen.logits[role][kept], seen.labels[kept])


def _curve(book: Workbook, defence: str) -> list[tuple[float, np.ndarray]]:
    """The study's first attack under every budget that was run on this model."""
    made = [attack for attack in curve_attacks(book, defence) if measures.is_made(attack)]
    return [(success.passes([attack]), success.per_person(attack)) for attack in made]


def diagnostic(trained: targets.Trained) -> Diagnostic:
    """What the defence recorded of itself in training; NoDef has nothing to move."""
    recorded = trained.meta.get("diagnostics") or {}
    if not recorded:
        return Diagnostic("no defence", float("nan"), True)
    name, value = next(iter(recorded.items()))
    return Diagnostic(name.rpartition(".")[2].replace("_", " "), float(value), bool(value > 0))


def summary(found: dict[str, Verdict]) -> pd.DataFrame:
    """A row per model: the number with its interval, whether it is established, and the flags raised."""
    rows = []
    for model, verdict in found.items():
        raised = [flag.name for flag in verdict.flags if flag.state != "clear"]
        rows.append(
            {
                "model": label(model),
                "best of the ensemble": verdict.accuracy.percent(),
                "verdict": "established" if verdict.established else "not established",
                "flags raised or not checked": "; ".join(raised) or "none",
            }
        )
    return pd.DataFrame(rows).set_index("model")


def flag_grid(found: dict[str, Verdict]) -> pd.DataFrame:
    """Flags in rows, models in columns: clear, raised or not checked."""
    columns = {label(model): {f.name: f.state for f in verdict.flags} for model, verdict in found.items()}
    return pd.DataFrame(columns).rename_axis("flag")


def findings(verdict: Verdict) -> pd.DataFrame:
    """What each flag measured, in words."""
    return verdict.table()[["state", "finding"]]


def all_findings(found: dict[str, Verdict]) -> pd.DataFrame:
    """Flags in rows, what was measured on every model in columns."""
    return pd.DataFrame({label(model): verdict.table()["finding"] for model, verdict in found.items()})


def what_we_saw(book: Workbook, found: dict[str, Verdict]) -> str:
    """The verdicts in words."""
    text = [f"{label(model)}: {verdict.sentence()}" for model, verdict in found.items()]
    if not book.setup.conclusive:
        text.append("**Too small to conclude.**")
    return "\n\n".join(text)
