"""Notebook 07: do reconstructions move away from private and towards erased features, and do private classes
stay separated? Numbers of every model with intervals over identities, and words computed from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from lib import features, plots, results, statistics
from lib.defences import build
from lib.errors import UserError
from lib.features import FeatureSets
from lib.models.classifier import Cosine
from lib.plots import label
from lib.reports.budget import curve_attacks
from lib.reports.feature_sets import feature_sets
from lib.reports.made import made
from lib.reports.workbook import Workbook
from lib.stages import inversion, measures, success
from lib.statistics import Interval

PRIMARY = {"towards": "nearest_set_vote", "away": "knn_distance", "separated": "logit_margin"}
"""The measure that answers each question, stated before looking; the others show how robust the answer is."""
SHIFTS = ("squared_shift", "squared_mahalanobis_shift")
"""Squared, in units of the private within-class spread, and 0 for unseen photos: these are no scale for them."""
AWAY = ("knn_distance", *SHIFTS)  # a ratio needs distances that are clearly positive on average
LOWER_IS_BETTER = ("davies_bouldin", "neighbour_ratio")
CLAIMS = {
    "towards": "nearer to erased than to clean",
    "towards_more": "more so than under NoDef",
    "away": "farther from private than under NoDef",
    "away_more": "farther than NoDef under the weaker attack",
}
"""The claims about distances, as they are printed."""
MEASURES = {
    "mmd2": "squared MMD",
    "knn_distance": "KNN distance",
    "squared_shift": "squared mean shift",
    "squared_mahalanobis_shift": "squared Mahalanobis shift",
    "nearest_set_vote": "nearest-set vote",
}
DEFAULT_LAW = "re(0.1,0.4)"
VOTE = "reconstructions->erased_or_private"


def law_of(book: Workbook, defence: str) -> str:
    """Whose erasing makes the erased photos of a model: its own, else that of the run's first RE."""
    for name in (defence, *book.defences):
        made = build(name, book.setup.defences)
        if len(made) == 1 and hasattr(made[0], "law"):
            return name
    return DEFAULT_LAW


def erasing_defences(book: Workbook) -> list[str]:
    """The defences of the run that erase, in its order."""
    return [name for name in book.defences if name != "none" and law_of(book, name) == name]


@dataclass(frozen=True)
class FeatureReport:
    """Everything of notebook 07 in numbers.

    Attributes:
        sets: (defence, law) -> the feature sets of the first training seed, for pictures. The law names the
            defence whose erasing made the erased photos: NoDef is looked at under every law of the run.
        distances: :func:`lib.features.distance_table` of every model, with columns law and training_seed.
        separation: :func:`lib.features.separation_table`, with training_seed.
        control: distances of NoDef under the weakest budget of the setup: what a weaker attack alone does; empty if
            there is one budget.
    """

    book: Workbook
    sets: dict[tuple[str, str], FeatureSets]
    distances: pd.DataFrame
    separation: pd.DataFrame
    control: pd.DataFrame

    def law(self, defence: str) -> str:
        return law_of(self.book, defence)


def feature_report(book: Workbook) -> FeatureReport:
    """Measure every model of the run on every training seed, and save its rows; of a partial book those that are
    there, on the training seeds that all of them have."""
    book = _there(book)
    if not set(book.defences) - {"none"}:
        raise UserError("feature space: expected a defence besides none to compare with; add one to defences")
    laws = erasing_defences(book) or [DEFAULT_LAW]
    models = [(name, law_of(book, name)) for name in book.defences if name != "none"]
    models += [("none", law) for law in laws]
    weakest, *stronger = curve_attacks(book)
    sets, distances, separation, control = {}, [], [], []
    for seed in book.training_seeds:
        if stronger:
            weaker = feature_sets(book, "none", erased_like=laws[0], seed=seed, budget=weakest.budget)
            table = features.distance_table(weaker, defence="none")
            control.append(table.assign(law=laws[0], training_seed=seed))
        for defence, law in models:
            found = feature_sets(book, defence, erased_like=law, seed=seed)
            sets.setdefault((defence, law), found)
            table = features.distance_table(found, defence=defence)
            distances.append(table.assign(law=law, training_seed=seed))
        for defence in dict.fromkeys(name for name, _ in models):
            separation.append(_separation(book, defence, seed).assign(training_seed=seed))
    parts = (distances, separation, control)
    tables = (pd.concat(part, ignore_index=True) if part else pd.DataFrame() for part in parts)
    report = FeatureReport(book, sets, *tables)
    _save(report)
    return report


def _there(book: Workbook) -> Workbook:
    """The book of what is made: the models with a network and reconstructions of it under the first training seed."""
    listed = [book.attack(name, seed) for name in book.defences for seed in book.training_seeds]
    found = made(book, listed, success.has_images, "reconstructions of")
    seeds = {
        seed: {run.defence for run in found if run.training_seed == seed} for seed in book.training_seeds
    }
    models = seeds[book.training_seeds[0]]
    return replace(
        book,
        defences=tuple(name for name in book.defences if book.attack(name).defence in models),
        training_seeds=tuple(seed for seed, known in seeds.items() if known >= models),
    )


def _separation(book: Workbook, defence: str, seed: int) -> pd.DataFrame:
    trained = book.attack(defence, seed).target()
    photos = inversion.judge_photos(book.setup, trained, "target")
    train, test = (
        (photos[split].features["target"].numpy(), photos[split].labels.numpy())
        for split in ("train", "test")
    )
    head = getattr(trained.model, "head", None)
    linear = isinstance(head, nn.Linear) and not isinstance(head, Cosine)
    return features.separation_table(
        train,
        test,
        defence=defence,
        logits=photos["test"].logits["target"].numpy() if linear else None,
        weight=head.weight.detach().cpu().numpy() if linear else None,
    )


# --- numbers ------------------------------------------------------------------------------------------


def _by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """(seeds x identities) of rows with columns training_seed, identity, value; identities that all seeds
    have."""
    return rows.pivot(index="training_seed", columns="identity", values="value").dropna(axis=1)


def _nested(grid: pd.DataFrame) -> Interval:
    return statistics.nested_mean(grid.to_numpy(), seed=measures.SEED)


def distance_summary(report: FeatureReport, measure: str = "knn_distance") -> pd.DataFrame:
    """One measure of every pair: columns defence, law, pair, measure, interval; means over seeds and identities."""
    rows = report.distances[report.distances["measure"] == measure]
    summary = [
        {
            "defence": defence,
            "law": law,
            "pair": pair,
            "measure": measure,
            "interval": _nested(_by_seed(part)),
        }
        for (defence, law, pair), part in rows.groupby(["defence", "law", "pair"], sort=False)
    ]
    return pd.DataFrame(summary)


def votes(report: FeatureReport) -> pd.DataFrame:
    """Share of the vote "nearer to an erased photo than to a clean one" per model and law: of unseen clean
    photos, of reconstructions, and of unseen erased photos (the two ends of the scale)."""
    rows = distance_summary(report, "nearest_set_vote")
    rows["query"] = rows["pair"].str.partition("->")[0]
    wide = rows.pivot(index=["law", "defence"], columns="query", values="interval")
    return wide[["private_held_out", "reconstructions", "held_out_erased", "prior_samples"]]


def claims(report: FeatureReport) -> pd.DataFrame:
    """The three claims of every defence with 95 % intervals, paired by identity.

    Columns defence, claim, measure, ``interval``, ``supports``: the sign that supports the claim, by which
    :func:`claim_table` multiplies.

    - ``towards``: D(reconstruction, erased) - D(reconstruction, private) in the model itself (negative
      supports); for the nearest-set vote, its share minus the middle of those of unseen clean and unseen erased
      photos (positive supports).
    - ``towards_more``: the vote minus NoDef's under the same law (positive supports).
    - ``away``: log of [D(reconstruction, private) / D(unseen photo, private)] under the defence over the
      same under NoDef (positive supports); of the shifts without the unseen photos, which are not shifted. A weaker
      attack alone does this too, so the rows of ``none`` are NoDef under the weakest budget over NoDef under the
      study's.
    - ``away_more``: the same over NoDef under that weaker attack, that is, ``away`` minus the row of ``none``
      (positive supports): what no weaker attack accounts for.
    - ``separated``: class separation of unseen photos minus NoDef's, larger is better separated.
    """
    rows: list[dict[str, Any]] = []
    for defence in [name for name in report.book.defences if name != "none"]:
        law = report.law(defence)
        own, base = (_model(report, name, law) for name in (defence, "none"))
        rows += _towards(own, defence)
        vote, base_vote = (_values(part, VOTE, "nearest_set_vote") for part in (own, base))
        rows.append(_claim(defence, "towards_more", "nearest_set_vote", _paired(vote, base_vote), +1))
        for claim, other in (("away", base), ("away_more", report.control)):
            for measure in AWAY if len(other) else ():
                rows.append(_claim(defence, claim, measure, _log_ratio(own, other, measure), +1))
        for measure, part in report.separation.groupby("measure", sort=False):
            if not {defence, "none"} <= set(part["defence"]):
                continue  # a head that is not linear has no logit margin
            grids = [_by_seed(part[part["defence"] == name]) for name in (defence, "none")]
            sign = -1 if measure in LOWER_IS_BETTER else +1
            rows.append(_claim(defence, "separated", measure, _paired(*grids), sign))
    for measure in AWAY if len(report.control) else ():
        base = _model(report, "none", report.control["law"].iloc[0])
        rows.append(_claim("none", "away", measure, _log_ratio(report.control, base, measure), +1))
    return pd.DataFrame(rows)


def _claim(defence: str, claim: str, measure: str, interval: Interval, supports: int) -> dict[str, Any]:
    return {
        "defence": defence,
        "claim": claim,
        "measure": measure,
        "interval": interval,
        "supports": supports,
    }


def _model(report: FeatureReport, defence: str, law: str) -> pd.DataFrame:
    rows = report.distances
    return rows[(rows["defence"] == defence) & (rows["law"] == law)]


def _values(model: pd.DataFrame, pair: str, measure: str) -> pd.DataFrame:
    return _by_seed(model[(model["pair"] == pair) & (model["measure"] == measure)])


def _towards(model: pd.DataFrame, defence: str) -> Iterable[dict[str, Any]]:
    parts = [
        features.claim_differences(part).assign(training_seed=seed)
        for seed, part in model.groupby("training_seed")
    ]
    for measure, part in pd.concat(parts).groupby("measure", sort=False):
        grid = _by_seed(part.rename(columns={"value": "_"}).assign(value=part["difference"]))
        yield _claim(defence, "towards", measure, _nested(grid), +1 if measure == "nearest_set_vote" else -1)


def _paired(ours: pd.DataFrame, theirs: pd.DataFrame) -> Interval:
    """Difference on the identities both have, over seeds and identities."""
    common = ours.columns.intersection(theirs.columns)
    grids = [grid[common].to_numpy() for grid in (ours, theirs)]
    return statistics.compare_paired(*grids, seed=measures.SEED).difference


def _log_ratio(own: pd.DataFrame, base: pd.DataFrame, measure: str) -> Interval:
    """Log of one model's distance of reconstructions to private photos over another's, each relative to that of its
    unseen photos where the measure has such a floor; over seeds and identities."""
    queries = ("reconstructions",) if measure in SHIFTS else ("reconstructions", "private_held_out")
    grids = [
        [_values(model, f"{query}->private_train", measure) for query in queries] for model in (own, base)
    ]
    power = 0.5 if measure in SHIFTS else 1.0  # shifts are squared until they are averaged
    common = grids[0][0].columns
    for grid in (*grids[0], *grids[1]):
        common = common.intersection(grid.columns)

    def statistic(means: list[np.ndarray]) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):  # where nothing was shifted
            ours, theirs = (np.log(mean[:, 0]) - np.log(mean[:, 1:]).sum(1) for mean in means)
            return power * (ours - theirs)

    found = [[grid[common].to_numpy() for grid in model] for model in grids]
    return statistics.nested_statistic(found, statistic, seed=measures.SEED)


def separation_frame(report: FeatureReport) -> pd.DataFrame:
    """Separation of unseen photos: columns defence, measure, value, low, high, n (means over seeds)."""
    rows = []
    for (defence, measure), part in report.separation.groupby(["defence", "measure"], sort=False):
        interval = _nested(_by_seed(part))
        bounds = {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
        rows.append({"defence": defence, "measure": measure, **bounds})
    return pd.DataFrame(rows)


def permutation_tests(report: FeatureReport, *, permutations: int = 500) -> pd.DataFrame:
    """Mean squared MMD of reconstructions to unseen, private and erased photos, each with its p value by
    permutation within identities (first training seed, one erasing draw a photo), a row a model and law."""
    rows = {}
    for (defence, law), sets in report.sets.items():
        one = _one_draw(sets)
        cells = {}
        for reference in ("private_held_out", "private_train", "private_erased"):
            value, p = features.mmd_by_identity(
                one, first="reconstructions", second=reference, permutations=permutations, seed=measures.SEED
            )
            cells[reference.replace("_", " ")] = f"{value:.3f} (p = {p:.3f})"
        rows[label(defence), label(law)] = cells
    return pd.DataFrame(rows).T.rename_axis(["model", "law"])


def _one_draw(sets: FeatureSets) -> FeatureSets:
    photos = len(sets.sets["private_train"][0])
    return FeatureSets(
        {
            name: (x[:photos], y[:photos]) if name == "private_erased" else (x, y)
            for name, (x, y) in sets.sets.items()
        }
    )


def claim_frame(table: pd.DataFrame, claim: str, measure: str) -> pd.DataFrame:
    """One claim for :func:`lib.plots.difference_plot`: columns defence, value, low, high."""
    rows = table[(table["claim"] == claim) & (table["measure"] == measure)]
    bounds = [(interval.value, interval.low, interval.high) for interval in rows["interval"]]
    frame = pd.DataFrame(bounds, columns=["value", "low", "high"])
    return frame.assign(defence=rows["defence"].to_numpy())


def claim_table(table: pd.DataFrame) -> pd.DataFrame:
    """The claims about distances as they are printed: a row a claim and measure, a column a model. Every number is
    multiplied by the sign that supports its claim: positive is in favour of it, whatever the measure."""
    rows = table[table["claim"] != "separated"]
    cells = [
        _towards_support(row.interval, row.supports).plain(2, signed=True, count=False)
        for row in rows.itertuples()
    ]
    shown = rows.assign(
        cell=cells,
        model=rows["defence"].map(label),
        claim=rows["claim"].map(CLAIMS),
        measure=[MEASURES.get(name, name.replace("_", " ")) for name in rows["measure"]],
    )
    wide = shown.pivot(index=["claim", "measure"], columns="model", values="cell")
    order = [
        (claim, name) for claim, name in dict.fromkeys(zip(shown["claim"], shown["measure"], strict=True))
    ]
    models = [label(name) for name in plots.order(rows["defence"])]
    wide = wide.reindex(index=pd.MultiIndex.from_tuples(order, names=["claim", "measure"]), columns=models)
    return wide.rename(columns={label("none"): "NoDef, weaker attack"}).fillna("").rename_axis(columns=None)


def _towards_support(interval: Interval, supports: int) -> Interval:
    """The interval, its sign turned where negative values support the claim."""
    if supports > 0:
        return interval
    return Interval(-interval.value, -interval.high, -interval.low, interval.n)


def size_table(report: FeatureReport) -> pd.DataFrame:
    """How many feature vectors each set has, a row a model and law (first training seed)."""
    rows = {
        (label(defence), label(law)): {
            name.replace("_", " "): len(rows) for name, (rows, _) in sets.sets.items()
        }
        for (defence, law), sets in report.sets.items()
    }
    return pd.DataFrame(rows).T.rename_axis(["model", "law"])


# --- saving -------------------------------------------------------------------------------------------


def _save(report: FeatureReport) -> None:
    """``tables/<run>__features``: distances (evaluator target, split the pair) and separation of each model."""
    book = report.book
    for seed in book.training_seeds:
        for defence in dict.fromkeys(report.distances["defence"]):
            attack = book.attack(defence, seed)
            steps = attack.target().steps
            about = {
                "setup": book.setup.name,
                "defence": attack.defence,
                "training_steps": steps,
                "training_seed": seed,
                "headline": 1,
            }
            apart = {**about, "prior": "", "attack": "", "budget": "", "attack_seed": None}
            attacked = {
                **about,
                "prior": attack.prior,
                "attack": attack.attack,
                "budget": attack.budget,
                "attack_seed": attack.attack_seed,
            }
            model = _model(report, defence, report.law(defence))
            model = model[model["training_seed"] == seed]
            classes = report.separation
            classes = classes[(classes["defence"] == defence) & (classes["training_seed"] == seed)]
            rows = []
            for (pair, measure), part in model.groupby(["pair", "measure"], sort=False):
                metric = measure if measure == "nearest_set_vote" else f"feature_{measure}"
                rows.append(_row(attacked, metric, pair.replace("->", "_to_"), part))
            for measure, part in classes.groupby("measure", sort=False):
                rows.append(_row(apart, measure, "test", part))
            results.save_table(rows, f"{book.name(defence, seed, steps, attack)}__features")


def _row(common: dict[str, Any], metric: str, split: str, part: pd.DataFrame) -> dict[str, Any]:
    interval = _nested(_by_seed(part))
    return {
        **common,
        "metric": metric,
        "evaluator": "target",
        "split": split,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
    }
