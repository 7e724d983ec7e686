"""Notebook 06, second half: privacy against utility, and what may be said of each defence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from lib import plots, results, statistics
from lib.plots import label
from lib.reports import outside
from lib.reports.advantages import advantages
from lib.reports.evaluation_report import UNAVAILABLE, needs_photos
from lib.reports.tables import readable, seed_points
from lib.reports.workbook import Workbook
from lib.stages import measures
from lib.statistics import Interval

JUDGES = ("main", "panel_majority", "verifier")
"""A conclusion has to hold by all of them: the main evaluator, most of the panel, people-disjoint features; and
by the outside verifier where there is one."""
ALLOWED_LOSS = 0.1
"""Worst corner of the hypervolume: NoDef's natural accuracy minus this, at NoDef's AttAcc."""
GIVEN = "The target is a given network: there is nothing to train, so it has no frontier and nothing to compare with."


@needs_photos
def tradeoff_frame(book: Workbook, evaluator: str = "main") -> pd.DataFrame:
    """Natural accuracy and AttAcc with intervals, a row a model: what :func:`lib.plots.tradeoff` takes."""
    names = [*dict.fromkeys([*book.defences, *book.frontier_names])]
    rows = []
    for name in names:
        points = book.points([name], evaluator)
        sides = {
            "natural": statistics.nested_mean(
                points.accuracy[:, 0], photos=points.photos, seed=measures.SEED
            ),
            "attack": statistics.nested_mean(points.attack[:, 0], seed=measures.SEED),
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
    found = statistics.advantage_over_frontier(imagined, frontier, chance=frontier.chance, seed=measures.SEED)
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
    """:func:`hypervolume_frame` as it is printed; why there is none for a given network."""
    if book.setup.is_external:
        return Markdown(GIVEN)
    return readable(hypervolume_frame(book, evaluator)).set_index("family")


def hypervolume_frame(book: Workbook, evaluator: str = "main") -> pd.DataFrame:
    """Share of the box between (NoDef's accuracy - 10 points, NoDef's AttAcc) and (100 %, chance) that each
    family dominates; one row a family. NaN where NoDef leaks no more than chance."""
    (natural,), (attack,) = book.points(["none"], evaluator).means()
    rows = []
    for family, names in families(book).items():
        points = book.points(names, evaluator)
        interval = Interval(np.nan, np.nan, np.nan, points.identities)
        if attack > points.chance:
            interval = statistics.hypervolume_interval(
                points,
                reference=(natural - ALLOWED_LOSS, attack),
                ideal=(1.0, points.chance),
                seed=measures.SEED,
            )
        rows.append({"family": family, "models": len(names), "hypervolume": interval})
    return pd.DataFrame(rows)


@needs_photos
def matched(book: Workbook, evaluator: str = "main") -> pd.DataFrame:
    """AttAcc of the RE sweep at NoDef's natural accuracy minus 0, 1, 3 and 5 points, and the gain over NoDef."""
    sweep = families(book).get("RE, random place")
    if book.setup.is_external:
        return Markdown(GIVEN)
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
def comparisons(book: Workbook, judges: Sequence[str] = ()) -> pd.DataFrame:
    """:func:`advantages` by several judges (:data:`JUDGES`, and the outside verifier if there is one), with
    ``P_dominates``: the share of paired resamples in which the model dominates NoDef. Saved as
    ``curves/<setup>__comparisons`` (they join seeds)."""
    if not judges:
        judges = (*JUDGES, *([outside.NAME] if outside.applies(book.setup) else []))
    parts = []
    for judge in judges:
        frame = advantages(book, judge)
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
    """:func:`comparisons` by one judge as it is printed; the paper's ratio says where it is undefined. NoDef is not
    compared with itself; its own advantage stays, which says how well the frontier fits."""
    if not isinstance(frame, pd.DataFrame):
        return frame
    everything = frame[frame["evaluator"] == evaluator].set_index("defence")
    rows = everything[
        [
            "natural_accuracy",
            "attack_accuracy",
            "seeds",
            "utility_difference",
            "privacy_gain",
            "advantage",
            "detectable",
            "P_dominates",
            "paper_ratio",
            "verdict",
        ]
    ].assign(
        seeds=[seed_points(found) for found in everything["seeds"]],
        detectable=[f"{100 * value:.1f} points" for value in everything["detectable"]],
        P_dominates=[f"{value:.0%}" for value in everything["P_dominates"]],
        verdict=[
            "none: less accurate than any NoDef" if outside else verdict
            for outside, verdict in zip(everything["extrapolated"], everything["verdict"], strict=True)
        ],
    )
    shown = readable(rows, signed=["utility_difference", "privacy_gain", "advantage"])
    against_nodef = ["utility difference", "privacy gain", "P dominates", "paper ratio"]
    shown.loc[shown.index == "none", against_nodef] = ""
    return shown.rename(
        columns={
            "seeds": "AttAcc, each training seed",
            "P dominates": "P(dominates NoDef)",
            "paper ratio": "the paper's ratio",
            "verdict": "by this judge alone",
        }
    )


@needs_photos
def advantage_figure(book: Workbook, frame: pd.DataFrame) -> Any:
    """Advantage over NoDef's frontier, a row a defence and a judge; filled where the interval excludes 0 and
    NoDef's own checkpoints reach that accuracy."""
    shown = frame[frame["defence"] != "none"]
    if book.setup.is_external:
        return Markdown(GIVEN)
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
            "settled": [
                interval.excludes(0.0) and not outside
                for interval, outside in zip(shown["advantage"], shown["extrapolated"], strict=True)
            ],
        }
    )
    order = plots.order(shown["defence"])
    rows = rows.iloc[np.argsort([order.index(name) for name in shown["defence"]], kind="stable")]
    return plots.difference_plot(
        rows,
        x_label="advantage: AttAcc of NoDef at the same accuracy - AttAcc, points",
        left="leaks more",
        right="leaks less",
        title="Against a NoDef model of the same accuracy"
        + ("" if book.conclusive else " (a toy: too small to conclude)"),
    )


def verdicts(book: Workbook, frame: pd.DataFrame) -> str:
    """One line a defence: the advantage by every judge, and what may be said of all of them together."""
    if not isinstance(frame, pd.DataFrame):
        return UNAVAILABLE
    if book.setup.is_external:
        return GIVEN
    lines = []
    for defence in plots.order(frame.loc[frame["defence"] != "none", "defence"]):
        rows = frame[frame["defence"] == defence]
        row = rows.iloc[0]
        first = results.advantage_sentence(
            row["advantage"],
            detectable=row["detectable"],
            defence=label(defence),
            setup=book.setup.name,
            extrapolated=row["extrapolated"],
        )
        others = [
            f"{judge.replace('_', ' ')} {100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            for judge, found in zip(rows["evaluator"][1:], rows["advantage"][1:], strict=True)
        ]
        lines.append(
            f"- By the main evaluator: {first} By the other judges: {'; '.join(others)}.{_together(book, rows)}"
        )
    return "\n".join(lines)


def _together(book: Workbook, rows: pd.DataFrame) -> str:
    if not book.conclusive:
        return ""
    if rows["extrapolated"].any():
        return " **Less accurate than any NoDef: no verdict.**"
    here = f"in {book.trainings}, against one run of NoDef's frontier"
    sides: dict[str, list[str]] = {"helps": [], "hurts": [], "open": []}
    for judge, advantage in zip(rows["evaluator"], rows["advantage"], strict=True):
        side = "open" if not advantage.excludes(0) else "helps" if advantage.value > 0 else "hurts"
        sides[side].append(judge.replace("_", " "))
    if sides["helps"] and sides["hurts"]:
        return f" **The judges disagree, {here}.**"
    (side,) = [name for name in ("helps", "hurts") if sides[name]] or ["open"]
    if side == "open":
        return " **Not established by any judge.**"
    if not sides["open"]:
        return f" **Holds by every judge, {here}.**"
    return f" **Established by {', '.join(sides[side])}; not by {', '.join(sides['open'])}, {here}.**"
