"""Notebook 04: how near a prior's images come to public photos it never saw, and how it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lib import evaluation, plots, results, statistics
from lib.data import Images
from lib.data.checks import unseen_among
from lib.priors import Eigenfaces
from lib.reports.workbook import Workbook
from lib.results.sentences import metric_name, show_interval, show_number
from lib.runtime import device, generator
from lib.setups import Setup
from lib.stages import inversion, measures, priors, targets
from lib.stages.measures import Row
from lib.statistics import Interval

GROUPS = 5
"""Disjoint groups of images; each gives an independent estimate, and their spread the interval."""
METRICS = ("kid", "precision", "recall", "density", "coverage")
PUBLIC, PRIVATE = "public photos", "private photos"
"""The references beside the priors: what a perfect prior would reach, and how far the private people are."""
FEWEST_ROWS = 3
SPLITS = {"public_held_out": "unseen public photos", "private_test": "private photos"}
TRACES = {
    "discriminator_loss": "critic's loss",
    "generator_loss": "generator's loss",
    "real_logit": "critic's score, photos",
    "fake_logit": "critic's score, samples",
    "r1": "squared gradient at photos",
}


@dataclass(frozen=True)
class Quality:
    """Images of several sources against held-out public photos.

    Attributes:
        setup: its name. network: in whose features. size: images per group.
        groups: source -> metric -> (GROUPS,) estimates.
        nearer: prior -> share of its samples nearer to a training photo than to a held-out one. A prior that
            copies photos exceeds one half.
        critic: prior -> mean logit of its critic on training photos, held-out photos and samples; empty
            without a critic.
    """

    setup: str
    network: str
    size: int
    groups: dict[str, dict[str, np.ndarray]]
    nearer: dict[str, Interval]
    critic: dict[str, dict[str, float]]

    def interval(self, source: str, metric: str) -> Interval:
        """Mean over the groups with Student's interval, cut to what the metric can be; if all groups give 0,
        or all give 1, the limit away from it is the exact one for as many images."""
        found = statistics.t_interval(self.groups[source][metric])
        if not results.is_fraction(metric):
            return found
        bound = statistics.zero_event_bound(self.size * GROUPS) if found.low == found.high else 0.0
        low, high = found.low - bound, found.high + bound
        return Interval(found.value, max(0.0, low), min(1.0, high), found.n)

    def difference(self, first: str, second: str, metric: str) -> Interval:
        """First minus second; paired, because both are compared with the same held-out photos."""
        return statistics.t_interval(self.groups[first][metric] - self.groups[second][metric])

    def table(self) -> pd.DataFrame:
        """Sources x metrics as text with intervals."""
        cells = {
            source: {metric_name(metric): _text(self.interval(source, metric), metric) for metric in METRICS}
            for source in self.groups
        }
        frame = pd.DataFrame(cells).T
        copied = {name: _text(interval, "rate") for name, interval in self.nearer.items()}
        return frame.assign(**{"nearer to training than held out": pd.Series(copied)}).fillna("")


def _text(interval: Interval, metric: str) -> str:
    return f"{show_number(interval.value, metric)} {show_interval(interval.low, interval.high, metric)}"


# --- against held-out photos --------------------------------------------------------------------------


def quality(book: Workbook) -> Quality:
    """Judge every prior of a setup, save ``curves/<setup>__prior-quality`` and return what was found.

    Features are the verifier's: a network that saw neither the private nor the public people. Held-out
    photos that are also among the training photos are left out.
    """
    setup, world = book.setup, book.world
    network, model = _network(book)
    held_out = unseen_among(world.public_held_out, world.public)
    private = world.train if book.has_photos else None
    size = min(len(photos) for photos in (held_out, world.public, private) if photos is not None) // GROUPS

    def seen(images: Tensor, **options: Any) -> Tensor:
        return evaluation.judge(images, {network: model}, batch_size=128, **options)[network][0]

    def drawn(images: Images, name: str) -> Tensor:
        stream = generator(measures.SEED, "prior quality", name)
        return images.pixels[torch.randperm(len(images), generator=stream)[: size * GROUPS]]

    unseen, training = drawn(held_out, "held out"), drawn(world.public, "training")
    real, known = seen(unseen), seen(training)
    groups, nearer, critic = {}, {}, {}
    for kind in setup.priors:
        faces = priors.load(setup, kind)
        latents = faces.sample(size * GROUPS, generator=generator(measures.SEED, "prior quality", kind))
        fake = seen(latents, synthesise=faces.synthesise)
        groups[kind] = _compare(real, fake)
        close = torch.cdist(fake, known).amin(1) < torch.cdist(fake, real).amin(1)
        nearer[kind] = statistics.wilson(int(close.sum()), len(close))
        if faces.critic is not None:
            pictures = inversion.synthesise(priors.load(setup, kind), latents)
            shown = {"training photos": training, "held-out photos": unseen, "samples": pictures}
            critic[kind] = {name: _mean_logit(faces.critic, images) for name, images in shown.items()}
    groups[PUBLIC] = _compare(real, known)
    if private is not None:
        groups[PRIVATE] = _compare(real, seen(drawn(private, "private")))
    found = Quality(setup.name, network, size, groups, nearer, critic)
    results.save_curves(quality_rows(found), f"{setup.name}__prior-quality", allow_missing={"critic_logit"})
    return found


def _network(book: Workbook) -> tuple[str, torch.nn.Module]:
    role = "verifier" if book.has_photos else "target"  # without private photos there is no verifier
    trained = targets.judge(book.setup, role) if book.has_photos else targets.target(book.setup, "none", 0)
    return role, trained.model.to(device())


def _compare(real: Tensor, fake: Tensor) -> dict[str, np.ndarray]:
    parts = list(zip(real.chunk(GROUPS), fake.chunk(GROUPS), strict=True))
    shapes = [evaluation.prdc(a, b) for a, b in parts]
    found = {metric: np.array([getattr(shape, metric) for shape in shapes]) for metric in METRICS[1:]}
    kid = [float(evaluation.squared_mmd(a.double(), b.double())) for a, b in parts]
    return {"kid": np.array(kid), **found}


@torch.inference_mode()
def _mean_logit(critic: Any, images: Tensor) -> float:
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    return float(torch.cat([critic(part.to(device())).cpu() for part in scaled.split(128)]).mean())


def quality_rows(found: Quality) -> list[Row]:
    """Rows of ``curves/``: every source and metric; n counts groups, or images for the last two metrics."""
    rows = []
    for source in found.groups:
        for metric in METRICS:
            rows.append(_row(found, source, metric, found.interval(source, metric)))
    rows += [_row(found, kind, "nearer_to_training_rate", share) for kind, share in found.nearer.items()]
    for kind, means in found.critic.items():
        for images, value in means.items():
            split = images.replace("-", "_").replace(" ", "_")
            missing = Interval(value, np.nan, np.nan, found.size * GROUPS)
            rows.append({**_row(found, kind, "critic_logit", missing), "split": split, "evaluator": "critic"})
    return rows


def _row(found: Quality, source: str, metric: str, interval: Interval) -> Row:
    prior = "" if source in (PUBLIC, PRIVATE) else source
    return {
        **_empty(found.setup, prior),
        "curve": "prior_quality",
        "x_name": "images_per_group",
        "x": float(found.size),
        "metric": metric,
        "evaluator": found.network,
        "split": "samples" if prior else source.replace(" ", "_"),
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
    }


def _empty(setup: str, prior: str) -> Row:
    names = ("defence", "training_steps", "attack", "budget", "training_seed", "attack_seed")
    return {"setup": setup, "prior": prior, **dict.fromkeys(names, "")}


def quality_sentence(found: Quality, *, conclusive: bool) -> str:
    """Which prior is nearer to unseen public photos, in words, with the reference beside it."""
    kids = "; ".join(f"{name} {_text(found.interval(name, 'kid'), 'kid')}" for name in found.groups)
    text = (
        f"Preset {found.setup}, KID to held-out public photos in the {found.network}'s features, "
        f"{GROUPS} groups of {found.size} images, 95 % intervals over groups: {kids}."
    )
    kinds = list(found.nearer)
    if not conclusive:
        return f"{text} Too small to conclude."
    if len(kinds) < 2:
        return text
    gap = found.difference(kinds[0], kinds[1], "kid")
    better = kinds[1] if gap.low > 0 else kinds[0] if gap.high < 0 else None
    words = f"{better} is nearer" if better else "no difference established"
    text += f" {kinds[0]} minus {kinds[1]}: {_text(gap, 'kid')}: {words}."
    copying = [kind for kind, share in found.nearer.items() if share.low > 0.5]
    return f"{text} " + (
        f"{' and '.join(copying)} samples lie nearer to training photos than to unseen ones: it memorises."
        if copying
        else "No prior's samples lie nearer to training photos than to unseen ones: no sign of memorising."
    )


# --- what eigenfaces can express ----------------------------------------------------------------------


def expressed(book: Workbook, *, kind: str = "eigenfaces") -> pd.DataFrame:
    """Share of the variance of photos that the first k eigenfaces express, k doubling; saved as
    ``curves/<setup>__eigenfaces-components``.

    Public photos are the held-out ones, private ones those for testing: the gap is how far the private
    people are from the prior's world.

    Returns:
        Rows of :data:`lib.results.CURVE_COLUMNS`.
    """
    faces = priors.load(book.setup, kind)
    assert isinstance(faces, Eigenfaces)
    sets = {"public_held_out": book.world.public_held_out}
    if book.has_photos:
        sets["private_test"] = book.world.test
    counts = [2**i for i in range(faces.latent_dim.bit_length()) if 2**i <= faces.latent_dim]
    rows = []
    for split, photos in sets.items():
        identity = photos.labels if split == "private_test" else torch.arange(len(photos))
        for count, interval in zip(counts, _shares(faces, photos, identity, counts), strict=True):
            rows.append(
                {
                    **_empty(book.setup.name, kind),
                    "curve": "eigenfaces_components",
                    "x_name": "components",
                    "x": float(count),
                    "metric": "expressed_variance_fraction",
                    "evaluator": "",
                    "split": split,
                    "value": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "n": interval.n,
                }
            )
    results.save_curves(rows, f"{book.setup.name}__eigenfaces-components")
    return pd.DataFrame(rows)


def expressed_figure(rows: pd.DataFrame) -> Axes:
    """Expressed variance over the number of components, public and private photos."""
    return plots.interval_curves(
        rows.assign(photos=rows["split"].map(SPLITS)),
        x="x",
        by="photos",
        looks=plots.set_styles(SPLITS.values(), known={}),
        x_label="components",
        y_label="share of variance expressed",
        logarithmic_x=True,
        title="How much of a photo eigenfaces can express",
    )


def private_is_harder(shares: pd.DataFrame) -> bool:
    """Whether private photos are expressed less than public ones by the first half of the counts of components
    (with all of them little is left to differ). True without private photos."""
    if "private_test" not in shares:
        return True
    half = shares.iloc[: len(shares) // 2]
    return bool((half["private_test"] < half["public_held_out"]).all())


def expressed_sentence(rows: pd.DataFrame, *, conclusive: bool) -> str:
    """What all components together express, in words."""
    last = rows[rows["x"] == rows["x"].max()]
    parts = [
        f"{SPLITS[row.split]} {_text(Interval(row.value, row.low, row.high, row.n), row.metric)} (n = {row.n})"
        for row in last.itertuples()
    ]
    small = "" if conclusive else " Too small to conclude."
    return (
        f"Preset {last['setup'].iloc[0]}: {last['x'].iloc[0]:.0f} components express of the variance of "
        f"{'; of '.join(parts)}, with 95 % intervals over photos and over people.{small}"
    )


def _shares(faces: Eigenfaces, photos: Images, identity: Tensor, counts: list[int]) -> list[Interval]:
    """One interval per count, over identities."""
    total, inside = [], []
    for index in torch.arange(len(photos)).split(512):
        images = photos.float(index).to(faces.mean.device)
        total.append((images - faces.mean).square().flatten(1).sum(1).cpu())
        inside.append((faces.project(images) * faces.scale).square().cumsum(1).cpu())
    people = torch.unique(identity, return_inverse=True)[1]
    columns = torch.cat(
        [torch.cat(total)[:, None], torch.cat(inside)[:, [k - 1 for k in counts]]], 1
    ).double()
    sums = torch.zeros(int(people.max()) + 1, columns.shape[1], dtype=torch.float64)
    sums.index_add_(0, people, columns)
    return [
        statistics.clustered_statistic(
            sums[:, [0, j + 1]].numpy(), lambda m: m[:, 1] / m[:, 0], seed=measures.SEED
        )
        for j in range(len(counts))
    ]


# --- the training of the GAN --------------------------------------------------------------------------


def gan_history(book: Workbook, *, kind: str = "stylegan") -> pd.DataFrame:
    """The training's history, a row every 100 steps; saved as ``curves/<setup>__prior-training``."""
    history = pd.DataFrame(priors.artifact(book.setup, kind).meta["history"])
    measured = [name for name in history if name not in ("step", "images")]
    long = history.melt("step", measured, "metric").dropna(subset="value")
    window = int(history["images"].iloc[0])
    rows = [
        {
            **_empty(book.setup.name, kind),
            "curve": "prior_training",
            "x_name": "step",
            "x": float(row.step),
            "metric": row.metric,
            "evaluator": "",
            "split": "",
            "value": row.value,
            "low": np.nan,
            "high": np.nan,
            "n": window,
        }
        for row in long.itertuples()
    ]
    results.save_curves(rows, f"{book.setup.name}__prior-training", allow_missing=set(measured))
    return history.assign(prior=kind)


def gan_figure(history: pd.DataFrame) -> Figure | Markdown:
    """Losses, the critic's scores and its gradient over the training; in words if it was too short to draw."""
    if len(history) < FEWEST_ROWS:
        return Markdown(f"Trained for {history['step'].iloc[-1]} steps only: no curve to draw.")
    shown = [name for name in TRACES if name in history]
    return plots.learning_curves(
        history.assign(defence="none"),
        metrics=shown,
        labels=TRACES,
        smooth=max(1, len(history) // 40),
        title=f"{len(history)} rows over {history['step'].iloc[-1]} steps, {history['images'].iloc[-1]:,} images shown",
    )


def critic_table(found: Quality) -> pd.DataFrame:
    """The critic's mean score of training photos, held-out photos and samples."""
    frame = pd.DataFrame(found.critic).T.rename_axis("critic of")
    return frame.assign(gap=frame["training photos"] - frame["held-out photos"]).round(2)


def finding(book: Workbook, found: Quality, rows: pd.DataFrame) -> str:
    """What the page found, in words."""
    conclusive = book.conclusive
    sentences = [
        quality_sentence(found, conclusive=conclusive),
        expressed_sentence(rows, conclusive=conclusive),
    ]
    return "\n".join(f"- {sentence}" for sentence in sentences)


# --- pictures -----------------------------------------------------------------------------------------


def sample_images(setup: Setup, kind: str, count: int, *, truncation: float = 1.0, seed: int = 0) -> Tensor:
    """``count`` images (n,3,S,S) in [0,1] of a prior; the same latents for every truncation."""
    stream = generator(seed, "prior sheet", kind)
    latents = priors.load(setup, kind).sample(count, generator=stream, truncation=truncation)
    return inversion.synthesise(priors.load(setup, kind), latents)


def prior_card(book: Workbook) -> pd.DataFrame:
    """What each prior is: kind, latent values, stored numbers, training steps, critic."""
    rows = {}
    for kind in book.setup.priors:
        faces, artifact = priors.load(book.setup, kind), priors.artifact(book.setup, kind)
        rows[kind] = {
            "latent values": faces.latent_dim,
            "stored numbers": sum(tensor.numel() for tensor in artifact.tensors.values()),
            "image": f"3 x {faces.image_size} x {faces.image_size}",
            "training steps": artifact.meta.get("steps", "none"),
            "critic": faces.critic is not None,
            "stages for intermediate features": len(faces.blocks()),
        }
    return pd.DataFrame(rows).T
