"""Rows of results: what a trained target and an attack run are worth, each number with n and an interval."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib import evaluation, statistics, store
from lib.defences import canonical
from lib.setups import Setup, load_study
from lib.stages import gallery, inversion, records, targets
from lib.stages.gallery import Gallery
from lib.stages.inversion import Attack, Judged
from lib.stages.realism import kid_by_identity
from lib.statistics import Interval
from lib.store import Stage

SEED = 0  # of every bootstrap
Row = dict[str, Any]


# --- rows about a target ------------------------------------------------------------------------------


def steps_of(setup: Setup, defence: str, seed: int, multiple: float | None) -> int:
    """How long a target was trained; its network need not be there if its answers are."""
    known = records.answers if setup.has_photos else targets.target
    return known(setup, defence, seed, multiple).steps


def _common(setup: Setup, defence: str, seed: int, multiple: float | None) -> Row:
    best = multiple is None or multiple == targets.headline(setup, defence)
    return {
        "setup": setup.name,
        "defence": canonical(defence, setup.defences),
        "training_steps": steps_of(setup, defence, seed, multiple),
        "prior": "",
        "attack": "",
        "budget": "",
        "training_seed": seed,
        "attack_seed": None,
        "headline": int(best),
    }


def row(common: Row, metric: str, evaluator: str, split: str, interval: Interval) -> Row:
    return {
        **common,
        "metric": metric,
        "evaluator": evaluator,
        "split": split,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
    }


def target_rows(
    setup: Setup, defence: str, seed: int, multiple: float | None = None
) -> tuple[list[Row], list[Row]]:
    """(table rows, per-identity rows) about a target alone: natural accuracy on each split, micro, with an
    interval over identities, and its mean per identity on test photos."""
    common, found = _common(setup, defence, seed, multiple), records.answers(setup, defence, seed, multiple)
    rows = []
    for split, right in found.right.items():
        rows.append(row(common, "natural_accuracy", "", split, mean(right, found.labels[split], "micro")))
    labels = found.labels["test"]
    top5 = mean(found.right_top5["test"], labels, "micro")
    rows.append(row(common, "natural_accuracy_top5", "", "test", top5))
    return rows, per_identity(common, "natural_accuracy", "", found.right["test"], labels)


def evaluator_rows(setup: Setup) -> list[Row]:
    """The judges on photos: accuracy on unseen ones of the private people; for the verifier, matches
    of unseen photos at its false-accept rate and rank-1 among all private people."""
    rows, common = [], evaluator_common(setup)
    votes = []
    for role in setup.evaluators:
        test = inversion.judge_photos(setup, targets.judge(setup, role), role)["test"]
        right = evaluation.hits(test.logits[role], test.labels)
        votes.append(right)
        rows.append(row(common, "evaluator_accuracy", role, "test", mean(right, test.labels, "micro")))
    majority = evaluation.panel_vote(torch.stack(votes)).majority
    rows.append(
        row(common, "evaluator_accuracy", "panel_majority", "test", mean(majority, test.labels, "micro"))
    )
    return rows + photo_rows(common, gallery.of_setup(setup))


def evaluator_common(setup: Setup) -> Row:
    """What rows about a judge alone have in common."""
    run = ("training_steps", "training_seed", "attack_seed")
    names = ("defence", "prior", "attack", "budget")
    empty = dict.fromkeys(names, "") | dict.fromkeys(run)
    return {"setup": setup.name, **empty, "headline": 1}


def photo_rows(common: Row, enrolled: Gallery) -> list[Row]:
    """A verifier's verdicts of unseen photos, micro, the measure for those of reconstructions."""
    test = enrolled.photos["test"]
    verdicts = enrolled.verdicts(test.features[enrolled.verifier], test.labels)
    return [
        row(common, metric, enrolled.verifier, "test", mean(right, test.labels, "micro"))
        for metric, right in verdicts.items()
    ]


# --- rows about an attack -----------------------------------------------------------------------------


def attack_common(attack: Attack) -> Row:
    """What rows about an attack have in common; ``headline`` says whether it is one of the study's."""
    setup, study = attack.setup, load_study(attack.setup.name)
    common = _common(setup, attack.defence, attack.training_seed, attack.multiple)
    studied = attack.attack in study.attacks and (attack.prior, attack.budget) == (study.prior, study.budget)
    return common | {
        "prior": attack.prior,
        "attack": attack.attack,
        "budget": attack.budget,
        "attack_seed": attack.attack_seed,
        "headline": int(bool(common["headline"] and studied)),
    }


def as_baseline(rows: list[Row]) -> list[Row]:
    """Rows about prior samples as rows of ``curves/``."""
    curve = {"curve": "prior_samples", "x_name": "none", "x": 0.0}
    return [{**{k: v for k, v in found.items() if k != "headline"}, **curve} for found in rows]


def attack_rows(attack: Attack) -> tuple[list[Row], list[Row], list[Row]]:
    """(table rows, per-identity rows, baseline rows for ``curves/``) of one attack run; a record.

    Without private photos there are no judges: the rows are the target's own confidence.
    """
    found = store.get(
        measured_stage(attack),
        lambda _: ({"rows": records.pack(_attack_rows(attack))}, {}),
        of=records.source(attack),
    )
    common = attack_common(attack)  # a budget's name and the headline are in no key: they are the caller's
    rows, identities, baselines = (
        [{name: common.get(name, value) for name, value in row.items()} for row in part]
        for part in records.unpack(found.tensors["rows"])
    )
    return rows, identities, baselines


def measured_stage(attack: Attack) -> Stage:
    """Of the record of :func:`attack_rows`; its version says how things are measured."""
    return records.judged_stage("measured", attack, version=1)


def _attack_rows(attack: Attack) -> tuple[list[Row], list[Row], list[Row]]:
    setup, common = attack.setup, attack_common(attack)
    judged = inversion.judge_reconstructions(attack)
    made = inversion.reconstruct(attack)
    kept = kept_index(made.selected, made.latents.shape[1])
    rows: list[Row] = []
    identities: list[Row] = []

    everything, start = judged["reconstructions"], judged["prior_samples"]
    kept_seen, started = take(everything, kept), take(start, kept)
    for suffix, seen in (("", kept_seen), ("_unselected", everything)):
        for evaluator, right in accuracy_hits(setup, seen).items():
            for top, hit in right.items():
                if suffix and (top != "top1"):
                    continue
                metric = f"attack_accuracy_{top}{suffix}"
                rows.append(row(common, metric, evaluator, "", mean(hit, seen.labels)))
                if not suffix and top == "top1":
                    identities += per_identity(common, metric, evaluator, hit.float(), seen.labels)
    confidence = made.confidence.gather(1, made.selected).flatten()
    rows.append(row(common, "target_confidence", "target", "", mean(confidence, kept_seen.labels)))

    own = {"reconstructions": _own_probability(kept_seen), "prior_samples": _own_probability(started)}
    rows.append(
        row(common, "target_probability", "target", "", mean(own["reconstructions"], kept_seen.labels))
    )
    baselines = [row(common, "target_probability", "target", "", mean(own["prior_samples"], started.labels))]

    if setup.has_photos:
        enrolled = gallery.of_setup(setup)
        for metric, right in enrolled.verdicts(kept_seen.features["verifier"], kept_seen.labels).items():
            rows.append(row(common, metric, "verifier", "", mean(right, kept_seen.labels)))
            identities += per_identity(common, metric, "verifier", right.float(), kept_seen.labels)
        rows += _distance_rows(attack, common, kept_seen, identities)
        rows += _realism_rows(common, enrolled, kept_seen)
        for evaluator, right in accuracy_hits(setup, started).items():
            interval = mean(right["top1"], started.labels)
            baselines.append(row(common, "attack_accuracy_top1", evaluator, "", interval))
        for metric, right in enrolled.verdicts(started.features["verifier"], started.labels).items():
            baselines.append(row(common, metric, "verifier", "", mean(right, started.labels)))
    else:
        identities += per_identity(common, "target_confidence", "target", confidence, kept_seen.labels)
    return rows, identities, as_baseline(baselines)


def _own_probability(seen: Judged) -> Tensor:
    """(N,) the target's probability of the aimed class on the image as it is."""
    return seen.logits["target"].softmax(1).gather(1, seen.labels[:, None])[:, 0]


def kept_index(selected: Tensor, candidates: int) -> Tensor:
    """Flat indices (K m,) into identity-major candidates (K n,)."""
    return (selected + torch.arange(len(selected))[:, None] * candidates).flatten()


def accuracy_hits(setup: Setup, seen: Judged) -> dict[str, dict[str, Tensor]]:
    """evaluator -> top1 / top5 hits (N,); the panel's majority vote and unanimity have top1 only. Empty
    without private photos."""
    found: dict[str, dict[str, Tensor]] = {}
    if not setup.has_photos:
        return found
    for role in setup.evaluators:
        logits = seen.logits[role]
        found[role] = {
            "top1": evaluation.hits(logits, seen.labels),
            "top5": evaluation.hits(logits, seen.labels, k=min(5, logits.shape[1])),
        }
    vote = evaluation.panel_vote(torch.stack([found[role]["top1"] for role in setup.evaluators]))
    found["panel_majority"] = {"top1": vote.majority}
    found["panel_unanimous"] = {"top1": vote.all}
    return found


def knn_distances(attack: Attack, kept: Judged, roles: Iterable[str]) -> dict[str, evaluation.KnnDistances]:
    """Distances of kept reconstructions to private training photos, with both references, in the features of
    the ``target``, an evaluator or the ``verifier``."""
    distances = {}
    for role in roles:
        trained = attack.target() if role == "target" else targets.judge(attack.setup, role)
        photos = inversion.judge_photos(attack.setup, trained, role)
        distances[role] = evaluation.knn_distances(
            kept.features[role],
            kept.labels,
            references=photos["train"].features[role],
            reference_labels=photos["train"].labels,
            unseen=photos["test"].features[role],
            unseen_labels=photos["test"].labels,
        )
    return distances


def _distance_rows(attack: Attack, common: Row, kept: Judged, identities: list[Row]) -> list[Row]:
    """KNN distance and scaled leakage in the features of the target, the main evaluator and the verifier."""
    rows = []
    for role, found in knn_distances(attack, kept, ("target", "main", "verifier")).items():
        for metric, values in (
            ("knn_distance", found.reconstruction),
            ("knn_distance_unseen_photo", found.unseen),
            ("knn_distance_stranger", found.stranger),
        ):
            rows.append(row(common, metric, role, "", mean(values, found.identity)))
            identities += per_identity(common, metric, role, values, found.identity)
        columns = torch.stack([found.reconstruction, found.unseen, found.stranger], 1)[found.complete].numpy()
        leakage = Interval(np.nan, np.nan, np.nan, 0)
        if len(columns):
            leakage = statistics.clustered_statistic(columns, _leakage, seed=SEED)
        rows.append(row(common, "scaled_leakage", role, "", leakage))
    return rows


def _leakage(means: np.ndarray) -> np.ndarray:
    """(B,) of mean distances (B, 3): of reconstructions, unseen photos, strangers."""
    return evaluation.scaled_leakage(*torch.from_numpy(means).unbind(1)).numpy()


def _realism_rows(common: Row, enrolled: Gallery, kept: Judged) -> list[Row]:
    """KID and per-class precision, recall, density, coverage (where everybody has four images of each kind)
    against private training photos, in the verifier's features (how natural images are, not how identifying)."""
    train = enrolled.photos["train"]
    rows = [
        row(
            common,
            "kid",
            "verifier",
            "",
            kid_by_identity(kept.features["verifier"], kept.labels, train.features["verifier"], train.labels),
        )
    ]
    smallest = min(int(torch.bincount(seen.labels).min()) for seen in (kept, train))
    if smallest > 3:  # else there is no fourth neighbour
        classes = evaluation.prdc_per_class(
            train.features["verifier"], train.labels, kept.features["verifier"], kept.labels
        )
        for metric in ("precision", "recall", "density", "coverage"):
            values = torch.tensor([getattr(found, metric) for found in classes.values()])
            rows.append(row(common, metric, "verifier", "", mean(values, torch.tensor(list(classes)))))
    return rows


# --- helpers ------------------------------------------------------------------------------------------


def mean(values: Tensor, identity: Tensor, average: str = "macro") -> Interval:
    return statistics.clustered_mean(values.double(), identity, seed=SEED, average=average)


def per_identity(common: Row, metric: str, evaluator: str, values: Tensor, identity: Tensor) -> list[Row]:
    means = evaluation.identity_means(values.double(), identity)
    base = {key: value for key, value in common.items() if key != "headline"}
    return [
        {**base, "metric": metric, "evaluator": evaluator, "identity": int(k), "value": float(v), "n": int(n)}
        for k, v, n in zip(means.identity, means.mean, means.count, strict=True)
    ]


def take(seen: Judged, index: Tensor) -> Judged:
    return Judged(
        {role: part[index] for role, part in seen.features.items()},
        {role: part[index] for role, part in seen.logits.items()},
        seen.labels[index],
    )


def flatten(parts: Iterable[tuple[list[Row], ...]]) -> list[list[Row]]:
    """Concatenate the row lists of several runs, kind by kind."""
    return [sum(kind, []) for kind in zip(*parts, strict=True)]
