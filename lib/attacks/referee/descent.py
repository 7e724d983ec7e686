"""Whether the loss of an attack had come to rest when its steps were over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from lib.attacks.referee.ensemble import Chosen, Entry, Member
from lib.attacks.referee.flags import Flag, named, rests_on, unknown

LAST = 0.2  # of the steps: where a loss should have come to rest
WINDOW = 6  # steps at least, by whose halves that is seen: two alone are noise
FALLING = 0.05  # share of its whole fall that a loss may still fall there; PPA's headline on lfw64: 2 %
STRAIGHT = 0.125  # the same of a loss that falls on a straight line: noise above that hides everything


def still_falling(entries: Mapping[Member, Entry], chosen: Chosen) -> Flag:
    """Whether the loss of a white-box attack that the choice rests on had not come to rest, or that of any never fell.

    Attack seeds are averaged: they draw crops and masks of their own, and noise hides a fall. Judged where one thing is
    moved at the full learning rate (:attr:`Entry.descent`): a rate that is lowered brings any loss to rest. The
    histories of black-box attacks are of what they happened to try, not of one descent.
    """
    name = "loss still falling at the end"
    runs: dict[tuple[str, str], list[Entry]] = {}
    for member in chosen.members:
        if member.sees == "gradients":
            runs.setdefault((member.search, member.budget), []).append(entries[member])
    errors = NormalDist().inv_cdf(1 - 0.05 / (2 * max(1, len(runs))))  # 5 % for all of them together
    shares = {run: _late_fall(_mean_history(made), made[0].descent, errors) for run, made in runs.items()}
    counts = rests_on(chosen)
    found = {", ".join(run): pair for run, pair in shares.items() if run[0] in counts or pair[0] >= 1}
    if not found:
        return unknown(name, FALLING, "the choice rests on no white-box attack")
    guilty = [who for who, (share, limit) in found.items() if share > limit]
    noisy = [who for who, (_, limit) in found.items() if limit > STRAIGHT and who not in guilty]
    share, limit = max(found.values(), key=lambda pair: pair[0] - pair[1])
    return Flag(
        name,
        True if guilty else None if noisy else False,
        share,
        limit,
        f"of the whole fall of the loss {100 * share:.0f} % lies in its last steps{named('', guilty)}; at rest, "
        f"noise may show up to {100 * limit:.0f} %{named('; too noisy to tell', noisy)}",
        "give it more steps",
    )


def _mean_history(entries: Sequence[Entry]) -> np.ndarray:
    """Mean loss (steps,) of an attack's seeds."""
    return np.mean([[row["loss"] for row in entry.history] for entry in entries], axis=0, dtype=np.float64)


def _late_fall(
    history: np.ndarray, descent: tuple[float, float] = (0.0, 1.0), errors: float = 2.0
) -> tuple[float, float]:
    """The share of its whole fall that a loss (steps,) falls at the end of its descent, 1 if it never fell or is too
    short to have come to rest, and the share that is to be flagged: more where the loss is noisy (by so many standard
    ``errors``). Of a descent that begins late, where something else was moved before, the fall within it counts;
    without one it is at rest."""
    first, last = (round(share * len(history)) for share in descent)
    loss = history[first:last]
    if len(loss) < 4:
        return 1.0, FALLING
    part = max(2, round(LAST * len(loss)))
    noise = np.diff(loss[-max(4, len(loss) // 2) :]).std(ddof=1) / np.sqrt(2)
    whole = history[:part].mean() - loss[-part:].mean()
    least = errors * noise * np.sqrt(2 / part)
    if whole <= least:
        return 1.0, FALLING
    if first:
        whole = loss[:part].mean() - loss[-part:].mean()
        if whole <= least:
            return 0.0, FALLING
    window = min(max(part, WINDOW), len(loss))
    half, rest = window // 2, window - window // 2
    scale = part / window  # a wider window falls further: what counts is the fall over the last steps
    late = scale * (loss[-window:-half].mean() - loss[-half:].mean())
    error = scale * noise * np.sqrt(1 / half + 1 / rest)
    return max(0.0, float(late / whole)), max(FALLING, float(errors * error / whole))
