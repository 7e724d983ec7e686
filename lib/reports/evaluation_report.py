"""Notebook 06, first half: what the judges are worth, and how much each model leaks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from lib import plots, results
from lib.plots import label
from lib.reports.tables import pivot, readable
from lib.reports.workbook import Workbook
from lib.results.sentences import metric_name, summarise
from lib.statistics import Interval

UNAVAILABLE = (
    "**AttAcc is unavailable**: this setup has no private photos (`data.private: {source: none}`), so there is "
    "no evaluator or verifier that knows the people. Only the attacked network itself can be asked, and it is "
    "no judge of its own leak."
)


def needs_photos(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say why, instead of computing, where a setup has no private photos."""

    @functools.wraps(function)
    def wrapper(book: Workbook, *arguments: Any, **options: Any) -> Any:
        if book.has_photos:
            return function(book, *arguments, **options)
        return Markdown("*AttAcc is unavailable without private photos.*")

    return wrapper


def measured(book: Workbook) -> pd.DataFrame:
    """Train, attack and judge every model of the run and NoDef's frontier; the saved table of the attacks."""
    if not book.has_photos:
        return book.invert(book.headline_attacks())
    book.train()
    book.frontier()
    return book.invert(book.headline_attacks())


def target_side(table: pd.DataFrame) -> pd.DataFrame:
    """What the attacked networks say themselves; available without any private photo."""
    metrics = ["target_confidence", "target_probability"]
    return pivot(table, metrics=metrics, columns="metric")


def scope(book: Workbook, table: pd.DataFrame) -> str:
    """Which judges there are, how many people and images, or why there is no AttAcc."""
    if not book.has_photos:
        return UNAVAILABLE
    names = ", ".join(name.replace("_", " ") for name in (*book.setup.evaluators, "verifier"))
    people = int(table["n"].max())
    return (
        f"Preset {book.setup.name}: {people} people attacked in each of {len(book.defences)} models with "
        f"{len(book.training_seeds)} training seed(s); judges: {names}. Chance is {100 * book.chance:.1f} %."
    )


# --- judges and leaks ---------------------------------------------------------------------------------


@needs_photos
def judges(book: Workbook) -> pd.DataFrame:
    """Every judge on unseen photos of the private people, the measure for what it says of reconstructions."""
    frame = book.evaluators()
    frame = frame.assign(
        evaluator=frame["evaluator"].str.replace("_", " "),
        metric=frame["metric"].map(metric_name),
        interval=[Interval(*row) for row in frame[["value", "low", "high", "n"]].itertuples(index=False)],
    )
    shown = readable(frame[["evaluator", "metric", "interval", "n"]])
    return shown.rename(columns={"interval": "unseen photos", "n": "people"}).set_index("evaluator")


@needs_photos
def attack_figure(book: Workbook, table: pd.DataFrame) -> Any:
    """AttAcc of every model by every judge; the verifier's bars are its match rate."""
    rows = summarise(table)
    metric = np.where(rows["evaluator"] == "verifier", "verifier_match", "attack_accuracy_top1")
    rows = rows[(rows["metric"] == metric) & (rows["evaluator"] != "panel_unanimous")]
    judged = rows[rows["evaluator"] != "verifier"]  # its rate is no accuracy
    spread = judged.groupby("defence")["value"].agg(lambda values: values.max() - values.min())
    return plots.attack_bars(
        rows,
        chance=book.chance,
        y_label="attack accuracy; verifier: match rate",
        title=f"Which evaluator is asked moves AttAcc by up to {100 * spread.max():.0f} points "
        f"({label(spread.idxmax())})",
    )


@needs_photos
def distances(book: Workbook, table: pd.DataFrame) -> pd.DataFrame:
    """Squared distance to the nearest private photo of the person, between its two references, and the leakage
    scaled by them, per model and network whose features are used."""
    metrics = ["knn_distance_unseen_photo", "knn_distance", "knn_distance_stranger", "scaled_leakage"]
    rows = summarise(table[table["metric"].isin(metrics)])
    rows["cell"] = [
        f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"
        if row.metric == "scaled_leakage"
        else f"{row.value:.3g}"
        for row in rows.itertuples()
    ]
    wide = rows.pivot(index=["evaluator", "defence"], columns="metric", values="cell")
    order = [(network, name) for network in ("target", "main", "verifier") for name in book.defences]
    wide = wide.reindex(
        index=pd.MultiIndex.from_tuples(order, names=["features of", "defence"]), columns=metrics
    )
    wide.columns = ["unseen photo", "reconstruction", "stranger", "scaled leakage"]
    return wide


def checks(book: Workbook, table: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Arithmetic, counts and order relations of the tables that hold whatever the seed, a line each."""
    if not book.has_photos:
        return "no private photos: nothing to compare"
    wide = table.pivot_table(
        index=["defence", "training_seed", "attack_seed"], columns=["metric", "evaluator"], values="value"
    )
    top1, top5 = wide["attack_accuracy_top1"], wide["attack_accuracy_top5"]
    some = top1[list(book.setup.evaluators)].sum(axis=1)
    saved = results.load_tables(f"{book.setup.name}__*", folder=results.output_dir(book.setup.name))
    base = comparisons[comparisons["defence"] == "none"]
    settled = comparisons[comparisons["verdict"].map(lambda verdict: verdict.outcome != "not established")]
    inside = [
        row.advantage.low <= row.advantage.value <= row.advantage.high for row in comparisons.itertuples()
    ]
    lines = {
        "attack runs and judges": top1.shape,
        "top-5 holds top-1": bool((top5["main"] >= top1["main"]).all()),
        "unanimous at most majority": bool((top1["panel_unanimous"] <= top1["panel_majority"]).all()),
        "a majority needs some evaluator": bool((top1["panel_majority"] <= some).all()),
        "saved columns": tuple(saved.columns) == results.COLUMNS,
        "people behind every rate": table.loc[table["metric"].map(results.is_fraction), "n"]
        .unique()
        .tolist(),
        "comparisons": (len(comparisons), comparisons["evaluator"].nunique()),
        "NoDef minus itself": sorted({i.value for i in (*base["utility_difference"], *base["privacy_gain"])}),
        "the ratio of NoDef": str(base["paper_ratio"].iloc[0]) if len(base) else "not in the run",
        "every advantage lies in its interval": all(inside),
        "settled verdicts exclude 0": all(interval.excludes(0) for interval in settled["advantage"]),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
