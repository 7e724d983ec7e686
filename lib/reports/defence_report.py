"""Notebook 10: every defence on a page: what it changes, its constants, whether it acts, and what it costs."""

from __future__ import annotations

import gc
import inspect
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile

from lib import defences as registry
from lib import plots, store
from lib.data import Images
from lib.models import build_classifier
from lib.plots import label
from lib.reports.made import made
from lib.reports.tables import quantity
from lib.reports.workbook import Workbook
from lib.runtime import device, generator
from lib.setups import Setup
from lib.stages import inversion, records
from lib.stages.targets import recipe_of
from lib.training import Defence, train_classifier

CHEAP = 1.3  # times NoDef's training step: what is aimed at
MARGIN = 1.2  # over the passes: what surrounds them costs time, too
ROUNDS = 3  # of the measurement of costs, all defences in each
STEPS = 3  # of an epoch
EPOCHS = 2  # the first one warms up, the other is timed
FLATTEST = 0.1  # of the largest value: the least that the axis of a diagnostic spans
MEMBERS = tuple(name for name in vars(Defence) if not name.startswith("_") and name != "name")
SILENT = ("cost", "tensors", "diagnostics", "acted")  # members that change nothing


def register(setup: Setup) -> pd.DataFrame:
    """Every defence there is: how it is written, the members of the interface through which it acts (in their order
    there), and the constants of its YAML file with what the setup changes."""
    rows = []
    for name in registry.names():
        kind = registry.defence_class(name)
        constants = registry.constants(name) | setup.defences.get(name, {})
        rows.append(
            {
                "defence": name,
                "written": usage(name),
                "acts through": ", ".join(acts_through(kind)) or "nothing",
                "constants": ", ".join(f"{key} {value}" for key, value in constants.items()),
            }
        )
    return pd.DataFrame(rows).set_index("defence")


def usage(name: str) -> str:
    """``re(low,high)``: a defence with its strengths."""
    parameters = inspect.signature(registry.defence_class(name)).parameters.values()
    strengths = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    return f"{name}({','.join(strengths)})" if strengths else name


def acts_through(kind: type[Defence]) -> list[str]:
    """Members of :class:`lib.training.Defence` that a defence overrides, in the order of the interface."""
    bases = [base for base in kind.__mro__ if base is not Defence and issubclass(base, Defence)]
    return [name for name in MEMBERS if name not in SILENT and any(name in vars(base) for base in bases)]


def page(*texts: str) -> str:
    """The page in Markdown of a composition, or of several that differ in strengths alone: names, what it minimises or
    changes, what its diagnostics are, and where it is from, in its own words."""
    parts = [f"### {'; '.join(map(label, texts))}"]
    for term in registry.parse(texts[0]):
        kind = registry.defence_class(term.name)
        paragraphs = (inspect.getmodule(kind).__doc__ or "").split("\n\n")
        source = [paragraph.strip() for paragraph in paragraphs if paragraph.startswith("Source")]
        parts.append(_markdown("\n\n".join([*_about(kind), *_glossary(kind, term.name), *source])))
    return "\n\n".join(parts)


def _about(kind: type[Defence]) -> list[str]:
    """What a defence says of itself, and what it extends, unless that is a mere base; and their options, as a list."""
    said, options = [], {}
    taken, bases = inspect.signature(kind).parameters, [b for b in kind.__mro__ if issubclass(b, Defence)]
    for base in (base for base in bases if base is not Defence and base.__doc__):
        text, _, block = inspect.cleandoc(base.__doc__).partition("\n\nArgs:")
        text = text.partition("\n\nRaises:")[0]
        if not text.startswith("Base"):
            said.append(text)
        for names, about in _options(block).items():
            elsewhere = about.startswith("see ") and any(b.__name__ in about for b in bases)  # told there
            if not elsewhere and any(name in taken for name in names.split(", ")):
                options.setdefault(names, about)
    listed = [f"- ``{names}``: {about}" for names, about in options.items()]
    return [*said, *(["*Options.*\n\n" + "\n".join(listed)] if listed else [])]


def _options(block: str) -> dict[str, str]:
    """Names, such as ``steps, step``, to what the ``Args`` of a docstring say of them (and errors to theirs)."""
    entries = re.findall(r"^    (?! )(.+?(?:\n {8}.*)*)$", block, flags=re.MULTILINE)
    joined = (" ".join(entry.split()) for entry in entries)
    return dict(entry.split(": ", 1) for entry in joined if ": " in entry)


def _glossary(kind: type[Defence], name: str) -> list[str]:
    """What a defence's diagnostics are, as its own :meth:`Defence.diagnostics` and those that it extends say, under
    the names of figures and tables; a paragraph, or none."""
    extended = [
        base for base in reversed(kind.__mro__) if base is not Defence and "diagnostics" in vars(base)
    ]
    said = " ".join(inspect.getdoc(base.diagnostics) or "" for base in extended).replace("<name>", name)
    named = re.sub(r"``(\w+)``", lambda found: f"``{quantity(found[1])}``", said)
    if not named:
        return []
    acted = (inspect.getdoc(kind.acted) or "").partition(".")[0]
    return [f"*What is recorded.* {named} It has acted if {acted.removeprefix('Whether ')}."]


def _markdown(text: str) -> str:
    """A docstring for a reader: code in single marks, and what it refers to without the path and the role."""
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"`\1`", text.replace("``", "`"))


def listed(book: Workbook) -> list[str]:
    """The study's defences that have a page; of a partial book those that are trained."""
    runs = [book.attack(text) for text in book.study.pages]
    trained = made(
        book, runs, lambda run: store.exists(records.answers_stage(run.target_stage())), "training of"
    )
    return [run.defence for run in trained]


def pages(book: Workbook) -> str:
    """The pages of the study's defences, trained or not, one after another; strengths of one defence share a page."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for text in book.study.pages:
        kinds.setdefault(tuple(term.name for term in registry.parse(text)), []).append(text)
    return "\n\n".join(page(*texts) for texts in kinds.values())


def diagnostics(book: Workbook) -> pd.DataFrame:
    """Train (or load) the listed defences, first training seed: columns ``defence, diagnostic, step, value``, a row
    an epoch."""
    rows = []
    for text in listed(book):
        training = records.answers_of(book.attack(text)).training
        names, history = list(training["diagnostics"]), training["history"]
        for entry in history:
            rows += [(text, name, entry["step"], entry[name]) for name in names if name in entry]
        if names and not any(name in history[-1] for name in names):  # trained before rows had them
            rows += [
                (text, name, history[-1]["step"], value) for name, value in training["diagnostics"].items()
            ]
    return pd.DataFrame(rows, columns=["defence", "diagnostic", "step", "value"])


def diagnostic_figure(curves: pd.DataFrame) -> Figure:
    """A panel a diagnostic, over the training; those known at its end alone, or the same throughout, are left to the
    table. An axis spans a tenth of the largest value at least: what does not move looks flat."""
    moves = curves.groupby(["defence", "diagnostic"])["value"].transform("nunique") > 1
    shown = curves[moves] if moves.any() else curves
    names = shown["diagnostic"].map(quantity)
    named = shown.assign(panel=shown["defence"].map(label) + ": " + names)
    wide = named.pivot_table(index=["defence", "step"], columns="panel", values="value", sort=False)
    panels = list(wide)
    figure = plots.learning_curves(
        wide.reset_index().assign(defence="none"),  # a panel says whose it is: one colour for all
        metrics=panels,
        title="What each defence must move",
    )
    for ax, panel in zip(figure.axes, panels, strict=False):
        model, _, named_as = panel.partition(": ")
        ax.set_title(model, fontsize="medium")
        ax.set_ylabel(named_as)
        low, high = ax.get_ylim()
        least = FLATTEST * (float(wide[panel].abs().max()) or 1.0)
        if high - low < least:
            ax.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    return figure


def diagnostic_caption(curves: pd.DataFrame) -> str:
    """Which diagnostics the figure leaves out."""
    found = curves.groupby(["defence", "diagnostic"], sort=False).agg({"step": "nunique", "value": "nunique"})
    if not (found["value"] > 1).any():
        return "Every defence that records something, over its training."
    names = [f"{label(defence)}, {quantity(name)}" for defence, name in found.index]
    once = [name for name, count in zip(names, found["step"], strict=True) if count == 1]
    still = [n for n, s, v in zip(names, found["step"], found["value"], strict=True) if v == 1 < s]
    text = []
    if once:
        text.append(f"Known at the end of training alone: {'; '.join(once)}.")
    if still:
        text.append(f"The same throughout: {'; '.join(still)}.")
    return " ".join(
        ["Over the training; the rest is in the table below." if text else "Over the training.", *text]
    )


def activity(book: Workbook, curves: pd.DataFrame) -> pd.DataFrame:
    """First and last value of every diagnostic (no first of one that is known at the end alone), and whether the
    defence acted by its own criterion (:meth:`lib.training.Defence.acted`)."""
    moved = {text: _acted(book, curves, text) for text in dict.fromkeys(curves["defence"])}
    named = curves.assign(
        defence=curves["defence"].map(label),
        diagnostic=curves["diagnostic"].map(quantity),
        acted=["yes" if moved[text] else "no" for text in curves["defence"]],
    )
    ends = named.groupby(["defence", "diagnostic"], sort=False).agg(
        first=("value", lambda values: values.iloc[0] if len(values) > 1 else np.nan),
        last=("value", "last"),
        acted=("acted", "last"),
    )
    return ends.rename(columns={"first": "after the first epoch", "last": "at the end"})


def silent(book: Workbook, curves: pd.DataFrame) -> list[str]:
    """Listed defences of which a part did not act; controls that only change the recipe have nothing to show."""
    return [text for text in listed(book) if not _recipe_only(text) and not _acted(book, curves, text)]


def _acted(book: Workbook, curves: pd.DataFrame, text: str) -> bool:
    rows = curves[curves["defence"] == text]
    epochs = [dict(zip(part["diagnostic"], part["value"], strict=True)) for _, part in rows.groupby("step")]
    if not epochs:
        return False
    parts = registry.acted(text, {"diagnostics": epochs[-1], "history": epochs}, book.setup.defences)
    return all(moved or (moved is None and _recipe_only(part)) for part, moved in parts.items())


def _recipe_only(text: str) -> bool:
    kinds = [registry.defence_class(term.name) for term in registry.parse(text)]
    return all(set(acts_through(kind)) <= {"plan"} for kind in kinds)


# --- costs -----------------------------------------------------------------------------------------------


def costs(book: Workbook) -> pd.DataFrame:
    """What a training step takes, as a ratio to NoDef's in the same run: columns ``time`` (median over rounds, in
    each of which every defence is timed; on a CPU of its own seconds, whatever else runs), ``low, high`` (their
    range), ``same`` and ``same_low`` (the median and the least as a ratio to NoDef's in the same precision: fp32 for
    one that is trained in it), ``expected`` (passes, :attr:`Defence.cost`) and ``memory`` (most bytes held at once). On
    random photos; pre-training is not in it."""
    setup = book.setup
    photos = _photos(setup)
    names = list(dict.fromkeys(["none", *book.study.pages]))
    memory = np.array([_peak(setup, name, photos) for name in names])
    runs = [*((name, []) for name in names), ("none", [_InFp32()])]
    timed = np.array([[_seconds(setup, name, photos, parts) for name, parts in runs] for _ in range(ROUNDS)])
    seconds, plain = timed[:, :-1], timed[:, -1:]
    exact = [any(part.exact for part in registry.build(name, setup.defences)) for name in names]
    ratios = seconds / seconds[:, :1]
    same = np.where(exact, seconds / plain, ratios)
    return pd.DataFrame(
        {
            "defence": names,
            "time": np.median(ratios, 0),
            "low": ratios.min(0),
            "high": ratios.max(0),
            "same": np.median(same, 0),
            "same_low": same.min(0),
            "expected": [math.prod(d.cost for d in registry.build(name, setup.defences)) for name in names],
            "memory": memory / memory[0],
        }
    )


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
    setup: Setup, defence: str, photos: Images, parts: Sequence[Defence] = ()
) -> list[tuple[int, float]]:
    """Train for a few epochs; the step and the moment at the end of each."""
    clock = time.process_time if device().type == "cpu" else time.perf_counter
    moments = [(0, clock())]
    train_classifier(
        lambda planned: build_classifier(
            setup.target.network, len(photos.names), setup.image_size, width=planned.width
        ),
        photos,
        recipe=replace(recipe_of(setup.target, setup.name), steps=EPOCHS * STEPS),
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
        _train(setup, defence, photos)
        return float(torch.cuda.max_memory_allocated() - held)
    gc.collect()  # what an earlier training left would be counted as freed
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or every use says so on the page
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        _train(setup, defence, photos)
    # in their order; the public table of events has only what each operation allocated in all
    events = watched.profiler.kineto_results.events()
    return float(np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max())


def shown(found: pd.DataFrame) -> pd.DataFrame:
    """The costs as a person reads them."""
    rows = {
        "time, × NoDef": [f"{row.time:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in found.itertuples()],
        "× NoDef in the same precision": [f"{value:.2f}" for value in found["same"]],
        "passes, × NoDef": [f"{value:.2f}" for value in found["expected"]],
        "peak memory, × NoDef": [f"{value:.2f}" for value in found["memory"]],
    }
    return pd.DataFrame(rows, index=pd.Index([label(name) for name in found["defence"]], name="defence"))


def cost_sentence(found: pd.DataFrame) -> str:
    """How many defences are as cheap as is aimed at in every round, how many are dearer in every, the dearest, and
    which cost more in every round than their passes, with a margin, would make of it."""
    own = found[found["defence"] != "none"]
    dear = own.loc[own["time"].idxmax()]
    cheap, over = int((own["high"] < CHEAP).sum()), int((own["low"] > CHEAP).sum())
    return (
        f"Of {len(own)} defences {cheap} stay below {CHEAP} times NoDef's time a step in all {ROUNDS} rounds, {over} "
        f"above, {len(own) - cheap - over} cross it; the dearest by the median is {label(dear.defence)}, "
        f"{dear.time:.1f} times [{dear.low:.1f}, {dear.high:.1f}], by its passes {dear.expected:.1f}. "
        f"{_beyond(own)}"
    )


def _beyond(own: pd.DataFrame) -> str:
    slow = own[own["same_low"] > MARGIN * own["expected"]]
    named = ", ".join(
        f"{label(row.defence)} ({row.same:.1f} for {row.expected:.1f})" for row in slow.itertuples()
    )
    return f"In the same precision, in all rounds above {MARGIN} times what their passes make of it: {named or 'none'}."


def what_we_saw(book: Workbook, curves: pd.DataFrame, found: pd.DataFrame) -> str:
    """Whether every trained defence was active, and what all cost."""
    quiet, trained = silent(book, curves), len(listed(book))
    names = ", ".join(label(text) for text in quiet)
    active = (
        f"Not shown to have acted: {names}"
        if quiet
        else f"{trained} of {len(book.study.pages)} defences are trained, and all of them acted by their own criteria"
    )
    return f"**{active}.** {cost_sentence(found)}"
