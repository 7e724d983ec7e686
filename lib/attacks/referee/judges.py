"""Reasons not to believe the judges of an attack, one function each, like those of
:mod:`lib.attacks.referee.flags`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from torch import Tensor

from lib import statistics
from lib.attacks.referee.ensemble import Member
from lib.attacks.referee.flags import FEWEST, GROWN, SEED, Flag, difference, few, grows, unknown

AGREEMENT = 0.8  # of the photos that the target gets right, the share that a judge must get right too
GAP = 0.15  # between evaluators: half of what separates a strong from a weak attack in the studies here
DIFFERENT = 0.25  # reconstructions that two evaluators answer differently; real photos: about 0.1


def judge_disagrees_on_photos(
    target_right: Tensor | None, evaluator_right: Tensor | None, identity: Tensor | None
) -> Flag:
    """Whether the main evaluator fails on photos that the target gets right; hits (N,) and labels (N,)."""
    name = "evaluator and target disagree on real photos"
    if target_right is None or evaluator_right is None or identity is None:
        return unknown(name, AGREEMENT, "no real photos were given")
    right = target_right.bool()
    if not right.any():
        return unknown(name, AGREEMENT, "the target gets no photo right")
    found = statistics.clustered_mean(
        evaluator_right[right].double(), identity[right], seed=SEED, average="micro"
    )
    high = found.high if np.isfinite(found.high) else found.value
    return Flag(
        name,
        bool(high < AGREEMENT),
        found.value,
        AGREEMENT,
        f"the evaluator gets {100 * found.value:.0f} % of the photos right that the target gets right",
        "such a judge cannot tell a failed reconstruction from its own error",
    )


def evaluators_disagree(hits: Mapping[str, Tensor]) -> Flag:
    """Whether two evaluators give the chosen reconstructions clearly different accuracies, or clearly often
    another answer; hits (K,) each."""
    name = "evaluators disagree with each other"
    if len(hits) < 2:
        return unknown(name, GAP, "it needs two evaluators")
    people = np.arange(len(next(iter(hits.values()))))
    if len(people) < FEWEST:
        return unknown(name, GAP, few(len(people)))
    means = {role: float(right.double().mean()) for role, right in hits.items()}
    pairs = list(combinations(sorted(hits, key=means.get), 2))
    raised, gaps, shares = False, [], []
    for low, high in pairs:
        gap = difference(hits[high].double(), hits[low].double(), level=1 - 0.05 / len(pairs))
        other = statistics.clustered_mean(
            (hits[high] != hits[low]).double(), people, seed=SEED, level=1 - 0.05 / len(pairs)
        )
        raised |= bool(gap.low > 0 and gap.value > GAP) or bool(other.low > DIFFERENT)
        gaps.append(gap.value)
        shares.append(other.value)
    scores = ", ".join(f"{role} {100 * mean:.0f} %" for role, mean in means.items())
    return Flag(
        name,
        raised,
        max(gaps),
        GAP,
        f"recognised: {scores}; two of them answer up to {100 * max(shares):.0f} % of the reconstructions "
        "differently",
        "the number is a property of the judge: report all of them, and an outside verifier",
    )


def member_alone_leaks_more(chosen_hits: Tensor, alone: Mapping[Member, Tensor]) -> Flag:
    """Whether the main evaluator recognises one member's best more often than what the target chose among all, by
    :func:`~lib.attacks.referee.flags.grows`; hits (K,). The target's confidence then is no guide, the number no upper
    end of what leaks."""
    name = "a member alone leaks more"
    if len(chosen_hits) < FEWEST:
        return unknown(name, GROWN, few(len(chosen_hits)))
    found = {
        member.label: grows(hits.double(), chosen_hits.double(), tests=len(alone))
        for member, hits in alone.items()
    }
    raised = [label for label, (_, more) in found.items() if more]
    undecided = [label for label, (_, more) in found.items() if more is None]
    who = max(raised or undecided or found, key=lambda label: found[label][0].value)
    worst, _ = found[who]
    return Flag(
        name,
        True if raised else None if undecided else False,
        worst.value,
        GROWN,
        f"{who} alone differs by {100 * worst.value:+.1f} points [{100 * worst.low:+.1f}, "
        f"{100 * worst.high:+.1f}] from the target's choice",
        "the choice hides a leak: report this attack",
    )


def verifier_not_above_prior(chosen: Tensor | None, prior: Tensor | None) -> Flag:
    """Whether an independent verifier sees no more of the person than in prior samples; matches (K,) each."""
    name = "verifier not above prior samples"
    if chosen is None or prior is None:
        return unknown(name, 0.0, "no verifier was given")
    if len(chosen) < FEWEST:
        return unknown(name, 0.0, few(len(chosen)))
    found = difference(chosen.double(), prior.double())
    return Flag(
        name,
        bool(found.low <= 0),
        found.value,
        0.0,
        f"the verifier accepts {100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}] more "
        "than of the prior samples they began as",
        "no likeness is shown",
    )
