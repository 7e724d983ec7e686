"""Notebook 03: what the targets are, how they were trained, and what each defence costs in accuracy."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import erasing, evaluation, plots, results, statistics
from lib.defences import build
from lib.reports.tables import pivot, points, seed_points
from lib.reports.workbook import Workbook
from lib.runtime import generator
from lib.stages import inversion, measures, targets
from lib.stages.targets import Trained
from lib.statistics import Interval

FLOOR = 3
"""A classifier below this many times chance on its own photos was probably not read as it was trained."""
AREA = "_erased_area"  # how the diagnostics of defences that erase end
DRAWS = 4096
NO_PHOTOS = (
    "**No accuracies**: this setup has no private photos (`data.private: {source: none}`), so it cannot be "
    "checked whether the classifier is read as it was trained. Compare the table above with your training code."
)


NOT_TRAINED = "Not trained here: this target is a given network."


# --- the check page -----------------------------------------------------------------------------------


def check_page(book: Workbook) -> pd.DataFrame:
    """What the workbook knows of the target, one row a fact: read from the setup for its own networks,
    detected for somebody's classifier."""
    trained = book.attack(book.defences[0]).target()
    model = trained.model.cpu()
    with torch.inference_mode():
        features, logits = model.both(torch.full((2, 3, model.image_size, model.image_size), 0.5))
    names = trained.meta.get("names") or getattr(model, "class_names", [])
    facts: dict[str, Any] = trained.meta.get("detected") or {
        "network": model.spec["kind"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "input": f"3 x {model.image_size} x {model.image_size}, values in [0,1]",
        "normalisation": "inside the network",
        "classes": model.num_classes,
        "feature layer": "input of the last linear layer",
        "feature size": features.shape[1],
    }
    facts |= {
        "class names": f"{names[0]} ... {names[-1]}" if len(names) else "unknown",
        "grey image": f"largest probability {float(logits.softmax(1).max()):.2f}, feature norm "
        f"{float(features.norm(dim=1)[0]):.1f}",
    }
    title = "your classifier" if book.setup.is_external else f"target of {book.setup.name}"
    return pd.DataFrame({"value": map(str, facts.values())}, index=pd.Index(facts, name=title))


def check_message(book: Workbook) -> str:
    """Whether the target recognises the private photos at all."""
    if not book.has_photos:
        return NO_PHOTOS
    right, labels = _right(book, book.attack(book.defences[0]).target())
    interval = statistics.clustered_mean(right, labels, seed=measures.SEED, average="micro")
    text = (
        f"Unseen private photos recognised: {interval.percent()} people; chance is {100 * book.chance:.1f} %."
    )
    if interval.value >= min(FLOOR * book.chance, 0.5):
        return text
    return (
        f"**Warning.** {text} Check the input size, the normalisation and the order of the classes: they must be "
        "those of the training."
    )


# --- how they were trained ----------------------------------------------------------------------------


def trained(book: Workbook) -> pd.DataFrame:
    """Train (or load) the run's targets and save their rows; an empty table without private photos."""
    return book.train() if book.has_photos else results.load_tables("no-photos")


def training_lengths(book: Workbook) -> pd.DataFrame:
    """As :meth:`Workbook.training_lengths`; an empty table for a given network."""
    return results.load_tables("not-trained") if book.setup.is_external else book.training_lengths()


def histories(book: Workbook) -> pd.DataFrame:
    """Training of every defence on the run's first seed: columns step, defence, loss, validation_accuracy."""
    parts = [
        pd.DataFrame(book.attack(defence).target().meta["history"]).assign(defence=defence)
        for defence in book.defences
    ]
    return pd.concat(parts, ignore_index=True)


def history_figure(book: Workbook) -> Figure | Markdown:
    """Loss and validation accuracy over the training of the run's first seed."""
    if book.setup.is_external:
        return Markdown(NOT_TRAINED)
    return plots.learning_curves(
        histories(book),
        metrics=["loss", "validation_accuracy"],
        percent=["validation_accuracy"],
        labels={"loss": "training loss", "validation_accuracy": "validation accuracy"},
        title=f"Training of the headline models, seed {book.training_seeds[0]}",
    )


def headline_steps(book: Workbook) -> dict[str, float]:
    """Training steps of the headline of every defence that tries several lengths; empty for a given network."""
    if book.setup.is_external:
        return {}
    tried = [defence for defence in book.defences if defence in book.setup.multiples]
    return {defence: float(book.attack(defence, 0).target().steps) for defence in tried}


def validation_curve(lengths: pd.DataFrame) -> pd.DataFrame:
    """Rows of :meth:`Workbook.training_lengths` on validation photos, each length once."""
    rows = lengths[(lengths["metric"] == "natural_accuracy") & (lengths["split"] == "validation")]
    return rows.drop_duplicates(["defence", "training_steps", "training_seed"])


def length_figure(book: Workbook, lengths: pd.DataFrame) -> Axes | Markdown:
    """Validation accuracy by training length, the headline ringed."""
    if book.setup.is_external:
        return Markdown(NOT_TRAINED)
    rows = validation_curve(lengths)
    longest = rows.groupby("defence")["training_steps"].max()
    open_ended = [name for name, steps in headline_steps(book).items() if steps >= longest.get(name, np.inf)]
    return plots.interval_curves(
        rows,
        x="training_steps",
        x_label="training steps",
        y_label="natural accuracy, validation",
        headline=headline_steps(book),
        title=f"The longest training tried is the best for {len(open_ended)} of {len(longest)} defences",
    )


def headline_was_tried(book: Workbook, lengths: pd.DataFrame) -> bool:
    """Whether every headline is the best of the lengths in the table by validation accuracy."""
    rows = validation_curve(lengths)
    best = rows.groupby("defence")["value"].max()
    chosen = rows.set_index(["defence", "training_steps"])["value"]
    return all(chosen[name, steps] == best[name] for name, steps in headline_steps(book).items())


def length_sentence(book: Workbook, lengths: pd.DataFrame) -> str:
    """Which training length each defence's headline has, and what it was chosen from."""
    if book.setup.is_external:
        return NOT_TRAINED
    rows = validation_curve(lengths)
    rows = rows[rows["training_seed"] == 0]
    base = book.setup.target.recipe["steps"]
    parts = []
    for defence, steps in headline_steps(book).items():
        tried = [round(base * multiple) for multiple in targets.multiples_of(book.setup, defence)]
        own = rows[(rows["defence"] == defence) & rows["training_steps"].isin(tried)].sort_values(
            "training_steps"
        )
        scores = ", ".join(f"{row.training_steps} steps {100 * row.value:.1f} %" for row in own.itertuples())
        parts.append(f"{defence}: {scores}; headline {steps:.0f}")
    return f"Preset {book.setup.name}, validation photos, training seed 0. {'. '.join(parts)}."


def diagnostics(book: Workbook) -> pd.DataFrame:
    """Whether each defence was active: the share of the image area that it hid during training, measured, and
    what its law gives. Rows per defence that erases, means over the run's seeds."""
    rows = []
    for defence in book.defences:
        for made in build(defence, book.setup.defences):
            if not hasattr(made, "law"):
                continue
            seen = [book.attack(defence, seed).target().meta["diagnostics"] for seed in book.training_seeds]
            own = re.compile(re.escape(made.name) + r"\..*" + AREA)
            areas = [found[key] for found in seen for key in found if own.fullmatch(key)]
            rows.append({"defence": defence, "measured": np.mean(areas), "by_law": _area(made.law, book)})
    frame = pd.DataFrame(rows, columns=["defence", "measured", "by_law"]).set_index("defence")
    return frame.assign(difference=frame["measured"] - frame["by_law"])


def _area(law: erasing.ErasingLaw, book: Workbook) -> float:
    if law.shape in ("square", "pixels"):
        return erasing.mean_area(law, book.setup.image_size)
    stream = generator(measures.SEED, "area")
    shares = erasing.exposure(law, book.setup.image_size, draws=DRAWS, generator=stream, seed=measures.SEED)
    return float(shares.mean())


# --- what defences cost -------------------------------------------------------------------------------


def accuracy_table(table: pd.DataFrame) -> pd.DataFrame | Markdown:
    """Natural accuracy of every defence by split, seeds joined."""
    if table.empty:
        return Markdown(NO_PHOTOS)
    wide = pivot(table, metrics=["natural_accuracy"], columns="split")
    return wide[["train", "validation", "test"]]


def beats_chance(book: Workbook, table: pd.DataFrame) -> bool:
    """Whether every target recognises its own training photos more often than a guess would."""
    rows = table[(table["metric"] == "natural_accuracy") & (table["split"] == "train")]
    return bool((rows["value"] > book.chance).all())


def natural_differences(book: Workbook, *, reference: str = "none") -> pd.DataFrame:
    """Natural accuracy on unseen photos, and its difference to NoDef on the same photos: means over photos and
    the run's training seeds; intervals resample people, with all their photos, and seeds.

    Returns:
        Columns defence, seeds (:class:`lib.statistics.SeedSummary`), natural_accuracy (Interval), difference
        (Interval, defence minus NoDef), detectable (the difference that would be found with 80 % power),
        mcnemar (exact p on the photos, first training seed, Holm's correction over the defences).
    """
    columns = ["defence", "seeds", "natural_accuracy", "difference", "detectable", "mcnemar"]
    if not book.has_photos:
        return pd.DataFrame(columns=columns)
    base, rows = _Answers(book, reference), []
    for defence in dict.fromkeys([reference, *book.defences]):
        ours = _Answers(book, defence)
        seeds = statistics.summarise_seeds(ours.by_person, photos=ours.photos, seed=measures.SEED)
        row = {"defence": defence, "seeds": seeds, "natural_accuracy": seeds.nested}
        row |= {"difference": None, "detectable": np.nan, "mcnemar": np.nan}
        if defence != reference:
            paired = statistics.compare_paired(
                ours.by_person, base.by_person, photos=ours.photos, seed=measures.SEED
            )
            row["difference"] = paired.difference
            row["detectable"] = paired.detectable if paired.detectable > 0 else np.nan
            row["mcnemar"] = statistics.mcnemar(ours.first, base.first).p_value
        rows.append(row)
    frame = pd.DataFrame(rows, columns=columns)
    tested = frame["mcnemar"].notna()
    if tested.any():
        frame.loc[tested, "mcnemar"] = statistics.holm(frame.loc[tested, "mcnemar"])
    return frame


class _Answers:
    """How a defence's models, one a training seed, answer the test photos.

    Attributes:
        by_person: (S, K) share of each person's photos recognised. photos: (K,) how many there are.
        first: (N,) 0/1 on each photo, first training seed.
    """

    def __init__(self, book: Workbook, defence: str) -> None:
        answers = [_right(book, book.attack(defence, seed).target()) for seed in book.training_seeds]
        means = [evaluation.identity_means(right, people) for right, people in answers]
        self.by_person = np.stack([found.mean.numpy() for found in means])
        self.photos = means[0].count.numpy().astype(float)
        self.first = answers[0][0].numpy()


def _right(book: Workbook, trained: Trained) -> tuple[torch.Tensor, torch.Tensor]:
    seen = inversion.judge_photos(book.setup, trained, "target")["test"]
    return evaluation.hits(seen.logits["target"], seen.labels).double(), seen.labels


def natural_sentences(book: Workbook, differences: pd.DataFrame) -> list[str]:
    """A verdict per defence."""
    return [
        results.difference_sentence(
            row.difference, metric="natural_accuracy", defence=row.defence, setup=book.setup.name
        )
        for row in differences.itertuples()
        if isinstance(row.difference, Interval)
    ]


def cost_table(cost: pd.DataFrame) -> pd.DataFrame:
    """The costs as text, differences in points."""
    shown = {
        "natural accuracy": [interval.percent() for interval in cost["natural_accuracy"]],
        "each training seed": [seed_points(found) for found in cost["seeds"]],
        "minus NoDef": [points(d) if isinstance(d, Interval) else "" for d in cost["difference"]],
        "detectable": [f"{100 * d:.1f} points" if np.isfinite(d) else "" for d in cost["detectable"]],
        "McNemar's p (Holm)": [f"{p:.2g}" if np.isfinite(p) else "" for p in cost["mcnemar"]],
    }
    return pd.DataFrame(shown, index=pd.Index(cost["defence"], name="defence"))


def cost_figure(book: Workbook, cost: pd.DataFrame) -> Axes | Markdown:
    """The paired differences to NoDef, in points."""
    rows = [
        (row.defence, row.difference) for row in cost.itertuples() if isinstance(row.difference, Interval)
    ]
    if not rows:
        return Markdown("One model only: nothing to compare.")
    frame = pd.DataFrame(
        [
            {"defence": name, "value": 100 * d.value, "low": 100 * d.low, "high": 100 * d.high}
            for name, d in rows
        ]
    )
    settled = sum(d.high < 0 for _, d in rows)
    verb = "costs" if settled == 1 else "cost"
    return plots.difference_plot(
        frame,
        by="defence",
        x_label="natural accuracy minus NoDef's, points",
        left="less accurate",
        right="more accurate",
        title=f"{settled} of {len(rows)} defences {verb} accuracy"
        if book.conclusive
        else "Too small to conclude",
    )


def cost_caption(book: Workbook, cost: pd.DataFrame) -> str:
    """What the figure is of."""
    if cost.empty:
        return NO_PHOTOS
    photos, people = len(book.world.test), cost["natural_accuracy"].iloc[0].n
    small = "" if book.conclusive else " Too small to conclude."
    return (
        f"Preset {book.setup.name}: {photos} test photos of {people} people, {len(book.training_seeds)} training "
        "seed(s), paired with NoDef; 95 % intervals over people and these seeds; hollow where nothing is "
        f"established.{small}"
    )


def finding(book: Workbook, cost: pd.DataFrame) -> str:
    """The verdict on every defence as a list."""
    sentences = natural_sentences(book, cost)
    if not sentences:
        return check_message(book)
    detectable = cost.loc[cost["difference"].map(lambda d: isinstance(d, Interval)), "detectable"]
    found = []
    for sentence, least in zip(sentences, detectable, strict=True):
        known = book.conclusive and np.isfinite(least)
        found.append(f"- {sentence}" + (f" (Could detect {100 * least:.1f} points.)" if known else ""))
    return "\n".join(found)
