"""Reasons not to believe an attack, one function each. A flag without its evidence is open, which is no better
than raised: nobody looked. Reasons not to believe the judges: :mod:`lib.attacks.referee.judges`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

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
LAST = 0.2  # of the steps: where a loss should have come to rest
WINDOW = 6  # steps at least, by whose halves that is seen: two alone are noise
FALLING = 0.05  # share of its whole fall that a loss may still fall there; PPA's headline on lfw64: 2 %
STRAIGHT = (
    0.125  # the same of a loss that falls on a straight line: with more noise than that nothing can be told
)
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


def _names(text: str, guilty: Sequence[str]) -> str:
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
        f"of the whole fall of the loss {100 * share:.0f} % lies in its last steps{_names('', guilty)}; at rest, "
        f"noise may show up to {100 * limit:.0f} %{_names('; too noisy to tell', noisy)}",
        "give it more steps",
    )


def rests_on(chosen: Chosen) -> dict[str, int]:
    """The attacks (:attr:`Member.search`) that supply a share of the choice, or most of it, and for how many people."""
    supplied = Counter(chosen.members[i].search for i in chosen.member.tolist())
    least = min(max(supplied.values()), SUPPLIES * len(chosen.best))
    return {search: count for search, count in supplied.most_common() if count >= least}


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
        f"people{_names('', guilty)}; {100 * shared:.0f} % of the identities share the chosen image with another",
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
