"""Wall time and processor time by phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

PHASES = ("search", "optimise", "select", "judge", "references")


class Clock:
    """Seconds spent in each phase. Processor time counts this process alone, on all its threads, so that it
    says less about what else the machine is doing."""

    def __init__(self) -> None:
        self.wall = dict.fromkeys(PHASES, 0.0)
        self.processor = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        _finish()
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            _finish()
            self.wall[name] += time.perf_counter() - wall
            self.processor[name] += time.process_time() - processor

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return timed


def _finish() -> None:
    """Wait for what a GPU has been asked for, so that it is charged to the phase that asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
