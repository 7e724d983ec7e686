"""Notebook 05: what the attack had and spent, whether it works, and the faces it found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from lib import attacks, evaluation, statistics
from lib.plots import label
from lib.reports.tables import points
from lib.reports.workbook import Workbook
from lib.stages import gallery, inversion, measures
from lib.stages.exhibits import by_person, person_names, shown_people, shown_photos
from lib.stages.inversion import Attack, Judged
from lib.statistics import Interval

BEST = 3  # reconstructions shown per person and model


def attack_card(book: Workbook, attack: Attack) -> pd.DataFrame:
    """What the attacker has and spends, one row a fact."""
    made = inversion.reconstruct(attack)
    budget = attacks.get(attack.attack).budget(**attack.values)
    people, candidates, width = made.latents.shape
    facts: dict[str, Any] = {
        "attack": f"{attack.attack}, white box: gradients of the target",
        "target": f"{label(attack.defence)}, {attack.target().steps} steps, seed {attack.training_seed}",
        "prior": f"{attack.prior}, {width} latent values, made from public images only",
        "people": people,
        "candidates per person": f"{candidates}, of which {made.selected.shape[1]} are kept by the target",
        "optimisation": f"{budget.steps} steps of Adam, learning rate {budget.learning_rate:g}",
        "selection": f"mean confidence over {budget.views} random views",
        "images through the target, per person": round(made.cost["target_forward"]),
        "gradients through the target, per person": round(made.cost["target_backward"]),
    }
    if attack.attack == "ppa":
        facts["candidates"] = f"the best of {budget.pool} prior samples, in the target's eyes"
    return pd.DataFrame({"value": facts.values()}, index=pd.Index(facts, name=f"budget {attack.budget}"))


def history(attacks_: Sequence[Attack]) -> pd.DataFrame:
    """Mean loss and target confidence over the optimisation, a row a step and model."""
    parts = [pd.DataFrame(inversion.reconstruct(a).history).assign(defence=a.defence) for a in attacks_]
    return pd.concat(parts, ignore_index=True).rename(columns={"step": "optimisation_step"})


# --- does it work? ------------------------------------------------------------------------------------


def sanity(book: Workbook, attack: Attack) -> pd.DataFrame:
    """Reconstructions against the prior samples they started from, by every judge.

    Columns judge, metric, ``prior_samples``, ``reconstructions``, ``gain`` (paired by identity) and
    ``unseen_photo`` (the same judge on unseen photos of the private people), each an Interval.
    """
    judged, made = inversion.judge_reconstructions(attack), inversion.reconstruct(attack)
    kept = measures.kept_index(made.selected, made.latents.shape[1])
    answers = [
        _answers(book, measures.take(judged[name], kept)) for name in ("prior_samples", "reconstructions")
    ]
    labels = judged["reconstructions"].labels[kept]
    of_photos = {
        (row["evaluator"], row["metric"].replace("evaluator_accuracy", "top-1")): Interval(
            row["value"], row["low"], row["high"], row["n"]
        )
        for row in measures.evaluator_rows(book.setup)
    }
    rows = []
    for judge, metric in answers[0]:
        before, after = (part[judge, metric] for part in answers)
        means = [evaluation.identity_means(part.double(), labels).mean.numpy() for part in (after, before)]
        rows.append(
            {
                "judge": judge,
                "metric": metric.replace("_", " "),
                "prior_samples": statistics.clustered_mean(before.double(), labels, seed=measures.SEED),
                "reconstructions": statistics.clustered_mean(after.double(), labels, seed=measures.SEED),
                "gain": statistics.compare_paired(*means, seed=measures.SEED).difference,
                "unseen_photo": of_photos[judge, metric],
            }
        )
    return pd.DataFrame(rows)


def _answers(book: Workbook, seen: Judged) -> dict[tuple[str, str], torch.Tensor]:
    """(judge, metric) -> (N,) bool."""
    found = measures.accuracy_hits(book.setup, seen)
    hits = {(judge, "top-1"): right["top1"] for judge, right in found.items() if judge != "panel_unanimous"}
    verdicts = gallery.of_setup(book.setup).verdicts(seen.features["verifier"], seen.labels)
    return {**hits, **{("verifier", metric): right for metric, right in verdicts.items()}}


def sanity_sentence(book: Workbook, table: pd.DataFrame) -> str:
    """Whether the attack may be used to judge defences, in words computed from :func:`sanity`."""
    parts = []
    for judge, metric in (("main", "top-1"), ("verifier", "verifier match")):
        row = table[(table.judge == judge) & (table.metric == metric)].iloc[0]
        parts.append(
            f"{judge} evaluator ({metric}): {row.reconstructions.percent()}, prior samples "
            f"{row.prior_samples.percent()}, gain {points(row.gain)}, unseen photos {row.unseen_photo.percent()}"
        )
        parts[-1] = parts[-1].replace("verifier evaluator", "verifier")
    text = f"Preset {book.setup.name}, NoDef. " + "; ".join(parts) + ". "
    if not book.conclusive:
        return text + "**Too small to conclude**: this shows the chain, not a strength."
    judged = table[table.judge.isin(["main", "verifier"])]
    beaten = all(interval.low > 0 for interval in judged["gain"])
    return text + (
        "**The attack beats its prior samples by every interval**: what follows measures defences."
        if beaten
        else "**The attack does not clearly beat prior samples**: read no defence's score as protection."
    )


# --- faces --------------------------------------------------------------------------------------------


def faces(book: Workbook, defences: Sequence[str], *, best: int = BEST) -> dict[str, Any]:
    """Arguments of :func:`lib.plots.side_by_side`: the shown people's two photos and, per model, their best
    reconstructions in the target's order, marked by the main evaluator."""
    people = shown_people(len(book.world.train.names))
    reconstructed, marks = {}, {}
    for defence in defences:
        attack = book.attack(defence)
        made = inversion.reconstruct(attack)
        best = min(best, made.selected.shape[1])
        images = inversion.pictures(attack, people, made.selected[people, :best])
        seen = inversion.judge_reconstructions(attack)["reconstructions"]
        right = evaluation.hits(seen.logits["main"], seen.labels).view(len(made.labels), -1)
        name = label(defence)
        reconstructed[name] = list(images)
        marks[name] = right.gather(1, made.selected)[people, :best].tolist()
    return {
        "private": by_person(shown_photos(book.world)),
        "reconstructed": reconstructed,
        "people": person_names(book.world.train.names, people),
        "marks": marks,
    }


def journeys(book: Workbook, attack: Attack) -> dict[str, torch.Tensor]:
    """The best reconstruction of each shown person before and after the optimisation."""
    people = shown_people(len(book.world.train.names))
    made = inversion.reconstruct(attack)
    first = made.selected[people, 0]
    return {
        "prior sample": inversion.starting_pictures(attack, made.initial[people, first][:, None])[:, 0],
        f"after {attack.attack.upper()}": inversion.pictures(attack, people, first[:, None])[:, 0],
    }


def faces_caption(book: Workbook, shown: dict[str, Any]) -> str:
    """How many of the shown reconstructions the main evaluator takes for the person, per model."""
    parts = [
        f"{name}: {sum(map(sum, frames))} of {sum(map(len, frames))}"
        for name, frames in shown["marks"].items()
    ]
    return (
        f"{len(shown['people'])} people, evenly spaced over the private ones, first two training photos; best "
        f"reconstructions in the target's own order. Taken for the person by the main evaluator: "
        f"{'; '.join(parts)}."
    )
