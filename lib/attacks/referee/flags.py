"""Reasons not to believe a verdict, one function each. A flag without its evidence is not checked, which is no
better than raised: nobody looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lib import statistics
from lib.attacks.referee.ensemble import Chosen

SEED = 0
LAST = 0.2  # of the steps: where a loss should have come to rest
FALLING = 0.05  # share of its whole fall that a loss may still fall there; noise of crops is below a percent
REACHED = 0.5  # mean p_y over views: below, the target itself does not recognise the reconstructions
AGREEMENT = 0.8  # of the photos that the target gets right, the share that a judge must get right too
GAP = 0.15  # between evaluators: half of what separates a strong from a weak attack in the studies here
COLLAPSED = 0.1  # spread of an identity's reconstructions over the spread between identities


@dataclass(frozen=True)
class Flag:
    """One check.

    Attributes:
        raised: None if it could not be checked.
        value, limit: what was measured, and where the flag is raised.
        sentence: what was found, and what to do about it if it is raised.
    """

    name: str
    raised: bool | None
    value: float
    limit: float
    sentence: str

    @property
    def state(self) -> str:
        return "not checked" if self.raised is None else "raised" if self.raised else "clear"


@dataclass(frozen=True)
class Diagnostic:
    """What a defence says of itself: whether the quantity that it must move has moved."""

    name: str
    value: float
    active: bool


def _unknown(name: str, limit: float, missing: str) -> Flag:
    return Flag(name, None, np.nan, limit, f"not checked: {missing}")


def still_falling(entries: Mapping, chosen: Chosen) -> Flag:
    """Whether a white-box member's loss had not come to rest."""
    name, worst, who = "loss still falling at the end", -np.inf, ""
    for member in chosen.members:
        if member.sees != "gradients":
            continue
        loss = np.array([row["loss"] for row in entries[member].history], float)
        part = max(1, round(LAST * len(loss)))
        whole = loss[:part].mean() - loss[-part:].mean()
        if len(loss) < 3:  # one or two steps: there is nothing that could have come to rest
            fall = 1.0
        else:
            half = max(1, part // 2)
            late = loss[-part : -half or None].mean() - loss[-half:].mean()
            fall = late / whole if whole > 0 else 0.0
        if fall > worst:
            worst, who = fall, member.label
    if not who:
        return _unknown(name, FALLING, "no white-box member")
    text = f"{100 * max(worst, 0):.0f} % of the whole fall of the loss is in the last steps ({who})"
    return Flag(name, bool(worst > FALLING), float(worst), FALLING, f"{text}; give it more steps")


def confidence_not_reached(chosen: Chosen) -> Flag:
    """Whether the target itself does not recognise the best reconstructions."""
    found = statistics.clustered_mean(chosen.best.double(), np.arange(len(chosen.best)), seed=SEED)
    high = found.high if np.isfinite(found.high) else found.value
    return Flag(
        "target confidence not reached",
        bool(high < REACHED),
        found.value,
        REACHED,
        f"the target's mean confidence in the best reconstructions is {found.value:.2f}; an attack that does not "
        "convince its own target says nothing of the defence: raise the budget",
    )


def diagnostic_inactive(diagnostic: Diagnostic | None) -> Flag:
    """Whether the defence did nothing."""
    name = "defence diagnostic inactive"
    if diagnostic is None:
        return _unknown(name, np.nan, "no diagnostic of the defence was given")
    text = f"{diagnostic.name} is {diagnostic.value:.3g}"
    return Flag(
        name,
        not diagnostic.active,
        diagnostic.value,
        np.nan,
        f"{text}; a defence that does nothing was attacked",
    )


def black_box_beats_white_box(chosen: Chosen) -> Flag:
    """Whether the target is more convinced by attacks without gradients: gradient masking."""
    name = "black-box beats white-box"
    white = [i for i, member in enumerate(chosen.members) if member.sees == "gradients"]
    black = [i for i, member in enumerate(chosen.members) if member.sees != "gradients"]
    if not white or not black:
        return _unknown(name, 0.0, "it needs a white-box and a black-box member")
    compared = statistics.compare_paired(
        chosen.confidence[black].amax(0).numpy(), chosen.confidence[white].amax(0).numpy(), seed=SEED
    ).difference
    return Flag(
        name,
        bool(compared.low > 0),
        compared.value,
        0.0,
        f"black-box minus white-box confidence is {compared.value:+.2f} [{compared.low:+.2f}, {compared.high:+.2f}]; "
        "above 0, gradients are masked: trust the black-box attacks, or attack through a smooth copy",
    )


def judge_disagrees_on_photos(
    target_right: Tensor | None, evaluator_right: Tensor | None, identity: Tensor | None
) -> Flag:
    """Whether the main evaluator fails on photos that the target gets right; hits (N,) and labels (N,)."""
    name = "evaluator and target disagree on real photos"
    if target_right is None or evaluator_right is None or identity is None or not target_right.any():
        return _unknown(name, AGREEMENT, "no real photos were given")
    right = target_right.bool()
    found = statistics.clustered_mean(
        evaluator_right[right].double(), identity[right], seed=SEED, average="micro"
    )
    high = found.high if np.isfinite(found.high) else found.value
    return Flag(
        name,
        bool(high < AGREEMENT),
        found.value,
        AGREEMENT,
        f"the evaluator gets {100 * found.value:.0f} % of the photos right that the target gets right; a judge "
        "below that cannot tell a failed reconstruction from its own error",
    )


def evaluators_disagree(hits: Mapping[str, Tensor]) -> Flag:
    """Whether two evaluators give the chosen reconstructions clearly different accuracies; hits (K,) each."""
    name = "evaluators disagree with each other"
    if len(hits) < 2:
        return _unknown(name, GAP, "it needs two evaluators")
    means = {role: float(right.double().mean()) for role, right in hits.items()}
    low, high = min(means, key=means.get), max(means, key=means.get)
    found = statistics.compare_paired(
        hits[high].double().numpy(), hits[low].double().numpy(), seed=SEED
    ).difference
    return Flag(
        name,
        bool(found.low > 0 and found.value > GAP),
        found.value,
        GAP,
        f"{high} recognises {100 * means[high]:.0f} %, {low} {100 * means[low]:.0f} %; the number is a property of "
        "the judge: report all of them, and an outside verifier",
    )


def collapsed(entries: Mapping, chosen: Chosen) -> Flag:
    """Whether a member's reconstructions of an identity are copies of one image."""
    name, worst, who = "candidates collapsed to duplicates", np.inf, ""
    for member in chosen.members:
        images = entries[member].images
        if images.shape[1] < 2 or len(images) < 2:
            continue
        flat = images.flatten(2)
        within = flat.std(1).square().mean(1).sqrt().median()
        between = flat[:, 0].std(0).square().mean().sqrt()
        spread = float(within / between.clamp_min(1e-12))
        if spread < worst:
            worst, who = spread, member.label
    if not who:
        return _unknown(name, COLLAPSED, "every member kept one reconstruction per identity")
    return Flag(
        name,
        bool(worst < COLLAPSED),
        worst,
        COLLAPSED,
        f"an identity's reconstructions differ {worst:.2f} times as much as identities do ({who}); where they are "
        "copies, n is smaller than it looks: start from other latents",
    )


def not_saturated(curve: Sequence[tuple[float, np.ndarray]] | None) -> Flag:
    """Whether the attack still grows with its budget; (passes, per-identity success (K,)) per budget."""
    name = "budget curve not saturated"
    if curve is None or len(curve) < 2:
        return _unknown(name, 0.0, "it needs the attack under two budgets")
    (_, before), (passes, after) = sorted(curve, key=lambda point: point[0])[-2:]
    found = statistics.compare_paired(
        np.asarray(after, float), np.asarray(before, float), seed=SEED
    ).difference
    return Flag(
        name,
        bool(found.low > 0),
        found.value,
        0.0,
        f"the last step of the budget, to {passes:.0f} passes per identity, adds {100 * found.value:+.1f} points "
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]; while it adds any, the number is a lower bound",
    )


def verifier_not_above_prior(chosen: Tensor | None, prior: Tensor | None) -> Flag:
    """Whether an independent verifier sees no more of the person than in prior samples; matches (K,) each."""
    name = "verifier not above prior samples"
    if chosen is None or prior is None:
        return _unknown(name, 0.0, "no verifier was given")
    found = statistics.compare_paired(chosen.double().numpy(), prior.double().numpy(), seed=SEED).difference
    return Flag(
        name,
        bool(found.low <= 0),
        found.value,
        0.0,
        f"the verifier accepts {100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}] more "
        "than of the prior samples they began as; where that is not above 0, no likeness is shown",
    )
