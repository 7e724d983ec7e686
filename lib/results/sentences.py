"""Verdicts and captions in words, computed from saved tables so that they cannot go stale."""

from __future__ import annotations

import math

import pandas as pd

from lib.errors import UserError
from lib.results.schema import is_fraction
from lib.statistics import Interval

SMALL_SETUPS = ("digits",)
"""Setups that show the chain and support no conclusion, whatever their n."""
FEWEST_IDENTITIES = 20
"""Below this many identities a 95 % interval of a fraction is wider than 40 points: no verdict."""

_NAMES = {
    "natural_accuracy": "natural accuracy",
    "attack_accuracy_top1": "AttAcc",
    "attack_accuracy_top5": "AttAcc top-5",
    "attack_accuracy_growth": "AttAcc added",
    "attack_accuracy_top1_unselected": "AttAcc before selection",
    "verifier_match": "verifier match rate",
    "knn_distance": "KNN distance",
    "scaled_leakage": "scaled leakage",
    "evaluator_accuracy": "evaluator accuracy",
    "kid": "KID",
    "fid": "FID",
}


def metric_name(metric: str) -> str:
    """How a metric is called in prose: ``attack_accuracy_top1`` is AttAcc."""
    return _NAMES.get(metric, metric.replace("_", " "))


def is_small(setup: str, n: int | None = None) -> bool:
    """Whether results of this setup, or of so few identities, are too small to conclude from."""
    return setup in SMALL_SETUPS or (n is not None and n < FEWEST_IDENTITIES)


def show_number(value: float, metric: str) -> str:
    """A value as it is printed: fractions in percent with one decimal, others with three digits."""
    if math.isnan(value):
        return "undefined"
    return f"{100 * value:.1f} %" if is_fraction(metric) else f"{value:.3g}"


def show_interval(low: float, high: float, metric: str) -> str:
    """The interval beside it: ``[85.1, 94.2]``, in the units of :func:`show_number`."""
    if math.isnan(low) or math.isnan(high):
        return "[undefined]"
    return f"[{100 * low:.1f}, {100 * high:.1f}]" if is_fraction(metric) else f"[{low:.3g}, {high:.3g}]"


def summarise(table: pd.DataFrame, *, headline: bool = True) -> pd.DataFrame:
    """Seeds joined: one row per setup, defence, steps, prior, attack, budget, metric, evaluator and split.

    ``value`` is the mean over runs; ``low`` and ``high`` are the widest bounds among them, which is never
    narrower than any run's own interval over identities; ``runs`` counts runs and ``n`` is the least n.
    """
    rows = table[table["headline"] == 1] if headline else table
    keys = ["setup", "defence", "training_steps", "prior", "attack", "budget", "metric", "evaluator", "split"]
    grouped = rows.groupby(keys, sort=False, dropna=False)
    return grouped.agg(
        value=("value", lambda v: v.mean(skipna=False)),
        low=("low", lambda v: v.min(skipna=False)),
        high=("high", lambda v: v.max(skipna=False)),
        n=("n", "min"),
        runs=("value", "size"),
    ).reset_index()


def pick(table: pd.DataFrame, **filters: str | int) -> pd.Series:
    """The one summarised row that matches, or a UserError that says how many do."""
    found = table
    for column, wanted in filters.items():
        found = found[found[column] == wanted]
    if len(found) != 1:
        asked = ", ".join(f"{column}={wanted}" for column, wanted in filters.items())
        raise UserError(
            f"expected one result for {asked}, got {len(found)}; narrow the filters or run the study"
        )
    return found.iloc[0]


def sentence(
    table: pd.DataFrame,
    *,
    metric: str,
    defence: str,
    reference: str = "none",
    evaluator: str = "main",
    **filters: str | int,
) -> str:
    """One defence against the reference in words, from headline rows: values, intervals, n, and a verdict.

    The verdict is "no difference established" when the intervals overlap and "too small to conclude" at smoke size.
    Non-overlap is stricter than a paired interval; where identities are saved, prefer
    :func:`difference_sentence` with a paired comparison.
    """
    summary = summarise(table)
    chosen = {"metric": metric, "evaluator": evaluator, **filters}
    ours, theirs = (pick(summary, defence=name, **chosen) for name in (defence, reference))
    text = (
        f"Preset {ours.setup}, {metric_name(metric)} by {evaluator}: {_value(ours, defence)}, "
        f"{_value(theirs, reference)}"
    )
    if is_small(ours.setup, min(ours.n, theirs.n)):
        return f"{text}: too small to conclude."
    if any(math.isnan(b) for b in (ours.low, ours.high, theirs.low, theirs.high)):
        return f"{text}: undefined, no verdict."
    if ours.low <= theirs.high and theirs.low <= ours.high:
        return f"{text}: no difference established (the intervals overlap)."
    return f"{text}: {defence} is {'lower' if ours.value < theirs.value else 'higher'}."


def difference_sentence(
    difference: Interval, *, metric: str, defence: str, reference: str = "none", setup: str
) -> str:
    """A paired difference (defence minus reference, same identities) in words.

    Args:
        difference: value and 95 % bounds in the metric's own units, n identities.
    """
    scale, unit = (100, " points") if is_fraction(metric) else (1, "")
    text = (
        f"Preset {setup}, n = {difference.n}: {metric_name(metric)} of {defence} minus {reference} is "
        f"{scale * difference.value:+.3g}{unit} "
        f"[{scale * difference.low:+.3g}, {scale * difference.high:+.3g}]"
    )
    if is_small(setup, difference.n):
        return f"{text}: too small to conclude."
    if not all(map(math.isfinite, (difference.value, difference.low, difference.high))):
        return f"{text}: undefined, no verdict."
    if not difference.excludes(0):
        return f"{text}: no difference established."
    return f"{text}: {'lower' if difference.high < 0 else 'higher'}."


def advantage_sentence(
    advantage: Interval, *, detectable: float, defence: str, setup: str, extrapolated: bool = False
) -> str:
    """Whether a defence helps beyond giving up accuracy, as one judge sees it: its advantage over the NoDef frontier
    in words.

    Args:
        advantage: NoDef frontier's AttAcc at the defence's utility minus the defence's AttAcc, as fractions;
            positive means the defence leaks less
            (:class:`lib.statistics.Advantage`, from which ``detectable`` and ``extrapolated`` come too).
        detectable: the advantage this study would have established with 80 % power.
        extrapolated: the defence is less accurate than any NoDef checkpoint: no verdict.
    """
    text = (
        f"Preset {setup}, n = {advantage.n}: advantage of {defence} over undefended training stopped early "
        f"{100 * advantage.value:+.1f} points [{100 * advantage.low:+.1f}, {100 * advantage.high:+.1f}]"
    )
    if is_small(setup, advantage.n):
        return f"{text}: too small to conclude."
    if extrapolated:
        return f"{text}: less accurate than any undefended model, no verdict."
    if not all(map(math.isfinite, (advantage.value, advantage.low, advantage.high))):
        return f"{text}: undefined, no verdict."
    if advantage.excludes(0) and advantage.value > 0:
        return f"{text}: {defence} leaks less."
    if advantage.excludes(0):
        return f"{text}: {defence} is worse than stopping early."
    return f"{text}: not established; a difference of {100 * detectable:.1f} points could have been detected."


def caption(table: pd.DataFrame, *, metric: str, evaluator: str = "main", **filters: str | int) -> str:
    """A figure's caption: the preset, and every defence with its value, interval, runs and n."""
    summary = summarise(table)
    for column, wanted in {"metric": metric, "evaluator": evaluator, **filters}.items():
        summary = summary[summary[column] == wanted]
    if summary.empty:
        raise UserError(
            f"caption: expected headline rows of {metric} by {evaluator}, got none; run the study"
        )
    setups = ", ".join(dict.fromkeys(summary["setup"]))
    parts = "; ".join(_value(row, row.defence, attack=True) for row in summary.itertuples())
    small = " Too small to conclude." if any(map(is_small, summary["setup"], summary["n"])) else ""
    return f"Preset {setups}, {metric_name(metric)} by {evaluator}, 95 % intervals: {parts}.{small}"


def _value(row, label: str, *, attack: bool = False) -> str:
    runs = f", {row.runs} runs" if row.runs > 1 else ""
    by = f" ({row.attack}, {row.prior})" if attack and row.attack else ""
    return (
        f"{label}{by} {show_number(row.value, row.metric)} {show_interval(row.low, row.high, row.metric)}"
        f" (n = {row.n}{runs})"
    )
