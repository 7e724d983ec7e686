"""What a person is told while stages are made: one live progress line, and what is about to start."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lib import store
from lib.store import Missing, Stage, duration

NOTICEABLE = 5.0
"""Seconds from which a notebook says that a stage starts."""
ALONE = 60.0
"""Seconds above which :func:`lib.store.get` refuses a stage that nobody asked for."""
TOGETHER = 600.0
"""Seconds that one kernel may spend on shorter ones."""

_STARTED: dict[str, tuple[float, int]] = {}
_UNASKED: list[float] = []


def expected(stage: Stage, seconds: Callable[[], float]) -> float:
    """How long making ``stage`` takes here, for :func:`lib.store.get`; 0 where it is there.

    Under the batch runner nothing is estimated: it was told to train. Elsewhere a notebook prints what starts
    and how long it takes, and what is made without ``MIDRE_TRAIN=1`` must not add up to more than
    :data:`TOGETHER`, so that opening a notebook never starts hours of work, not even in small pieces.

    Raises:
        Missing: they would.
    """
    asked = os.environ.get("MIDRE_TRAIN") == "1"
    if store.exists(stage) or (asked and os.environ.get("MIDRE_PROGRESS")):
        return 0.0
    needed = seconds()
    if not asked:
        if needed > ALONE:
            return needed  # refused by the store
        if sum(_UNASKED) + needed > TOGETHER:
            raise Missing(
                f"{stage.label} is not there yet, and this kernel has already made stages for about "
                f"{duration(sum(_UNASKED))}; make the rest with {store.making(stage)}, or set MIDRE_TRAIN=1 before "
                "opening the notebook"
            )
        _UNASKED.append(needed)
    if needed > NOTICEABLE and in_kernel():
        print(f"{stage.label} is not there yet: making it takes about {duration(needed)}", flush=True)
    return needed


def in_kernel() -> bool:
    """Whether this is a notebook's kernel."""
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def report(label: str, done: int, total: int) -> None:
    """Say how far ``label`` is. Under the batch runner the line goes to the file named by
    ``MIDRE_PROGRESS`` (the runner shows it); otherwise to a terminal, if there is one."""
    now = time.monotonic()
    began, first = _STARTED.setdefault(label, (now, done))
    left = (now - began) / max(1, done - first) * (total - done) if done > first else 0.0
    text = f"{label}: {100 * done / max(1, total):3.0f} %"
    if left:
        text += f", {duration(left)} left"
    if done >= total:
        _STARTED.pop(label, None)
    if path := os.environ.get("MIDRE_PROGRESS"):
        Path(path).write_text(text)
    elif sys.stderr.isatty():
        end = "\n" if done >= total else ""
        print(f"\r{text:<100.100}", end=end, file=sys.stderr, flush=True)
