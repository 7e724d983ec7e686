"""Notebook 06: what the judges are worth, how much each model leaks, and what that costs in accuracy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from lib import plots, results, statistics
from lib.plots import label
from lib.results.sentences import summarise
from lib.run import measures
from lib.run.tables import pivot, readable
from lib.run.workbook import Workbook
from lib.statistics import Interval

JUDGES = ("main", "panel_majority", "verifier")
"""A conclusion has to hold by all three: the main evaluator, most of the panel, and people-disjoint features."""
ALLOWED_LOSS = 0.1
"""Worst corner of the hypervolume: NoDef's natural accuracy minus this, at NoDef's AttAcc."""
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
def ceilings(book: Workbook) -> pd.DataFrame:
    """Every judge on unseen photos of the private people: what a perfect reconstruction could reach."""
    frame = book.evaluators()
    frame["interval"] = [
        Interval(*row) for row in frame[["value", "low", "high", "n"]].itertuples(index=False)
    ]
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


# --- privacy against utility --------------------------------------------------------------------------


@needs_photos
def tradeoff_frame(book: Workbook, evaluator: str = "main") -> pd.DataFrame:
    """Natural accuracy and AttAcc with intervals, a row a model: what :func:`lib.plots.tradeoff` takes."""
    names = [*dict.fromkeys([*book.defences, *book.frontier_names])]
    points = book.points(names, evaluator)
    rows = []
    for i, name in enumerate(names):
        sides = {
            "natural": statistics.nested_mean(points.accuracy[:, i], seed=measures.SEED),
            "attack": statistics.nested_mean(points.attack[:, i], seed=measures.SEED),
        }
        row: dict[str, Any] = {"defence": name}
        for side, interval in sides.items():
            row |= {side: interval.value, f"{side}_low": interval.low, f"{side}_high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows)


def frontier_frame(book: Workbook, evaluator: str = "main", *, at: int = 40) -> pd.DataFrame:
    """NoDef's own frontier with its band: columns natural, attack, low, high at ``at`` natural accuracies.

    The band is the interval of the advantage of an imagined model that leaks nothing.
    """
    frontier = book.points(book.frontier_names, evaluator)
    reached, _ = frontier.means()
    everything = book.points(book.defences, evaluator)
    lowest = min(reached.min(), everything.means()[0].min())
    grid = np.linspace(lowest, max(reached.max(), everything.means()[0].max()), at)
    people, owners = frontier.attack.shape[2], frontier.accuracy.shape[2]
    imagined = statistics.Points(
        np.zeros((at, people)), np.broadcast_to(grid[:, None], (at, owners)), frontier.photos
    )
    found = statistics.advantage_over_frontier(imagined, frontier, chance=book.chance, seed=measures.SEED)
    rows = [(x, a.frontier, a.advantage.low, a.advantage.high) for x, a in zip(grid, found, strict=True)]
    return pd.DataFrame(rows, columns=["natural", "attack", "low", "high"])


@needs_photos
def tradeoff_figure(book: Workbook, evaluator: str = "main") -> Any:
    """The trade-off plane with NoDef's frontier and the Pareto front."""
    frame = tradeoff_frame(book, evaluator)
    front = statistics.pareto_front(frame["natural"], frame["attack"])
    names = ", ".join(label(name) for name in frame["defence"][front])
    title = (
        f"Not dominated: {names}"
        if len(names) < 70
        else f"{front.sum()} of {len(frame)} models are not dominated"
    )
    name = {"main": "main evaluator", "verifier": "verifier match"}.get(
        evaluator, evaluator.replace("_", " ")
    )
    drawn = plots.tradeoff(frame, frontier=frontier_frame(book, evaluator), evaluator=name, title=title)
    if evaluator == "main":
        results.save_figure(drawn.figure, f"{book.setup.name}__tradeoff", book.setup.name)
    return drawn


def families(book: Workbook) -> dict[str, list[str]]:
    """What is swept: NoDef's checkpoints; the strengths of RE at a random place, NoDef being strength 0; and
    everything in the run."""
    erased = [
        name for name in book.defences if name.startswith("re(") and "=" not in name and "+" not in name
    ]
    found = {"NoDef, less training": book.frontier_names, "RE, random place": ["none", *erased]}
    found["all defences"] = list(dict.fromkeys(["none", *book.defences]))
    return {family: names for family, names in found.items() if len(names) > 1}


@needs_photos
def hypervolumes(book: Workbook, evaluator: str = "main") -> pd.DataFrame:
    """:func:`hypervolume_frame` as it is printed."""
    return readable(hypervolume_frame(book, evaluator)).set_index("family")


def hypervolume_frame(book: Workbook, evaluator: str = "main") -> pd.DataFrame:
    """Share of the box between (NoDef's accuracy - 10 points, NoDef's AttAcc) and (100 %, chance) that each
    family dominates; one row a family. NaN where NoDef leaks no more than chance."""
    (natural,), (attack,) = book.points(["none"], evaluator).means()
    rows = []
    for family, names in families(book).items():
        points = book.points(names, evaluator)
        interval = Interval(np.nan, np.nan, np.nan, points.identities)
        if attack > book.chance:
            interval = statistics.hypervolume_interval(
                points,
                reference=(natural - ALLOWED_LOSS, attack),
                ideal=(1.0, book.chance),
                seed=measures.SEED,
            )
        rows.append({"family": family, "models": len(names), "hypervolume": interval})
    return pd.DataFrame(rows)


@needs_photos
def matched(book: Workbook, evaluator: str = "main") -> pd.DataFrame:
    """AttAcc of the RE sweep at NoDef's natural accuracy minus 0, 1, 3 and 5 points, and the gain over NoDef."""
    sweep = families(book).get("RE, random place")
    if sweep is None:
        return pd.DataFrame({"RE, random place": ["no model of this family in the run"]})
    found = statistics.matched_loss(
        book.points(sweep, evaluator), book.points(["none"], evaluator), seed=measures.SEED
    )
    rows = [
        {
            "utility lost": f"{100 * row.loss:.0f} points",
            "AttAcc": row.attack,
            "gain over NoDef": row.gain,
            "reached in resamples": f"{row.reached:.0%}",
        }
        for row in found
    ]
    return readable(pd.DataFrame(rows), signed=["gain over NoDef"]).set_index("utility lost")


@needs_photos
def comparisons(book: Workbook, judges: Sequence[str] = JUDGES) -> pd.DataFrame:
    """:meth:`Workbook.advantages` by several judges, with ``P_dominates``: the share of paired resamples in
    which the model dominates NoDef. Saved as ``curves/<setup>__comparisons`` (they join seeds)."""
    parts = []
    for judge in judges:
        frame = book.advantages(judge)
        share = statistics.dominance_probability(
            book.points(book.defences, judge), book.points(["none"], judge), seed=measures.SEED
        )
        parts.append(frame.assign(P_dominates=share[:, 0]))
    frame = pd.concat(parts, ignore_index=True)
    _save(book, frame)
    return frame


def _save(book: Workbook, frame: pd.DataFrame) -> None:
    common = {
        "setup": book.setup.name,
        "training_steps": None,
        "prior": book.study.prior,
        "attack": book.study.attacks[0],
        "budget": book.study.budget,
        "training_seed": None,
        "attack_seed": book.attack_seeds[0],
        "curve": "comparison",
        "x_name": "none",
        "x": 0.0,
        "split": "",
    }
    rows = [
        {
            **common,
            "defence": row["defence"],
            "metric": metric,
            "evaluator": row["evaluator"],
            "value": row[metric].value,
            "low": row[metric].low,
            "high": row[metric].high,
            "n": row[metric].n,
        }
        for row in frame.to_dict("records")
        for metric in ("utility_difference", "privacy_gain", "advantage")
    ]
    results.save_curves(rows, f"{book.setup.name}__comparisons")


def comparison_table(frame: pd.DataFrame, evaluator: str = "main") -> pd.DataFrame:
    """:func:`comparisons` by one judge as it is printed; the paper's ratio says where it is undefined."""
    if not isinstance(frame, pd.DataFrame):
        return frame
    rows = frame[frame["evaluator"] == evaluator].set_index("defence")
    rows = rows[
        [
            "natural_accuracy",
            "attack_accuracy",
            "utility_difference",
            "privacy_gain",
            "advantage",
            "detectable",
            "P_dominates",
            "paper_ratio",
            "verdict",
        ]
    ].assign(
        detectable=[f"{100 * value:.1f} points" for value in rows["detectable"]],
        P_dominates=[f"{value:.0%}" for value in rows["P_dominates"]],
    )
    shown = readable(rows, signed=["utility_difference", "privacy_gain", "advantage"])
    return shown.rename(columns={"P dominates": "P(dominates NoDef)", "paper ratio": "the paper's ratio"})


@needs_photos
def advantage_figure(book: Workbook, frame: pd.DataFrame) -> Any:
    """Advantage over NoDef's frontier, a row a defence and a judge; filled where the interval excludes 0."""
    shown = frame[frame["defence"] != "none"]
    if shown.empty:
        return Markdown("No defence besides NoDef in this run.")
    rows = pd.DataFrame(
        {
            "label": [
                f"{label(row.defence)}, {row.evaluator.replace('_', ' ')}" for row in shown.itertuples()
            ],
            "value": [100 * interval.value for interval in shown["advantage"]],
            "low": [100 * interval.low for interval in shown["advantage"]],
            "high": [100 * interval.high for interval in shown["advantage"]],
        }
    )
    order = plots.order(shown["defence"])
    rows = rows.iloc[np.argsort([order.index(name) for name in shown["defence"]], kind="stable")]
    return plots.difference_plot(
        rows,
        x_label="advantage: AttAcc of NoDef at the same accuracy - AttAcc, points",
        left="leaks more",
        right="leaks less",
        title="Against a NoDef model of the same accuracy",
    )


def verdicts(book: Workbook, frame: pd.DataFrame) -> str:
    """One line a defence: the advantage by every judge, and what may be said of all of them together."""
    if not isinstance(frame, pd.DataFrame):
        return UNAVAILABLE
    lines = []
    for defence in plots.order(frame.loc[frame["defence"] != "none", "defence"]):
        rows = frame[frame["defence"] == defence]
        sentences = [
            results.advantage_sentence(
                row["advantage"],
                detectable=row["detectable"],
                defence=label(defence),
                setup=book.setup.name,
                extrapolated=row["extrapolated"],
            )
            for row in rows.to_dict("records")
        ]
        first = sentences[0]
        others = [
            f"{judge.replace('_', ' ')} {100 * row.value:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
            for judge, row in zip(rows["evaluator"][1:], rows["advantage"][1:], strict=True)
        ]
        lines.append(f"- {first} By the other judges: {'; '.join(others)}.{_together(book, rows)}")
    return "\n".join(lines)


def _together(book: Workbook, rows: pd.DataFrame) -> str:
    if not book.setup.conclusive:
        return ""
    settled = [verdict.outcome for verdict in rows["verdict"]]
    if rows["extrapolated"].any():
        return " **Outside NoDef's accuracies: no verdict.**"
    if all(outcome.endswith("helps") for outcome in settled):
        return " **Holds by every judge.**"
    if all(outcome == "not established" for outcome in settled):
        return " **Not established by any judge.**"
    return " **The judges disagree.**"


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
