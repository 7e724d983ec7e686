"""Pareto front, hypervolume, matched utility and NoDef's frontier of given points (metrics specification,
section 7). Natural accuracy is better up, attack accuracy (AttAcc) better down, both fractions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.isotonic import IsotonicRegression

from lib.errors import UserError
from lib.statistics.inputs import Floats, finite


def pareto_front(accuracy: ArrayLike, attack: ArrayLike) -> np.ndarray:
    """(P,) bool: points that no other beats in one of accuracy and AttAcc without losing in the other."""
    accuracy, attack = _pair(accuracy, attack)
    no_worse = (accuracy[:, None] >= accuracy) & (attack[:, None] <= attack)
    better = (accuracy[:, None] > accuracy) | (attack[:, None] < attack)
    return ~(no_worse & better).any(0)


def hypervolume(
    accuracy: ArrayLike,
    attack: ArrayLike,
    *,
    reference: tuple[float, float],
    ideal: tuple[float, float] | None = None,
) -> np.ndarray:
    """Area dominated in (accuracy, 1 - AttAcc) above the reference.

    Args:
        accuracy, attack: (..., P); the area is taken over the last axis.
        reference: (accuracy, AttAcc) of the worst corner, fixed before looking, such as NoDef's accuracy
            minus 10 points and NoDef's AttAcc.
        ideal: (accuracy, AttAcc) of the best corner, such as the best accuracy and chance: areas are then
            cut to that box and divided by it. None: the plain area.

    Returns:
        (...) areas; 0 if no point lies beyond the reference.

    Raises:
        UserError: if shapes differ or the ideal is not beyond the reference.
    """
    accuracy, attack = np.asarray(accuracy, dtype=np.float64), np.asarray(attack, dtype=np.float64)
    if accuracy.shape != attack.shape or accuracy.size == 0:
        raise UserError(
            f"hypervolume: expected equal non-empty shapes, got {accuracy.shape} and {attack.shape}"
        )
    if not (np.isfinite(accuracy).all() and np.isfinite(attack).all()):
        raise UserError(
            "hypervolume: expected finite numbers, got NaN or infinity; leave failed runs out on purpose"
        )
    best = (np.inf, np.inf) if ideal is None else (ideal[0], 1 - ideal[1])
    worst = (reference[0], 1 - reference[1])
    if best[0] <= worst[0] or best[1] <= worst[1]:
        raise UserError(
            f"hypervolume: expected the ideal {ideal} beyond the reference {reference}; swap them"
        )
    along, up = np.clip(accuracy, worst[0], best[0]), np.clip(1 - attack, worst[1], best[1])
    order = np.argsort(-along, axis=-1, kind="stable")
    along = np.take_along_axis(along, order, -1)
    height = np.maximum.accumulate(np.take_along_axis(up, order, -1), axis=-1) - worst[1]
    width = -np.diff(along, axis=-1, append=worst[0])
    area = (width * height).sum(-1)
    return area if ideal is None else area / ((best[0] - worst[0]) * (best[1] - worst[1]))


def matched_attack(accuracy: ArrayLike, attack: ArrayLike, target: float) -> float:
    """AttAcc at natural accuracy ``target``, piecewise linear on the Pareto front of the points (P,).

    Below the front's lowest accuracy its AttAcc there stays attainable and is returned. NaN, "not
    reached", if no point keeps the target accuracy.
    """
    accuracy, attack = _pair(accuracy, attack)
    front = pareto_front(accuracy, attack)
    x, y = accuracy[front], attack[front]
    order = np.argsort(x, kind="stable")
    if 0 < target - x.max() < 1e-9:  # one model's accuracy, summed in another order
        target = x.max()
    return float(np.interp(target, x[order], y[order], right=np.nan))


def frontier_attack(
    accuracy: ArrayLike, attack: ArrayLike, at: ArrayLike, *, chance: float | None
) -> np.ndarray:
    """NoDef's frontier F: the AttAcc to be had at accuracy ``at`` by merely training less.

    An increasing isotonic fit through NoDef checkpoints (P,), linear between them, constant beyond: F at
    NoDef's best accuracy serves for a defence that exceeds it. The fit averages checkpoints that are out of order, so
    NoDef's own point may lie off it: its advantage over itself says by how much.

    Args:
        at: (Q,) natural accuracies of defences.
        chance: accuracy and AttAcc of an untrained network, 1 / classes, added as a point. Without it (None)
            F is constant below the weakest checkpoint, which flatters defences that are weaker still.

    Returns:
        (Q,) AttAcc.
    """
    accuracy, attack = _pair(accuracy, attack)
    if chance is not None:
        accuracy, attack = np.append(accuracy, chance), np.append(attack, chance)
    return IsotonicRegression(out_of_bounds="clip").fit(accuracy, attack).predict(finite(at, "at"))


def _pair(accuracy: ArrayLike, attack: ArrayLike) -> tuple[Floats, Floats]:
    accuracy, attack = finite(accuracy, "accuracy"), finite(attack, "attack")
    if len(accuracy) != len(attack):
        raise UserError(f"points: expected equal lengths, got {len(accuracy)} and {len(attack)}; align them")
    return accuracy, attack
