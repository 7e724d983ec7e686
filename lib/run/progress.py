"""One live progress line: stages report here, the command line shows the latest."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lib.store import duration

_STARTED: dict[str, tuple[float, int]] = {}


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
