"""Reasons not to believe an attack, one function each. A flag without its evidence is open, which is no better
than raised: nobody looked. Whether a loss had come to rest is a file of its own, ``descent.py``; reasons not to
believe the judges are in ``judges.py``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib import statistics
from lib.attacks.referee.ensemble import Chosen, Entry, Member
from lib.statistics import Interval

SEED = 0
FLIPS = 99  # only the interval is used, not the p value
ROLES = ("white box", "adaptive", "label only")
SEEDS = 2  # of each: one run may be lucky
FEWEST = 6  # identities: fewer cannot show a difference at 5 % in a sign-flip test
REACHED = 0.5  # mean p_y over views: below, the target itself does not recognise the reconstructions
MISSED = 0.25  # identities below it: PPA misses none on the models of lfw64, GMI a quarter to a third
MARGIN = 0.02  # of confidence: where it is saturated, less than that can be significant and means nothing
COLLAPSED = 0.1  # spread of an identity's reconstructions over the spread between identities
TWIN = 2 / 255  # root mean square between images that look the same
TWINS = 0.1  # identities whose chosen reconstruction is another's
GROWTH = 1.5  # of the passes: closer budgets say nothing about growth
GROWN = 0.05  # of AttAcc: growth that small would not change what is said of a defence
ROOM = 0.10  # what it may really be where it is measured to be no more: what sixty people can exclude
SUPPLIES = 0.25  # of the chosen reconstructions: attacks that supply less do not have to be at their end

FLOORS = frozenset(
    (
        "ensemble incomplete",
        "loss still falling at the end",
        "target confidence not reached",
        "black-box beats white-box",
        "a member alone leaks more",
        "budget curve not saturated",
    )
)
"""Flags that can only mean that a better attack would find more: the number is then a floor."""

Curve = Sequence[tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Flag:
    """One check.

    Attributes:
        raised: None where it is open.
        value, limit: what was measured, and where the flag is raised.
        finding: what was found. advice: what to do about it where it is raised.
    """

    name: str
    raised: bool | None
    value: float
    limit: float
    finding: str
    advice: str = ""

    @property
    def state(self) -> str:
        """ "clear", "raised", or "open": it could not be checked, or what was found decides nothing."""
        return "open" if self.raised is None else "raised" if self.raised else "clear"

    @property
    def floor(self) -> bool:
        """Whether all that can be wrong is that more leaks."""
        return self.name in FLOORS

    @property
    def sentence(self) -> str:
        """The finding, with the advice where it is wanted."""
        return f"{self.finding}; {self.advice}" if self.raised and self.advice else self.finding


@dataclass(frozen=True)
class Diagnostic:
    """What a defence says of itself: whether the quantity that it must move has moved."""

    name: str
    value: float
    active: bool


def unknown(name: str, limit: float, missing: str) -> Flag:
    return Flag(name, None, np.nan, limit, f"not checked: {missing}")


def few(people: int) -> str:
    return f"it needs {FEWEST} identities, there are {people}"


def named(text: str, guilty: Sequence[str]) -> str:
    """The text with whom it is about in brackets; nothing where it is about nobody."""
    return f"{text} ({'; '.join(guilty)})" if guilty else ""


def difference(first: Tensor | np.ndarray, second: Tensor | np.ndarray, *, level: float = 0.95) -> Interval:
    """First minus second, paired by identity."""
    values = (np.asarray(part, dtype=np.float64) for part in (first, second))
    return statistics.compare_paired(*values, seed=SEED, level=level, flips=FLIPS).difference


def grows(
    first: Tensor | np.ndarray, second: Tensor | np.ndarray, *, tests: int = 1
) -> tuple[Interval, bool | None]:
    """First minus second, paired by identity, and whether it is more than :data:`GROWN`: so where it is measured to be
    and zero is excluded (at 95 % for all ``tests``), not so where it is not and more than :data:`ROOM` is excluded (at
    one-sided 95 % for each alone, because every one must be clear), else nobody knows."""
    more = difference(first, second, level=1 - 0.05 / tests)
    left = 1 - float(np.asarray(second, dtype=np.float64).mean())  # nobody can leak more than everybody
    if more.value > GROWN:
        return more, True if more.low > 0 else None
    most = min(left, difference(first, second, level=0.9).high)
    return more, False if most <= ROOM else None


def ensemble_incomplete(chosen: Chosen, *, adapted: bool = True) -> Flag:
    """Whether the ensemble lacks a white-box, an adaptive or a label-only attack, or their second seeds; open where the
    ingredients of its adaptive ones are not ``adapted`` to this defence."""
    runs: dict[str, dict[tuple[str, str, str], set[int]]] = {role: {} for role in ROLES}
    for member in chosen.members:
        one = (member.attack, member.prior, member.budget)
        runs.get(member.role, {}).setdefault(one, set()).add(member.seed)
    seeds = {role: max(map(len, found.values()), default=0) for role, found in runs.items()}
    text = ", ".join(f"{role} {count}" for role, count in seeds.items())
    complete = sum(count >= SEEDS for count in seeds.values())
    if not adapted:
        text += (
            ", but adapted to erasing, which this defence does not do: nobody tried an attack adapted to it"
        )
    return Flag(
        "ensemble incomplete",
        True if complete < len(ROLES) else False if adapted else None,
        float(complete),
        float(len(ROLES)),
        f"seeds of one attack: {text}",
        f"run each kind under {SEEDS} seeds",
    )


def rests_on(chosen: Chosen) -> dict[str, int]:
    """The attacks (:attr:`Member.search`) that supply a share of the choice, or most of it, and for how many people."""
    supplied = Counter(chosen.members[i].search for i in chosen.member.tolist())
    least = min(max(supplied.values()), SUPPLIES * len(chosen.best))
    return {search: count for search, count in supplied.most_common() if count >= least}


def confidence_not_reached(chosen: Chosen) -> Flag:
    """Whether the target itself does not recognise the best reconstructions, on average or of many people."""
    people = np.arange(len(chosen.best))
    found = statistics.clustered_mean(chosen.best.double(), people, seed=SEED)
    missed = statistics.clustered_mean((chosen.best < REACHED).double(), people, seed=SEED)
    high = found.high if np.isfinite(found.high) else found.value
    return Flag(
        "target confidence not reached",
        bool(high < REACHED or missed.low > MISSED),
        found.value,
        REACHED,
        f"the target's mean confidence in the best reconstructions is {found.value:.2f}, and below {REACHED} for "
        f"{100 * missed.value:.0f} % of the identities",
        "an attack that does not convince its own target says nothing of the defence: raise the budget",
    )


def diagnostic_inactive(diagnostic: Diagnostic | None) -> Flag:
    """Whether the defence did nothing."""
    name = "defence diagnostic inactive"
    if diagnostic is None:
        return unknown(name, np.nan, "no diagnostic of the defence was given")
    if np.isnan(diagnostic.value):
        return Flag(name, False, np.nan, np.nan, f"{diagnostic.name}: there is nothing that must move")
    return Flag(
        name,
        not diagnostic.active,
        diagnostic.value,
        np.nan,
        f"{diagnostic.name} is {diagnostic.value:.3g} at the end of training",
        "a defence that does nothing was attacked",
    )


def black_box_beats_white_box(chosen: Chosen) -> Flag:
    """Whether the target is more convinced by attacks without gradients: gradient masking."""
    name = "black-box beats white-box"
    white = [i for i, member in enumerate(chosen.members) if member.sees == "gradients"]
    black = [i for i, member in enumerate(chosen.members) if member.sees != "gradients"]
    if not white or not black:
        return unknown(name, MARGIN, "it needs a white-box and a black-box member")
    if len(chosen.best) < FEWEST:
        return unknown(name, MARGIN, few(len(chosen.best)))
    found = difference(chosen.confidence[black].amax(0), chosen.confidence[white].amax(0))
    return Flag(
        name,
        bool(found.low > MARGIN),
        found.value,
        MARGIN,
        f"black-box minus white-box confidence is {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]",
        "gradients are masked: trust the black-box attacks, or attack through a smooth copy",
    )


def collapsed(entries: Mapping[Member, Entry], chosen: Chosen) -> Flag:
    """Whether a member's reconstructions of an identity, or the chosen ones of different identities, are copies of
    one image."""
    name = "candidates collapsed to duplicates"
    spreads = {}
    for member in chosen.members:
        flat = entries[member].images.flatten(2)
        if flat.shape[1] > 1 and len(flat) > 1:
            within = flat.std(1).square().mean(1).sqrt().median()
            between = flat[:, 0].std(0).square().mean().sqrt()
            spreads[member.label] = float(within / between.clamp_min(1e-12))
    shared = _twins(chosen.pick({member: entries[member].images for member in chosen.members}))
    if not spreads and shared <= TWINS:
        return unknown(name, COLLAPSED, "every member kept one reconstruction per identity")
    guilty = [who for who, spread in spreads.items() if spread < COLLAPSED]
    spread = min(spreads.values(), default=np.nan)
    return Flag(
        name,
        bool(guilty or shared > TWINS),
        spread,
        COLLAPSED,
        f"two reconstructions of one identity differ {spread:.2f} times as much as reconstructions of two "
        f"people{named('', guilty)}; {100 * shared:.0f} % of the identities share the chosen image with another",
        "n is smaller than it looks: start from other latents",
    )


def _twins(images: Tensor) -> float:
    """Share of images (K, ...) that look like another's."""
    flat = images.flatten(1).float()
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5
    return float((distance.fill_diagonal_(torch.inf).amin(1) < TWIN).double().mean())


def not_saturated(curves: Mapping[str, Curve], chosen: Chosen) -> Flag:
    """Whether an attack that the choice rests on still grows with its budget, by :func:`grows`.

    Args:
        curves: :attr:`Member.search` of a member to its (passes, per-identity success (K,)) under several budgets.
    """
    name = "budget curve not saturated"
    guilty, undecided, text = [], [], []
    for search in rests_on(chosen):
        found = _growth(curves.get(search, ()))
        if isinstance(found, str):
            undecided.append(search)
            text.append(f"{search}: {found}")
            continue
        passes, grown, more = found
        text.append(
            f"{search}: the last step of the budget, to {passes:.0f} passes per identity, adds "
            f"{100 * grown.value:+.1f} points [{100 * grown.low:+.1f}, {100 * grown.high:+.1f}] "
            f"(up to {100 * GROWN:.0f} are let pass)"
        )
        if more:
            guilty.append((search, grown))
        elif more is None:
            undecided.append(search)
    return Flag(
        name,
        True if guilty else None if undecided else False,
        guilty[0][1].value if guilty else np.nan,
        GROWN,
        "; ".join(text),
        "the number is a lower bound: raise the budget",
    )


def _growth(curve: Curve) -> tuple[float, Interval, bool | None] | str:
    """The passes of the largest budget, what it adds to the next one below, and whether that is much (:func:`grows`);
    or why it is not known."""
    if len(curve) < 2:
        return "it needs the attack under two budgets"
    (least, before), (passes, after) = sorted(curve, key=lambda point: point[0])[-2:]
    if len(after) < FEWEST:
        return few(len(after))
    if passes < GROWTH * least:
        return f"it needs budgets {GROWTH} times apart, got {least:.0f} and {passes:.0f} passes"
    return passes, *grows(after, before)
