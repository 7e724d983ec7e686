"""Notebook 02: how often a law of erasing hides each position, and whether that is torchvision's law."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.transforms import RandomErasing

from lib import erasing, statistics
from lib.defences import build
from lib.erasing import ErasingLaw
from lib.reports.prior_quality import sample_images
from lib.reports.workbook import Workbook
from lib.runtime import generator
from lib.stages import exhibits, measures

DRAWS = 20_000
ERRORS = 5.0
"""Standard errors that an estimated exposure may be off its exact value, over all pixels of a map."""


def laws(book: Workbook) -> dict[str, ErasingLaw]:
    """The laws of the run's defences that erase, by defence."""
    built = {defence: build(defence, book.setup.defences)[0] for defence in book.defences}
    return {defence: made.law for defence, made in built.items() if hasattr(made, "law")}


def exposure_maps(chosen: Mapping[str, ErasingLaw], size: int, *, draws: int = DRAWS) -> dict[str, Tensor]:
    """(S,S) share of draws in which each position is erased, per law. A law that is fixed per image is
    averaged over images; one that is fixed for all gives a single mask."""
    return {
        name: erasing.exposure(
            law, size, draws=draws, generator=generator(measures.SEED, "exposure", name), seed=measures.SEED
        )
        for name, law in chosen.items()
    }


def exposure_table(
    chosen: Mapping[str, ErasingLaw], maps: Mapping[str, Tensor], *, draws: int = DRAWS
) -> pd.DataFrame:
    """Exposure at the centre, half way to the corner, at the middle of an edge and in the corner, the mean
    area, and how far the estimate is from the exact value where there is one.

    Columns mean_area, centre, quarter, edge, corner (fractions), ``off`` (largest deviation of a pixel from
    :func:`lib.erasing.expected_exposure` in standard errors; NaN where no exact value is known).
    """
    rows = {}
    for name, values in maps.items():
        side = len(values)
        places = {"centre": (2, 2), "quarter": (4, 4), "edge": (2, 0), "corner": (0, 0)}
        at = {
            key: float(values[tuple(side // d if d else 0 for d in where)]) for key, where in places.items()
        }
        rows[name] = {"mean_area": float(values.mean()), **at, "off": _deviation(chosen[name], values, draws)}
    return pd.DataFrame(rows).T.rename_axis("law")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`exposure_table` as a person reads it: nothing where there is no number."""
    cells = table.map(lambda value: "" if np.isnan(value) else f"{value:.3f}")
    return cells.rename(columns=lambda name: name.replace("_", " "))


def _deviation(law: ErasingLaw, values: Tensor, draws: int) -> float:
    if law.location == "fixed" or law.shape not in ("square", "pixels"):
        return np.nan
    exact = erasing.expected_exposure(law, len(values))
    # The floor keeps positions that are almost never hidden from having no error at all.
    error = (exact * (1 - exact) / draws).sqrt().clamp(min=1 / draws)
    return float(((values - exact).abs() / error).max())


def torchvision_table(chosen: Mapping[str, ErasingLaw], size: int, *, draws: int = 2000) -> pd.DataFrame:
    """Mean erased area of torchvision's ``RandomErasing``, image by image, beside ours, for the laws that it
    knows (squares and rectangles, drawn anew, in bounds); ``difference`` with a 95 % interval."""
    rows = {}
    for name, law in chosen.items():
        if law.location == "random" and law.shape in ("square", "rectangle"):
            ours = erasing.draw_mask(
                law, torch.arange(draws), size, generator=generator(measures.SEED, "ours", name)
            )
            ours = ours.float().mean((1, 2)).numpy()
            theirs = _torchvision_areas(law, size, draws, name)
            error = 1.96 * float(np.sqrt((ours.var() + theirs.var()) / draws))
            gap = float(ours.mean() - theirs.mean())
            rows[name] = {
                "ours": ours.mean(),
                "torchvision": theirs.mean(),
                "difference": statistics.Interval(gap, gap - error, gap + error, draws),
            }
    return pd.DataFrame(rows).T.rename_axis("law")


def _torchvision_areas(law: ErasingLaw, size: int, draws: int, name: str) -> np.ndarray:
    transform = RandomErasing(p=law.p, scale=law.scale, ratio=law.ratio, value=-1.0)
    image = torch.zeros(3, size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(measures.SEED, "torchvision", name).initial_seed())
        return np.array([float((transform(image)[0] < 0).float().mean()) for _ in range(draws)])


def finding(table: pd.DataFrame) -> str:
    """Centre against corner of every law, in words. Arithmetic of the law: true for any photos."""
    parts = []
    for name, row in table.iterrows():
        if row["centre"] > 2 * max(row["corner"], 1 / DRAWS):
            where = f"the centre in {row['centre']:.0%} of the draws, the corner in {row['corner']:.1%}"
        else:
            where = f"centre and corner in {row['centre']:.0%} and {row['corner']:.0%} of the draws"
        parts.append(f"- `{name}` hides {row['mean_area']:.0%} of the image: {where}.")
    return "\n".join(parts)


def pixels_seen(table: pd.DataFrame, steps: int) -> pd.DataFrame:
    """How much of the data a training of ``steps`` shows under each law, and after how many steps NoDef has
    seen as many pixels: the control that a defence by erasing has to beat."""
    seen = 1 - table["mean_area"].astype(float)
    equal = (seen * steps).round().astype(int)
    return pd.DataFrame({"share of pixels seen": seen.round(3), "steps of NoDef with as many pixels": equal})


def demonstration(book: Workbook) -> Tensor:
    """Six images (n,3,S,S) in [0,1] to be erased: the photos shown everywhere, of three people, or prior
    samples where there are no private photos."""
    if not book.has_photos:
        return sample_images(book.setup, next(iter(book.setup.priors)), 6)
    return torch.cat(exhibits.by_person(exhibits.shown_photos(book.world)))[:6]
