"""Stages meet through files: a content-addressed store of safetensors + JSON, a read-only zoo, checkpoints.

A stage (decoded data, target, evaluator, prior, reconstructions) is identified by the hash of its
parameters, the keys of the stages it was made from and a version bumped by hand. It is loaded if it is
there, refused if its metadata differ, and made otherwise, by one process at a time. Files are written
aside and renamed, so that a kill or a full disk never leaves half of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib.errors import UserError
from lib.runtime import ROOT, provenance

ZOO = ROOT / "results" / "zoo"
RECORDS = ROOT / "results" / "records"
"""Read-only, as the zoo: the small stages of :mod:`lib.stages.records`."""
CHECKPOINT_SECONDS = 120.0
GIVEN_AS: dict[str, str] = {}
"""The setups that this process has read: name -> what ``make run`` calls it, of one's own its file."""


def essentials(config: Any) -> dict[str, Any]:
    """A dataclass as JSON values without the fields that have their default value, so that a field added
    later, with a default, leaves the keys of existing stages alone."""
    kept = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if value != default:
            kept[item.name] = essentials(value) if dataclasses.is_dataclass(value) else value
    return kept


def cache_dir() -> Path:
    """``MIDRE_CACHE``, by default outside the tree."""
    return Path(os.environ.get("MIDRE_CACHE") or Path.home() / ".cache" / "midre").expanduser()


@dataclass(frozen=True)
class Stage:
    """One node of the workbook's graph.

    Attributes:
        kind: data, target, evaluator, verifier, prior, reconstructions, judged, or a record.
        label: what a person reads in listings; not part of the key.
        params: everything that determines the result, as JSON values.
        upstream: keys of the stages this one is made from.
        version: bumped by hand when the code that makes it changes its result.
    """

    kind: str
    label: str
    params: dict[str, Any]
    upstream: tuple[str, ...] = ()
    version: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        text = json.dumps(
            {
                "kind": self.kind,
                "params": self.params,
                "upstream": list(self.upstream),
                "version": self.version,
            },
            sort_keys=True,
        )
        return json.loads(text)

    @cached_property
    def key(self) -> str:
        canonical = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def stem(self) -> str:
        return f"{self.kind}-{self.key}"


@dataclass
class Artifact:
    """What a stage left: tensors and metadata."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


class Missing(UserError):
    """A stage is neither cached nor shipped, and making it here would take long."""


@dataclass
class Checkpoint:
    """Where a long computation leaves its state every few minutes. State: nested dicts and lists of
    tensors, numbers and strings, read back with ``weights_only=True`` (nothing in it is executed).
    ``about`` says in listings what is unfinished; files of before it was kept are the bare state."""

    path: Path | None = None
    every: float = CHECKPOINT_SECONDS
    about: dict[str, str] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file raises
            about = " ".join(str(error).split())[:120]
            raise UserError(
                f"{self.path.name} is damaged ({about}); remove it with {self.removal} and start again"
            ) from error
        return saved["state"] if saved.keys() == {"about", "state"} else saved

    def save(self, state: dict[str, Any] | Callable[[], dict[str, Any]], *, force: bool = False) -> bool:
        """Write ``state`` (or what it returns) if ``every`` seconds have passed or ``force`` is set."""
        if self.path is None or not (force or time.monotonic() - self._last >= self.every):
            return False
        content = {"about": self.about, "state": state() if callable(state) else state}
        write_aside(self.path, lambda aside: torch.save(content, aside))
        self._last = time.monotonic()
        return True

    def discard(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def removal(self) -> str:
        """How a person gets rid of it, for messages."""
        key = self.path.stem.rpartition("-")[2] if self.path else "KEY"
        return f"`python -m lib.run cache rm {key}`"


def get(
    stage: Stage,
    make: Callable[[Checkpoint], tuple[dict[str, Tensor], dict[str, Any]]],
    *,
    seconds: float = 0.0,
    of: Stage | None = None,
) -> Artifact:
    """Load ``stage`` from the cache or the zoo, or make it.

    Args:
        make: called with a :class:`Checkpoint`; returns tensors and metadata.
        seconds: how long making it is expected to take. Above a minute it is only made when
            ``MIDRE_TRAIN=1`` (the batch runner sets it), so that opening a notebook never starts
            hours of training silently.
        of: what this is a measurement of. It may outlive that (a record, a file of the zoo), and the same attack on
            another machine ends in slightly other images: one of another copy than that in the cache is made anew, so
            that all measurements of one thing agree. The metadata say of which copy, as ``of`` (:func:`content`).

    Raises:
        Missing: the stage is not there and would take too long.
        UserError: a file is damaged or holds another stage.
    """
    found = _current(stage, of)
    if found is not None:
        return found
    if seconds > 60 and os.environ.get("MIDRE_TRAIN") != "1":
        raise Missing(
            f"{stage.label} is not there yet and takes about {duration(seconds)} on this machine; make it with "
            f"{making(stage)}, or set MIDRE_TRAIN=1 before opening the notebook"
        )
    folder = _writable(cache_dir())
    with FileLock(folder / f"{stage.stem}.lock"):
        found = _current(stage, of)  # another process may have made it while we waited
        if found is not None:
            return found
        about = {"kind": stage.kind, "label": stage.label}
        checkpoint = Checkpoint(folder / f"{stage.stem}.checkpoint", about=about)
        start = time.monotonic()
        tensors, meta = make(checkpoint)
        meta = {**meta, "seconds": round(time.monotonic() - start, 1)}
        if of is not None and (copy := content(of)) is not None:
            meta["of"] = copy
        artifact = put(stage, tensors, meta)
        checkpoint.discard()
    (folder / f"{stage.stem}.lock").unlink(missing_ok=True)
    return artifact


def _current(stage: Stage, of: Stage | None) -> Artifact | None:
    """The stage, unless it is of another copy of ``of`` than the one that is there."""
    found, copy = find(stage), content(of) if of is not None else None
    return None if found is not None and copy is not None and found.meta.get("of") != copy else found


def content(stage: Stage) -> str | None:
    """The hash of a stage's file in the cache, None where it has none: copies in the zoo are rounded, so no record was
    made of them that was not made of the original, too."""
    try:
        return json.loads((cache_dir() / f"{stage.stem}.json").read_text()).get("sha256")
    except (OSError, ValueError):  # not there; or damaged, as whoever loads it is told
        return None


def making(stage: Stage) -> str:
    """How a person makes a stage and all that goes with it, for messages."""
    setup = stage.params.get("setup", "...")
    return f"`make run SETUP={GIVEN_AS.get(setup, setup)}`"


def put(
    stage: Stage,
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    *,
    folder: Path | None = None,
    origin: dict[str, Any] | None = None,
) -> Artifact:
    """Write a stage; the JSON is renamed last, so that a stage without it does not exist.

    Args:
        origin: ``made_by`` and the like of a copy; by default it is made here and now.
    """
    folder = _writable(folder or cache_dir())
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path = folder / f"{stage.stem}.safetensors"
    write_aside(path, lambda aside: save_file(tensors, aside))
    document = {
        "stage": stage.identity,
        "label": stage.label,
        "sha256": _sha256(path),
        **(origin or {"made_by": provenance()}),
        "meta": meta,
    }
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    write_aside(path.with_suffix(".json"), lambda aside: aside.write_text(text + "\n"))
    return Artifact(tensors, meta, path)


def find(stage: Stage) -> Artifact | None:
    """The stage from the cache, else from the zoo or the records, else None."""
    for folder in (cache_dir(), ZOO, RECORDS):
        if (folder / f"{stage.stem}.json").exists():
            return _read(folder / f"{stage.stem}.json", stage)
    return None


def exists(stage: Stage) -> bool:
    return any((folder / f"{stage.stem}.json").exists() for folder in (cache_dir(), ZOO, RECORDS))


def _read(path: Path, stage: Stage) -> Artifact:
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path.name} is damaged ({error}); remove it with `python -m lib.run cache rm {stage.key}` or "
            "restore results/ from git"
        ) from error
    if document.get("stage") != stage.identity:
        raise UserError(
            f"{path.name} holds another stage than its name says; remove it with "
            f"`python -m lib.run cache rm {stage.key}`"
        )
    weights = path.with_suffix(".safetensors")
    if not weights.exists() or _sha256(weights) != document["sha256"]:
        raise UserError(
            f"{weights.name} is damaged (its hash differs from {path.name}); remove it with "
            f"`python -m lib.run cache rm {stage.key}` or restore results/ from git"
        )
    try:
        with safe_open(weights, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(
            f"{weights.name} is not a safetensors file ({error}); remove it and run again"
        ) from error
    return Artifact(tensors, document["meta"], weights)


def listing() -> Iterator[dict[str, Any]]:
    """One row per stage: place, state, key, kind, label, megabytes, seconds it took. Damaged ones and those
    somebody began (a checkpoint or a lock without a finished file) are listed too, so that they can be removed."""
    for place, folder in (("cache", cache_dir()), ("zoo", ZOO), ("records", RECORDS)):
        for path in sorted(folder.glob("*-*.json")):
            kind, _, key = path.stem.rpartition("-")
            try:
                document = json.loads(path.read_text())
            except ValueError:
                document = {"stage": {}, "label": "damaged", "meta": {}}
            if "stage" not in document:
                continue
            weights = path.with_suffix(".safetensors")
            yield {
                "place": place,
                "state": "finished",
                "key": key,
                "kind": kind,
                "label": document["label"],
                "megabytes": round(weights.stat().st_size / 1e6, 1) if weights.exists() else 0.0,
                "seconds": document["meta"].get("seconds"),
            }
    begun = {p.stem for suffix in ("checkpoint", "lock") for p in cache_dir().glob(f"*-*.{suffix}")}
    for stem in sorted(begun):
        kind, _, key = stem.rpartition("-")
        path = cache_dir() / f"{stem}.checkpoint"
        if not path.with_suffix(".json").exists():
            yield {
                "place": "cache",
                "state": "unfinished",
                "key": key,
                "kind": kind,
                "label": _about(path).get("label", ""),
                "megabytes": round(path.stat().st_size / 1e6, 1) if path.exists() else 0.0,
                "seconds": None,
            }


def _about(path: Path) -> dict[str, str]:
    """What a checkpoint says of itself; nothing where it is old, damaged or absent."""
    with contextlib.suppress(Exception):  # whatever a file that is no checkpoint raises
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # no tensor is read
        if saved.keys() == {"about", "state"}:
            return saved["about"]
    return {}


def matching(pattern: str, place: str) -> list[dict[str, Any]]:
    """The rows of :func:`listing` of one place that ``pattern`` means: eight or more digits that a key begins with, or
    whole words of a kind or label (``gmi`` is not ``plgmi``, ``fe`` is ``fe(0.5)``)."""
    key = re.fullmatch("[0-9a-f]{8,}", pattern)
    words = re.compile(rf"(?<![\w.-]){re.escape(pattern)}(?![\w.-])")
    return [
        row
        for row in listing()
        if row["place"] == place
        and (
            words.search(row["kind"])
            or words.search(row["label"])
            or (key and row["key"].startswith(pattern))
        )
    ]


def remove(pattern: str) -> list[str]:
    """Remove the cached stages that ``pattern`` means (:func:`matching`), finished or not; the zoo is never touched.

    Raises:
        UserError: nothing matches, or one that does is being made by another process (then all stay).
    """
    found = matching(pattern, "cache")
    if not found:
        raise UserError(
            f"cache rm: no cached stage matches {pattern!r}; `python -m lib.run cache ls` lists them"
        )
    names = {f"{row['kind']}-{row['key']}": row["label"] for row in found}
    with contextlib.ExitStack() as held:
        for stem, label in names.items():
            lock = cache_dir() / f"{stem}.lock"  # left by a process that makes it, or that was killed then
            try:
                if lock.exists():
                    held.enter_context(FileLock(lock, timeout=0))
            except Timeout as error:
                raise UserError(
                    f"cache rm: {label or stem} is being made by another process; wait for it or end it, then "
                    "repeat. Nothing was removed"
                ) from error
        for stem in names:
            for path in (*cache_dir().glob(f"{stem}.*"), *cache_dir().glob(f".{stem}.*.part")):
                path.unlink()
    return [label or stem for stem, label in names.items()]


def promote(stage: Stage, *, folder: Path = ZOO) -> Path:
    """Copy a stage into the zoo, floating tensors as fp16. Who made it stays on record beside who copied it."""
    artifact = find(stage)
    if artifact is None:
        raise UserError(f"promote: {stage.label} is not in the cache; train it first")
    tensors = {n: t.half() if t.is_floating_point() else t for n, t in artifact.tensors.items()}
    document = json.loads(artifact.path.with_suffix(".json").read_text())
    origin = {"promoted_by": provenance()}
    origin |= {name: document[name] for name in ("made_by", "promoted_by") if name in document}
    return put(stage, tensors, artifact.meta, folder=folder, origin=origin).path


def duration(seconds: float) -> str:
    """'40 s', '12 min' or '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _writable(folder: Path) -> Path:
    """The folder, made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"could not make the folder {folder} ({error.strerror}); point MIDRE_CACHE at one you may write to"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} is not writable; point MIDRE_CACHE at one that is")
    return folder


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file beside ``path``, then rename it.

    Raises:
        UserError: it could not be written; what was there stays.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(aside)
        os.replace(aside, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap a full disk
        free = shutil.disk_usage(path.parent).free / 1e6
        raise UserError(
            f"could not write {path}: {getattr(error, 'strerror', None) or error}; {free:.0f} MB are free there; "
            "make room or point MIDRE_CACHE elsewhere"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
