"""Notebooks 08 and 09: is it the erasing, or only that fewer pixels are seen; and does the place matter?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lib import erasing, plots, results, statistics
from lib.defences import build, canonical
from lib.errors import UserError
from lib.plots import label
from lib.plots.style import grid, legend_below
from lib.reports.feature_report import law_of
from lib.reports.tables import points
from lib.reports.workbook import Workbook
from lib.stages import inversion, measures, targets
from lib.stages.inversion import Attack
from lib.statistics import Interval, PairedComparison
from lib.training import Defence

PARTIAL = ("re(0.1,0.4)", "re(0.5,0.5)")
PLACES = ("re(0.5,0.5)", "fe(0.5)", "re(0.5,0.5,location=toroidal)")
BINS = 6  # groups of pixels by how often they are hidden
EPOCHS = 20  # over which a law that changes is averaged
DRAWS = 4096  # masks per exposure map; standard error of a share below 0.8 points


def with_defences(book: Workbook, chosen: Sequence[str], usual: Sequence[str]) -> Workbook:
    """The workbook on the defences a notebook was given, else on the ``usual`` ones of its question; NoDef is
    always the reference.

    Raises:
        UserError: the target is a given network, so there is nothing to train.
    """
    if book.setup.is_external:
        raise UserError(
            f"{book.setup.name}: the target is a given network, so there is nothing to train and nothing for this "
            "notebook to compare; notebooks 01 to 06 look at it"
        )
    overrides = book.setup.defences
    names = dict.fromkeys(["none", *(canonical(name, overrides) for name in chosen or usual)])
    return replace(book, defences=tuple(names))


# --- 08: equal pixels ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One model of the comparison at equal exposure.

    Attributes:
        defence: ``none`` or an erasing one. share: of NoDef's steps. shown: share of each image's pixels that a
            step shows. pixels: share x shown, NoDef at full length being 1.
    """

    defence: str
    share: float
    shown: float

    @property
    def pixels(self) -> float:
        return self.share * self.shown

    @property
    def name(self) -> str:
        length = {1.0: "", 0.5: ", half as long", 0.75: ", ¾ as long"}
        return label(self.defence) + length.get(self.share, f", {self.share:.0%} as long")


def exposure_runs(book: Workbook) -> list[Run]:
    """NoDef and every erasing defence at NoDef's headline length, and for each defence the NoDef whose shorter
    training shows as many pixels (its share of the steps to a twentieth)."""
    runs = [Run("none", 1.0, 1.0)]
    for defence in book.defences:
        if law_of(book, defence) != defence:  # nothing is hidden
            continue
        (made,) = build(defence, book.setup.defences)
        areas = [law.p * sum(law.scale) / 2 for law in _laws(made)]  # before they are rounded to pixels
        wanted = 1 - sum(areas) / len(areas)
        runs += [
            Run(defence, 1.0, 1 - erased_share(book, defence)),
            Run("none", round(20 * wanted) / 20, 1.0),
        ]
    return list(dict.fromkeys(sorted(runs, key=lambda run: (run.defence != "none", -run.pixels))))


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Steps, share shown and pixels of each run, NoDef at full length being 1."""
    columns = ["model", "share of the steps", "share shown", "pixels"]
    return pd.DataFrame([(r.name, r.share, r.shown, r.pixels) for r in runs], columns=columns).set_index(
        "model"
    )


def erased_share(book: Workbook, defence: str) -> float:
    """Mean share of the image that a defence erases: exact where the law allows, else from draws."""
    return float(exposure(book, defence).mean())


def exposure(book: Workbook, defence: str) -> Tensor:
    """(S,S) probability that a position is erased at a visit, over draws, or over images where each has a fixed
    place; zero for NoDef."""
    size = book.setup.image_size
    (made,) = build(defence, book.setup.defences)
    law = getattr(made, "law", None)
    if law is None:
        return torch.zeros(size, size, dtype=torch.float64)
    return torch.stack([_exposure(book, law) for law in _laws(made)]).mean(0)


def _exposure(book: Workbook, law: erasing.ErasingLaw) -> Tensor:
    size, seed = book.setup.image_size, book.training_seeds[0]
    if law.shape in ("square", "pixels") and law.location != "fixed":
        return erasing.expected_exposure(law, size)
    return erasing.exposure(law, size, draws=DRAWS, generator=torch.Generator().manual_seed(0), seed=seed)


def _laws(made: Defence) -> list[erasing.ErasingLaw]:
    """The law of a training, or, where it changes, that of every epoch of some."""
    found = []
    for epoch in range(EPOCHS if getattr(made, "curriculum", 0) else 1):
        made.phase(epoch, EPOCHS)
        found.append(made.law)
    return found


def exposure_attacks(
    book: Workbook, runs: Sequence[Run], *, longest: float | None = None
) -> dict[Run, list[Attack]]:
    """The attacks on each run's models, one a training seed; ``longest``: NoDef's headline length if known."""
    longest = targets.headline(book.setup, "none") if longest is None else longest
    return {
        run: [book.attack(run.defence, seed, multiple=longest * run.share) for seed in book.training_seeds]
        for run in runs
    }


def measure_exposure(book: Workbook, runs: Sequence[Run]) -> pd.DataFrame:
    """Train and attack every run (saved as usual); columns name, defence, share, shown, pixels, metric,
    ``interval``, the per-identity ``values`` (seeds, K) and the ``photos`` (K,) they are weighted by, if any."""
    rows: list[dict[str, Any]] = []
    for run, attacks in exposure_attacks(book, runs).items():
        book.train_at([(attack.defence, attack.training_seed, attack.multiple) for attack in attacks])
        book.invert(attacks)
        about = {
            "name": run.name,
            "defence": run.defence,
            "share": run.share,
            "shown": run.shown,
            "pixels": run.pixels,
        }
        for metric, values in per_identity(book, attacks).items():
            rows.append({**about, "metric": metric, **_mean(book, metric, values)})
    return pd.DataFrame(rows)


def _mean(book: Workbook, metric: str, values: np.ndarray) -> dict[str, Any]:
    """The mean of (seeds, K) with its interval: natural accuracy over photos, all else over identities."""
    photos = book.test_photos if metric == "natural accuracy" else None
    interval = statistics.nested_mean(values, photos=photos, seed=measures.SEED)
    return {"interval": interval, "values": values, "photos": photos}


def _paired(first: pd.Series, second: pd.Series) -> statistics.PairedComparison:
    return statistics.compare_paired(
        first["values"], second["values"], photos=first["photos"], seed=measures.SEED
    )


def per_identity(book: Workbook, attacks: Sequence[Attack]) -> dict[str, np.ndarray]:
    """(seeds, K) natural accuracy on test photos, AttAcc by the main evaluator and the panel's majority, and
    the verifier's match rate, of models that differ in seeds only."""
    wanted = {
        ("natural_accuracy", ""): "natural accuracy",
        ("attack_accuracy_top1", "main"): "AttAcc, main",
        ("attack_accuracy_top1", "panel_majority"): "AttAcc, panel majority",
        ("verifier_match", "verifier"): "verifier match",
    }
    found: dict[str, list[list[float]]] = {name: [] for name in wanted.values()}
    for attack in attacks:
        steps = attack.target().steps
        names = [
            book.name(attack.defence, attack.training_seed, steps),
            book.name(attack.defence, attack.training_seed, steps, attack),
        ]
        folder = results.output_dir(book.setup.name)
        table = pd.concat([results.load_identities(name, folder=folder) for name in names])
        for (metric, evaluator), name in wanted.items():
            rows = table[(table["metric"] == metric) & (table["evaluator"] == evaluator)]
            ordered = rows.assign(identity=rows["identity"].astype(int)).sort_values("identity")
            found[name].append(ordered["value"].tolist())
    return {name: np.array(values) for name, values in found.items()}


def equal_pixels(frame: pd.DataFrame) -> pd.DataFrame:
    """Every erasing defence minus the NoDef that saw as many pixels: columns defence, control, metric and
    ``comparison`` (paired by identity)."""
    rows = []
    for defence in dict.fromkeys(frame.loc[frame["defence"] != "none", "defence"]):
        ours = frame[frame["defence"] == defence]
        nodef = frame[frame["defence"] == "none"]
        nearest = (nodef["pixels"] - ours["pixels"].iloc[0]).abs()
        control = nodef[nearest == nearest.min()]
        for metric in dict.fromkeys(frame["metric"]):
            first, second = (part[part["metric"] == metric].iloc[0] for part in (ours, control))
            compared = _paired(first, second)
            about = {"defence": defence, "control": control["name"].iloc[0], "metric": metric}
            rows.append({**about, "comparison": compared})
    return pd.DataFrame(rows)


def exposure_figure(frame: pd.DataFrame) -> Figure:
    """Natural accuracy and AttAcc over the pixels shown in training, to five percent; the line joins NoDef's
    lengths."""
    metrics = ("natural accuracy", "AttAcc, main")
    figure, axes = grid(len(metrics), columns=2, height=3.8)
    for ax, metric in zip(axes, metrics, strict=True):
        rows = frame[frame["metric"] == metric]
        bounds = [(i.value, i.low, i.high) for i in rows["interval"]]
        shown = pd.DataFrame(bounds, columns=["value", "low", "high"], index=rows.index)
        shown = shown.assign(defence=rows["defence"], pixels=5 * (20 * rows["pixels"]).round())
        plots.interval_curves(shown, x="pixels", x_label="pixels shown, % of NoDef's", y_label=metric, ax=ax)
        ax.get_legend().remove()
        ax.set_ylim(0, 1.02)
    legend_below(figure, axes)
    return figure


# --- 09: the place ------------------------------------------------------------------------------------


def exposure_table(book: Workbook) -> pd.DataFrame:
    """What each law hides: mean, centre and corner of its map, its spread over positions, and the share of one
    photo's pixels that training never shows."""
    rows = []
    for defence in book.defences:
        (made,) = build(defence, book.setup.defences)
        law = getattr(made, "law", None)
        shares = exposure(book, defence)
        middle = shares.shape[0] // 2
        again = law is None or law.location in ("random", "toroidal")
        rows.append(
            {
                "defence": label(defence),
                "mean": float(shares.mean()),
                "centre": float(shares[middle, middle]),
                "corner": float(shares[0, 0]),
                "spread over positions": float(shares.std()),
                "never shown": _never(shares, again),
            }
        )
    return pd.DataFrame(rows).set_index("defence")


def _never(shares: Tensor, again: bool) -> float:
    """A position that is hidden in every draw is never shown; with a fixed place, all that is erased."""
    return float((shares >= 1 - 1e-9).double().mean()) if again else float(shares.mean())


def places(book: Workbook) -> pd.DataFrame:
    """Every defence of the run at its headline length: columns defence, metric, interval, values, photos."""
    rows = []
    for defence in book.defences:
        attacks = [book.attack(defence, seed) for seed in book.training_seeds]
        for metric, values in per_identity(book, attacks).items():
            rows.append({"defence": defence, "metric": metric, **_mean(book, metric, values)})
    return pd.DataFrame(rows)


def against(frame: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Every defence but NoDef minus ``reference``, paired by identity: columns defence, control, metric,
    comparison."""
    rows = []
    base = frame[frame["defence"] == reference].set_index("metric")
    for _, row in frame.iterrows():
        if row["defence"] not in ("none", reference):
            about = {"defence": row["defence"], "control": label(reference), "metric": row["metric"]}
            rows.append({**about, "comparison": _paired(row, base.loc[row["metric"]])})
    return pd.DataFrame(rows)


def error_maps(book: Workbook, attack: Attack) -> Tensor:
    """(K,S,S) mean absolute difference between a person's mean kept reconstruction and mean private training photo:
    where the attack misses the person."""
    made = inversion.reconstruct(attack)
    images = inversion.pictures(attack, range(len(made.labels)), made.selected)
    photos, labels = book.world.train.float(), book.world.train.labels
    private = torch.stack([photos[labels == k].mean(0) for k in made.labels.tolist()])
    return (images.mean(1) - private).abs().mean(1)


@dataclass(frozen=True)
class Misses:
    """How much farther the attack is off in the pixels that erasing hides most than in those that it hides least.

    Attributes:
        defence: the erasing model. bins: groups of pixels of equal count, of which the ends are compared.
        own, control: of it and of NoDef, ``difference`` own minus control, paired by person; means of pixels in
            [0, 1], over people. None where every position is hidden equally often.
    """

    defence: str
    bins: int
    own: Interval
    control: Interval
    difference: Interval


def misses(
    defence: str, exposure: Tensor, errors: Mapping[str, Tensor], *, bins: int = BINS
) -> Misses | None:
    """From the :func:`error_maps` of ``defence`` and of ``none``, of the same people; None where ``exposure`` (S,S)
    is the same everywhere."""
    if float(exposure.max() - exposure.min()) < 1e-9:
        return None
    groups = [torch.from_numpy(group) for group in plots.by_exposure(exposure, bins)]
    own, control = (
        (
            errors[name].flatten(1)[:, groups[-1]].mean(1) - errors[name].flatten(1)[:, groups[0]].mean(1)
        ).numpy()
        for name in (defence, "none")
    )
    means = (statistics.nested_mean(values[None], seed=measures.SEED) for values in (own, control))
    difference = statistics.compare_paired(own, control, seed=measures.SEED).difference
    return Misses(defence, bins, *means, difference)


def misses_title(found: Misses | None) -> str:
    """The finding of the figure, in two lines."""
    if found is None:
        return "Every position is hidden equally often: nothing to compare"
    return (
        "Error in the pixels hidden most minus in those hidden least:\n"
        f"{label(found.defence)} {found.own.value:+.3f}, NoDef {found.control.value:+.3f}"
    )


def misses_sentence(book: Workbook, found: Misses | None) -> str:
    """Whether the attack misses what was hidden, in words."""
    if found is None:
        return "The first law hides every position equally often: there is no place that the attack could miss more."
    own, control, difference = (
        interval.plain(signed=True, count=False) for interval in (found.own, found.control, found.difference)
    )
    name = label(found.defence)
    text = (
        f"Error in the most hidden of {found.bins} groups of pixels minus that in the least hidden: {name} {own}, "
        f"NoDef {control}; {name} minus NoDef, paired by person, {difference} (n = {found.difference.n}, one training "
        "seed)"
    )
    if not book.conclusive:
        return f"{text}. **Too small to conclude.**"
    answer = _side(
        found.difference,
        "No: by less than it misses the same places of NoDef, which hides nothing",
        "Yes: by more than it misses the same places of NoDef, which hides nothing",
        "Not established that it misses them by more than the same places of NoDef, which hides nothing",
    )
    return f"**{answer}.** {text}."


# --- both ---------------------------------------------------------------------------------------------


def table_of(frame: pd.DataFrame, index: str) -> pd.DataFrame:
    """Intervals as text, a row per ``index`` and a column per metric."""
    shown = frame.assign(cell=[interval.percent(count=False) for interval in frame["interval"]])
    wide = shown.pivot(index=index, columns="metric", values="cell")
    return wide.reindex(index=list(dict.fromkeys(frame[index])), columns=list(dict.fromkeys(frame["metric"])))


def difference_frame(compared: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric for :func:`lib.plots.difference_plot`, in points: columns label, value, low, high."""
    rows = compared[compared["metric"] == metric]
    return pd.DataFrame(
        {
            "label": [f"{label(row.defence)}\nminus {row.control}" for row in rows.itertuples()],
            "value": [100 * c.difference.value for c in rows["comparison"]],
            "low": [100 * c.difference.low for c in rows["comparison"]],
            "high": [100 * c.difference.high for c in rows["comparison"]],
        }
    )


def difference_lines(book: Workbook, compared: pd.DataFrame) -> str:
    """A line a comparison: natural accuracy, AttAcc and the verifier, and what may be said."""
    lines = []
    for (defence, control), rows in compared.groupby(["defence", "control"], sort=False):
        parts = {row.metric: row.comparison for row in rows.itertuples()}
        text = "; ".join(f"{metric} {points(c.difference)}" for metric, c in parts.items())
        lines.append(f"- {label(defence)} minus {control}: {text}. {_verdict(book, parts)}")
    return "\n".join(lines)


def _verdict(book: Workbook, parts: dict[str, PairedComparison]) -> str:
    natural, leak = parts["natural accuracy"].difference, parts["AttAcc, main"]
    if not book.conclusive:
        return "**Too small to conclude.**"
    return (
        f"**{_side(leak.difference, 'leaks less', 'leaks more', 'no difference in AttAcc established')}, "
        + (
            f"{_side(natural, 'less accurate', 'more accurate', 'no difference in accuracy established')}** "
            f"in {book.trainings} (a difference in AttAcc of {100 * leak.detectable:.1f} points could have been "
            "detected)."
        )
    )


def _side(interval: Interval, below: str, above: str, neither: str) -> str:
    if not interval.excludes(0):
        return neither
    return below if interval.high < 0 else above
