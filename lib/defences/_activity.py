"""What several defences ask of their diagnostics, a row an epoch: did the quantity move that they must move?"""

from __future__ import annotations

from lib.training.interface import History

RISE = 0.05  # of a share: less may be chance
HALF = 0.5  # of a share: reached already in the first epoch, it need not rise, but must not fall


def fell(history: History, name: str) -> bool:
    """Whether a quantity was lower in the last epoch than in the first; not shown by one epoch alone."""
    return bool(history[-1][name] < history[0][name])


def rose(history: History, name: str) -> bool:
    """Whether a quantity was higher in the last epoch than in the first; not shown by one epoch alone."""
    return bool(history[-1][name] > history[0][name])


def reached(history: History, name: str) -> bool:
    """Whether a share rose, or was at least a half from the beginning and stayed there."""
    first, last = history[0][name], history[-1][name]
    return bool(last - first >= RISE or (last >= HALF and first - last <= RISE))
