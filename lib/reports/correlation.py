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
    both with limits), ``pearson`` and ``spearman`` (Intervals, n the models; people and models are resampled, for what
    is asked is whether other models would show it too)."""
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
    n = len(runs)
    drawn = np.random.default_rng(measures.SEED).integers(n, size=(RESAMPLES, n))
    drawn = np.concatenate([np.arange(n)[None], drawn])
    x, y = (np.take_along_axis(weights @ np.stack(side).T, drawn, 1) for side in (robust, leaks))
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
    count, spearman = len(found["points"]), found["spearman"]
    text = (
        f"Over {count} models, Spearman's correlation of AttAcc with robust accuracy is {spearman.plain(2)}, Pearson's "
        f"{found['pearson'].plain(2)}"
    )
    if not book.conclusive:
        return f"{text}. **Too small to conclude.**"
    if count < FEWEST_MODELS:
        return f"{text}: too few models to establish a relation; {FEWEST_MODELS} are needed."
    if not spearman.excludes(0):
        return f"{text}: no relation is established."
    way = "leak more" if spearman.value > 0 else "leak less"
    return f"{text}: models that are harder to evade {way}."
