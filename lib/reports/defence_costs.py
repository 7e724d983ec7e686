"""Notebook 10: what a training step of every defence takes, in time and memory, as a ratio to NoDef's."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from lib import defences as registry
from lib.data import Images
from lib.models import build_classifier
from lib.plots import label
from lib.reports.workbook import Workbook
from lib.runtime import device, generator
from lib.setups import Setup
from lib.stages import inversion
from lib.stages.targets import recipe_of
from lib.training import Defence, train_classifier

CHEAP = 1.3  # times NoDef's training step: what is aimed at
MARGIN = 1.2  # over the passes: what surrounds them costs time, too
ROUNDS = 3  # of the measurement of costs, all defences in each; one in a setup that concludes nothing
STEPS = 3  # of an epoch
EPOCHS = 2  # the first one warms up, the other is timed; memory needs no second one


def measure(book: Workbook) -> pd.DataFrame:
    """What a training step takes, as a ratio to that of NoDef right before or after it: columns ``time`` (median over
    rounds, in each of which every defence is timed; on a CPU of its own seconds, whatever else runs), ``low, high``
    (their range), ``same`` and ``same_low`` (the median and the least as a ratio to NoDef's in the same precision: fp32
    for one that is trained in it), ``expected`` (passes, :attr:`Defence.cost`) and ``memory`` (most bytes held at
    once). NoDef's own row is of NoDef beside NoDef: what the machine adds. On random photos; pre-training is not in it.
    """
    setup = book.setup
    photos = _photos(setup)
    names = list(dict.fromkeys(["none", *book.study.pages]))
    memory = np.array([_peak(setup, name, photos) for name in names])
    rounds = ROUNDS if setup.conclusive else 1
    ratios = [[_beside(setup, name, photos, turn) for name in names] for turn in range(rounds)]
    own, same = np.moveaxis(np.array(ratios), -1, 0)
    return pd.DataFrame(
        {
            "defence": names,
            "time": np.median(own, 0),
            "low": own.min(0),
            "high": own.max(0),
            "same": np.median(same, 0),
            "same_low": same.min(0),
            "expected": [math.prod(d.cost for d in registry.build(name, setup.defences)) for name in names],
            "memory": memory / memory[0],
        }
    )


def _beside(setup: Setup, defence: str, photos: Images, turn: int) -> tuple[float, float]:
    """A defence's time as a ratio to NoDef's, and to NoDef's in the precision of the defence; NoDef first in even
    turns, last in odd ones, so that a machine that slows down favours neither."""
    runs: list[tuple[str, list[Defence]]] = [("none", []), (defence, [])]
    if any(part.exact for part in registry.build(defence, setup.defences)):
        runs.append(("none", [_InFp32()]))
    ways = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
    seconds = {way: _seconds(setup, runs[way][0], photos, runs[way][1]) for way in ways}
    return seconds[1] / seconds[0], seconds[1] / seconds.get(2, seconds[0])


def _photos(setup: Setup) -> Images:
    people, batch = inversion.people_of(setup), recipe_of(setup.target, setup.name).batch
    stream = generator(0, "costs")
    size = setup.image_size
    pixels = torch.randint(0, 256, (batch * STEPS, 3, size, size), generator=stream, dtype=torch.uint8)
    return Images(pixels, torch.arange(len(pixels)) % people, [str(k) for k in range(people)])


class _InFp32(Defence):
    """NoDef, in the precision of the defences that train on moved photos."""

    exact = True


def _train(
    setup: Setup, defence: str, photos: Images, parts: Sequence[Defence] = (), *, epochs: int = EPOCHS
) -> list[tuple[int, float]]:
    """Train for a few epochs; the step and the moment at the end of each."""
    clock = time.process_time if device().type == "cpu" else time.perf_counter
    moments = [(0, clock())]
    train_classifier(
        lambda planned: build_classifier(
            setup.target.network, len(photos.names), setup.image_size, width=planned.width
        ),
        photos,
        recipe=replace(recipe_of(setup.target, setup.name), steps=epochs * STEPS),
        defences=[*registry.build(defence, setup.defences), *parts],
        seed=0,
        device=device(),
        callback=lambda row: moments.append((row["step"], clock())),
    )
    return moments


def _seconds(setup: Setup, defence: str, photos: Images, parts: Sequence[Defence] = ()) -> float:
    """Per training step, after the first epoch if there is another."""
    *_, (first, began), (last, ended) = _train(setup, defence, photos, parts)
    return (ended - began) / (last - first)


def _peak(setup: Setup, defence: str, photos: Images) -> float:
    """Most bytes that a training of a few steps holds at once, the network and its optimiser included: of the device,
    or on a CPU the running sum of all that is allocated and freed."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        _train(setup, defence, photos, epochs=1)
        return float(torch.cuda.max_memory_allocated() - held)
    gc.collect()  # what an earlier training left would be counted as freed
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or every use says so on the page
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        _train(setup, defence, photos, epochs=1)
    # in their order; the public table of events has only what each operation allocated in all
    events = watched.profiler.kineto_results.events()
    return float(np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max())


def shown(found: pd.DataFrame) -> pd.DataFrame:
    """The costs as a person reads them."""
    rows = {
        "time, × NoDef": [_with_range(row, 2) for row in found.itertuples()],
        "× NoDef in the same precision": [f"{value:.2f}" for value in found["same"]],
        "passes, × NoDef": [f"{value:.2f}" for value in found["expected"]],
        "peak memory, × NoDef": [f"{value:.2f}" for value in found["memory"]],
    }
    return pd.DataFrame(rows, index=pd.Index([label(name) for name in found["defence"]], name="defence"))


def _with_range(row: Any, digits: int) -> str:
    """The median, and the range where there were several rounds."""
    low, middle, high = (f"{value:.{digits}f}" for value in (row.low, row.time, row.high))
    return middle if row.low == row.high else f"{middle} [{low}, {high}]"


def sentence(found: pd.DataFrame) -> str:
    """How many defences are as cheap as is aimed at in every round, how many are dearer in every, the dearest, and
    which cost more in every round than their passes, with a margin, would make of it."""
    own = found[found["defence"] != "none"]
    dear = own.loc[own["time"].idxmax()]
    cheap, over = int((own["high"] < CHEAP).sum()), int((own["low"] > CHEAP).sum())
    return (
        f"Of {len(own)} defences {cheap} stay below {CHEAP} times NoDef's time a step in every round, {over} "
        f"above, {len(own) - cheap - over} cross it; the dearest by the median is {label(dear.defence)}, "
        f"{_with_range(dear, 1)} times, by its passes {dear.expected:.1f}. "
        f"{_beyond(own)}"
    )


def _beyond(own: pd.DataFrame) -> str:
    slow = own[own["same_low"] > MARGIN * own["expected"]]
    named = ", ".join(
        f"{label(row.defence)} ({row.same:.1f} for {row.expected:.1f})" for row in slow.itertuples()
    )
    return f"In the same precision, in all rounds above {MARGIN} times what their passes make of it: {named or 'none'}."
