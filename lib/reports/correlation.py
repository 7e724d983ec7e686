"""Notebook 13: whether models that are harder to evade are easier to invert, as anti-adversarial training holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.stats import rankdata

from lib import plots
from lib.evaluation import identity_means
from lib.reports.robustness_report import NAMES, models
from lib.reports.workbook import Workbook
from lib.stages import measures, robustness, success
from lib.statistics import identity_weights, percentile_interval

FEWEST_MODELS = 5  # of four, one in twelve orders agrees or disagrees wholly by chance
RESAMPLES = 2000


def measure(book: Workbook, attack: str = "pgd") -> dict[str, Any]:
    """AttAcc of the listed models against their robust accuracy under one attack, at the radius where it takes about
    half of NoDef's accuracy (where all stand or all fall nothing can be seen): ``radius``, ``points`` (a row a model,
    both with limits), ``pearson`` and ``spearman`` (Intervals, people resampled; the models are those that were
    listed, no sample of all there could be)."""
    runs = models(book)
    first, labels = robustness.evasion(runs[0])
    half = identity_means(first["clean"][0.0].double(), labels).mean.mean() / 2
    left = {r: identity_means(right.double(), labels).mean.mean() for r, right in first[attack].items()}
    radius = min(left, key=lambda r: abs(float(left[r] - half)))
    robust, leaks, rows = [], [], []
    for outcome in success.measure(runs):
        found, labels = robustness.evasion(outcome.attack)
        right = found[attack][radius]
        robust.append(identity_means(right.double(), labels).mean.numpy())
        leaks.append(outcome.per_person())
        row: dict[str, Any] = {"defence": outcome.attack.defence}
        for side, interval in (("robust", measures.mean(right, labels)), ("attack", success.mean([outcome]))):
            row |= {side: interval.value, f"{side}_low": interval.low, f"{side}_high": interval.high}
        rows.append(row)
    weights = identity_weights(len(robust[0]), RESAMPLES, np.random.default_rng(measures.SEED))
    weights = np.concatenate([np.ones((1, weights.shape[1])), weights]) / weights.shape[1]
    x, y = weights @ np.stack(robust).T, weights @ np.stack(leaks).T
    n = weights.shape[1]
    made = {
        name: percentile_interval(float(values[0]), values[1:], n=n)
        for name, values in (
            ("pearson", _correlations(x, y)),
            ("spearman", _correlations(rankdata(x, axis=1), rankdata(y, axis=1))),
        )
    }
    return {"points": pd.DataFrame(rows), "attack": attack, "radius": radius, **made}


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(B,) row by row; NaN where a row does not vary."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def figure(found: dict[str, Any]) -> Axes:
    """A point a model."""
    return plots.privacy_against_robustness(
        found["points"], x_label=f"robust accuracy, {NAMES[found['attack']]} at {found['radius']:g}/255"
    )


def sentence(book: Workbook, found: dict[str, Any]) -> str:
    """Whether the models that are easier to evade are harder to invert."""
    count, pearson = len(found["points"]), found["pearson"]
    text = (
        f"Over {count} models, Pearson's correlation of AttAcc with robust accuracy is {pearson.plain(2)}, Spearman's "
        f"{found['spearman'].plain(2)}"
    )
    if not book.setup.conclusive:
        return f"{text}. **Too small to conclude.**"
    if count < FEWEST_MODELS:
        return f"{text}: too few models to establish a relation, whatever the people say; {FEWEST_MODELS} are needed."
    if not pearson.excludes(0):
        return f"{text}: no relation is established over these models."
    way = "leak more" if pearson.value > 0 else "leak less"
    return f"{text}: of these models, those that are harder to evade {way}."
