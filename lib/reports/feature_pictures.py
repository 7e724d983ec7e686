"""Notebook 07 in pictures: what the plot functions take, computed from the feature sets of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib import features
from lib.features import FeatureSets
from lib.plots import label, order
from lib.reports.feature_report import FeatureReport
from lib.stages import inversion, measures
from lib.stages.exhibits import person_names

SHOWN = ("private_train", "private_erased", "reconstructions")
PEOPLE = 8  # told apart by colour, or shown in one t-SNE
PAIRS = (
    "private_held_out->private_train",
    "held_out_erased->private_train",
    "reconstructions->private_train",
    "reconstructions->private_erased",
    "prior_samples->private_train",
    "other_classes->private_train",
)


def pictured(report: FeatureReport, *, most: int = 2) -> list[tuple[str, str]]:
    """The (defence, law) pairs that are drawn: the first defences of the run that erase, NoDef before them under
    the first one's law."""
    erased = [name for name in order(report.book.defences) if name != "none"]
    law = report.law(erased[0]) if erased else report.law("none")
    return [("none", law), *((name, report.law(name)) for name in erased[: most - 1])]


def people_of(report: FeatureReport) -> list[int]:
    """At most :data:`PEOPLE` classes, evenly spaced."""
    classes = len(report.book.world.train.names)
    return [int(k) for k in torch.linspace(0, classes - 1, min(PEOPLE, classes)).round()]


def _one_draw(sets: FeatureSets, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One row a photo: the first erasing draw."""
    rows = len(sets.sets["private_train"][0]) if name == "private_erased" else None
    return tuple(part[:rows] for part in sets.sets[name])


def pca(report: FeatureReport) -> dict[str, Any]:
    """Arguments of :func:`lib.plots.pca_panels`: one plane a network, fitted on equally many rows of each shown
    set; hulls of equally many points."""
    panels, hulls, explained = {}, {}, {}
    for defence, law in pictured(report):
        shown = {name: _one_draw(report.sets[defence, law], name)[0] for name in SHOWN}
        size = min(map(len, shown.values()))
        plane = features.pca2(*shown.values(), seed=measures.SEED)
        points = plane.apply_all(shown)
        panels[label(defence)] = points
        hulls[label(defence)] = {
            name: features.hull(part, size=size, seed=measures.SEED) for name, part in points.items()
        }
        explained[label(defence)] = plane.explained
    return {"panels": panels, "hulls": hulls, "explained": explained, "share_axes": False}


def pca_title(table: pd.DataFrame) -> str:
    """The overlaps of :func:`hull_table`, in a line."""
    parts = [
        f"{model} {row['with private train'].split()[0]} and {row['with private erased'].split()[0]}"
        for model, row in table.iterrows()
    ]
    return f"Overlap of reconstructions with private and with erased: {'; '.join(parts)}"


def class_title(report: FeatureReport) -> str:
    """How often the nearest class mean is right, in a line."""
    rows = report.separation[report.separation["measure"] == "ncm_accuracy"]
    means = rows.groupby("defence")["value"].mean()
    parts = [f"{label(name)} {100 * means[name]:.0f} %" for name, _ in pictured(report)]
    return f"The nearest class mean is the right one for unseen photos: {', '.join(parts)}"


def distance_title(frame: pd.DataFrame) -> str:
    """How far from private photos the median reconstruction lies, an unseen photo being 1, in two lines."""
    middle = frame.pivot_table(index="defence", columns="pair", values="value", aggfunc="median")
    ratio = middle["reconstructions->private_train"] / middle["private_held_out->private_train"]
    parts = [f"{label(name)} {ratio[name]:.1f}" for name in order(frame["defence"])]
    return (
        "Reconstruction to private photos, times the distance of an unseen photo,\n"
        f"median person: {', '.join(parts)}"
    )


def hull_table(report: FeatureReport) -> pd.DataFrame:
    """Overlap of the reconstructions' hull with that of private and of erased features in the PCA plane, size-
    matched, beside what two halves of the private features give; median [2.5 %, 97.5 %] of the draws."""
    rows = []
    pictures = pca(report)["panels"]
    for panel, points in pictures.items():
        size = min(*map(len, points.values()), len(points["private_train"]) // 2)
        cells = {
            f"with {reference.replace('_', ' ')}": features.hull_overlap(
                points["reconstructions"], points[reference], size=size, trim=1.0, seed=measures.SEED
            )
            for reference in ("private_train", "private_erased")
        }
        cells["null: private with private"] = features.split_half_overlap(
            points["private_train"], size=size, trim=1.0, seed=measures.SEED
        )
        row: dict[str, Any] = {"model": panel, "points a set": size}
        for name, found in cells.items():
            low, middle, high = np.quantile(found.iou, (0.025, 0.5, 0.975))
            row[name] = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        rows.append(row)
    return pd.DataFrame(rows).set_index("model")


def tsne(report: FeatureReport, *, seeds: Sequence[int] = (0, 1), most: int = 60) -> dict[str, Any]:
    """Embeddings for :func:`lib.plots.tsne_panels`, one network at a time, at most ``most`` rows of each set of
    the shown people: ``{"NoDef, seed 0": ...}``."""
    people = people_of(report)
    found = {}
    for defence, law in pictured(report):
        chosen = {}
        for name in SHOWN:
            rows, owner = _one_draw(report.sets[defence, law], name)
            rows = rows[np.isin(owner, people)]
            picked = np.random.default_rng(measures.SEED).permutation(len(rows))[: most * len(people) // 4]
            chosen[name] = rows[picked]
        for seed, points in features.tsne(chosen, seeds=seeds).items():
            found[f"{label(defence)}, seed {seed}"] = points
    return found


def class_maps(report: FeatureReport) -> dict[str, Any]:
    """Arguments of :func:`lib.plots.class_map`: unseen photos of the shown people on two discriminant axes of
    their training photos, which stay faint behind."""
    people = people_of(report)
    panels, background = {}, {}
    for defence, law in pictured(report):
        sets = report.sets[defence, law]
        train, test = (_of(sets, name, people) for name in ("private_train", "private_held_out"))
        plane = features.lda2(*train)
        panels[label(defence)] = plane.apply(test[0]), test[1]
        background[label(defence)] = plane.apply(train[0]), train[1]
    names = dict(zip(people, person_names(report.book.world.train.names, people), strict=True))
    return {"panels": panels, "background": background, "names": names}


def _of(sets: FeatureSets, name: str, people: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    rows, owner = sets.sets[name]
    return rows[np.isin(owner, people)], owner[np.isin(owner, people)]


def distance_frame(report: FeatureReport) -> pd.DataFrame:
    """KNN distance per identity for :func:`lib.plots.distance_distributions`, of the pictured models."""
    rows = report.distances[report.distances["measure"] == "knn_distance"]
    rows = rows[rows["pair"].isin(PAIRS)]
    parts = [rows[(rows["defence"] == name) & (rows["law"] == law)] for name, law in pictured(report)]
    keys = ["defence", "pair", "identity"]
    return pd.concat(parts).groupby(keys, sort=False, as_index=False)["value"].mean()


def two_spaces(report: FeatureReport) -> pd.DataFrame:
    """Where reconstructions lie in the target's features and in the verifier's: shares of the four cases, a row
    a model (first training seed).

    Near: nearer to the person's private photos than half of the strangers' photos are wide of them, that is,
    below the midpoint of unseen photo and stranger. Near in the target only is success on the target alone.
    """
    rows = []
    book = report.book
    for defence in order(book.defences):
        found = inversion_distances(book, defence)
        near = {network: d.reconstruction < (d.unseen + d.stranger) / 2 for network, d in found.items()}
        both = near["target"] & near["verifier"]
        rows.append(
            {
                "defence": label(defence),
                "near in both": float(both.double().mean()),
                "near in the target only": float((near["target"] & ~near["verifier"]).double().mean()),
                "near for the verifier only": float((near["verifier"] & ~near["target"]).double().mean()),
                "near in neither": float((~near["target"] & ~near["verifier"]).double().mean()),
            }
        )
    return pd.DataFrame(rows).set_index("defence")


def inversion_distances(book: Any, defence: str) -> dict[str, Any]:
    """:class:`lib.evaluation.KnnDistances` in the target's and in the verifier's features."""
    attack = book.attack(defence)
    seen, made = inversion.judge_reconstructions(attack)["reconstructions"], inversion.reconstruct(attack)
    kept = measures.take(seen, measures.kept_index(made.selected, made.latents.shape[1]))
    return measures.knn_distances(attack, kept, ("target", "verifier"))
