"""A study in pieces: what its tables still lack, made piece by piece and kept as it comes.

A unit of work is a model with all that is to be measured of it, so that no two processes wait for one training; before
that, the choice of a training length. Where one fails the others go on. Stopping loses nothing: stages that are
finished are found again, trainings and attacks that are not go on from their checkpoints. Snakemake makes several units
at a time (``Snakefile``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lib import store
from lib.reports import referee_report, robustness_report
from lib.reports.workbook import Workbook
from lib.run.plan import recorded
from lib.run.publish import copy_files, copy_results
from lib.stages import measures, robustness, success, targets
from lib.stages.inversion import Attack
from lib.store import Stage, duration

Task = tuple[str, Attack]  # a kind of KINDS, and the run that it is about
Units = dict[str, list[Task]]  # by the stem of the stage that a unit is about
KINDS: dict[str, tuple[Callable[[Attack], Stage], Callable[[Attack], object]]] = {
    "outcome": (success.stage, lambda attack: success.measure([attack])),
    "measured": (measures.measured_stage, measures.attack_rows),
    "refereed": (referee_report.stage, referee_report.confidence),
    "evasion": (robustness.evasion_stage, robustness.evasion),
    "backdoor": (robustness.backdoor_stage, robustness.backdoor),
    "selection": (
        lambda attack: targets.selection_stage(attack.setup, attack.defence),
        lambda attack: targets.selection(attack.setup, attack.defence),
    ),
}
"""Kind of record -> its stage, and what makes it."""
OF_IMAGES = ("outcome", "measured", "refereed")
"""Kinds that are cheap once an attack's images are there."""
RECORDS = ("answers", *KINDS)
"""Kinds of small stages that are committed."""


def tasks(book: Workbook) -> list[Task]:
    """Everything that the study's tables are made of, in its order."""
    found = [(kind, attack) for attack in recorded(book) for kind in ("outcome", "measured")]
    found += [("refereed", attack) for attack in referee_report.runs(book)]
    found += [("evasion", attack) for attack in robustness_report.models(book)]
    return found + [("backdoor", attack) for attack in robustness_report.models(book, "backdoored")]


def lengths(book: Workbook, match: str = "") -> Units:
    """The training lengths that are to be chosen before anybody can say which targets the tables are of.

    Args:
        match: only those of what may have this in its label.
    """
    units: Units = {}
    for kind, attack in tasks(book):
        if not attack.is_sized:
            sized = (replace(attack, multiple=m) for m in targets.multiples_of(attack.setup, attack.defence))
            if any(match in KINDS[kind][0](run).label for run in sized):
                units.setdefault(KINDS["selection"][0](attack).stem, [("selection", attack)])
    return units


def missing(book: Workbook, match: str = "") -> Units:
    """What the study's tables lack, by the model that it is of, in the order of the study; without what waits for
    :func:`lengths`.

    Args:
        match: only what has this in its label, such as ``ppa`` or ``re(0.1,0.8)``.
    """
    units: dict[str, dict[str, Task]] = {}
    for kind, attack in tasks(book):
        if not attack.is_sized:
            continue
        stage = KINDS[kind][0](attack)
        if match in stage.label and not store.exists(stage):
            units.setdefault(attack.target_stage().stem, {})[stage.key] = (kind, attack)
    return {name: list(unit.values()) for name, unit in units.items()}


def make(book: Workbook, *, match: str = "", show: Callable[[str], None] = print) -> list[str]:
    """Make what :func:`lengths` and then :func:`missing` list, one after the other, and keep it; what went wrong, a
    line a failure. The ``Snakefile`` makes several at a time."""
    failures = []
    if chosen := lengths(book, match):
        show(f"{len(chosen)} training lengths to choose first")
        failures += [line for unit in chosen.values() for line in _make(book, unit, show)]
    units = missing(book, match)
    show(f"{sum(map(len, units.values()))} records of {len(units)} models to make")
    failures += [line for unit in units.values() for line in _make(book, unit, show)]
    keep(book)
    return failures


def make_unit(
    book: Workbook, name: str, *, match: str = "", show: Callable[[str], None] = print
) -> list[str]:
    """Make one unit of :func:`lengths` or :func:`missing`, and keep its records; what went wrong, a line a failure.
    Nothing to do for one that is made."""
    return _make(book, {**lengths(book, match), **missing(book, match)}.get(name, []), show)


def _make(book: Workbook, unit: list[Task], show: Callable[[str], None]) -> list[str]:
    failures = []
    for kind, attack in unit:
        stage, make_it = KINDS[kind]
        label, began = stage(attack).label, time.monotonic()
        try:
            make_it(attack)
            if kind in OF_IMAGES:
                renew(attack)
            show(f"{label}: {duration(time.monotonic() - began)}")
        except Exception as error:  # whatever it is, the others go on
            failures.append(f"{label}: failed, {type(error).__name__}: {' '.join(str(error).split())}")
            show(failures[-1])
    copy_records(book.setup.name)  # a unit is safe as soon as it is made; tables are written by keep
    return failures


def renew(attack: Attack) -> None:
    """Make those records of an attack anew that are of other images than the ones that are there."""
    for kind in OF_IMAGES:
        stage, make_it = KINDS[kind]
        if store.exists(stage(attack)):
            make_it(attack)  # which else loads it


def keep(book: Workbook) -> list[Path]:
    """Measure and record every attack of the study that is made, and copy what is new of it into the committed
    results; the files written. Nothing is trained or attacked, so what is of a training length that is not chosen yet
    is left out."""
    listed = [(kind, attack) for kind, attack in tasks(book) if attack.is_sized]
    for kind, attack in listed:
        if kind in OF_IMAGES and success.has_images(attack):
            KINDS[kind][1](attack)
    there = [a for kind, a in listed if kind == "measured" and store.exists(measures.measured_stage(a))]
    book.invert(there)
    book.train_at(list(dict.fromkeys((run.defence, run.training_seed, run.multiple) for run in there)))
    return [*copy_results(book.setup.name, new=True), *copy_records(book.setup.name)]


def copy_records(setup: str) -> list[Path]:
    """Copy what is new of a setup's records from the cache beside the committed results, and with each the others that
    are of the same copy of the same images or network (:func:`lib.store.content`); the files written."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(store.cache_dir().glob("*-*.json")):
        if path.stem.rpartition("-")[0] in RECORDS:
            document = json.loads(path.read_text())
            if document["stage"]["params"].get("setup") == setup:
                copy = document["stage"]["upstream"][0], document["meta"].get("of", "")
                groups.setdefault(copy, []).append(path)
    kept = []
    for paths in groups.values():
        if not all((store.RECORDS / path.name).exists() for path in paths):
            for path in paths:  # the JSON last: without it a stage is not there
                kept += [path.with_suffix(".safetensors"), path]
    return copy_files((path, store.RECORDS / path.name) for path in kept)
