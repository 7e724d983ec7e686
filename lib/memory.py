"""How much memory a piece of work takes at its peak, beyond what was there when it began."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Watches from when it is made. On a CPU it asks Linux about this process; where the system keeps no peak that can
    be set back (macOS, Windows, Apple's GPUs) nothing is known.

    Args:
        device: whose memory counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before: float | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device) / 1e6
        elif device.type == "cpu":
            with contextlib.suppress(OSError):
                _give_back()
                RESET.write_text("5")  # the peak is what there is now (man 5 proc)
                self._before = _megabytes("VmRSS")

    def megabytes(self) -> float | None:
        """So far; None where nothing is known."""
        if self._before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6 - self._before
        return max(0.0, _megabytes("VmHWM") - self._before)


def _give_back() -> None:
    """Freed blocks that glibc keeps go back to the system: work that used them again would seem to take nothing."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _megabytes(field: str) -> float:
    """Raises: OSError where there is no such file."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6
