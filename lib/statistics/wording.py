"""What may be said in words about a trade-off, and when the paper's ratio means something."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lib.statistics.interval import Interval
from lib.statistics.paired import detectable_difference

# Below six identities the exact sign-flip test cannot reach 5 %, whatever the data.
_FEWEST_IDENTITIES = 6


@dataclass(frozen=True)
class Ratio:
    """The paper's trade-off ratio. ``defined`` is False, and ``note`` says why, where it means nothing."""

    value: float
    defined: bool
    note: str

    def __str__(self) -> str:
        return f"{self.value:.2f}" if self.defined else f"undefined ({self.note})"


@dataclass(frozen=True)
class Verdict:
    """``outcome``: "<defence> helps", "not established" or "<defence> hurts"; ``detectable``: the advantage
    that would be found with 80 % power; ``sentence`` says both."""

    outcome: str
    detectable: float
    sentence: str


def paper_ratio(
    *,
    nodef_attack: float,
    defence_attack: float,
    nodef_accuracy: float,
    defence_accuracy: float,
    near_zero: float = 0.01,
) -> Ratio:
    """(AttAcc_NoDef - AttAcc_Def) / (Nat_NoDef - Nat_Def), marked where it means nothing.

    Args:
        near_zero: utility losses up to this (a fraction; about two standard errors of the loss) are noise,
            which the ratio divides by.
    """
    gain, loss = nodef_attack - defence_attack, nodef_accuracy - defence_accuracy
    value = gain / loss if loss else float("nan")
    if abs(loss) <= near_zero:
        return Ratio(value, False, "utility loss near zero")
    if loss < 0:
        return Ratio(value, False, "dominates NoDef" if gain >= 0 else "utility gain, privacy loss")
    if gain < 0:
        return Ratio(value, False, "dominated by NoDef")
    return Ratio(value, True, "")


def verdict(interval: Interval, *, defence: str = "RE", level: float = 0.95) -> Verdict:
    """What an interval of the advantage over NoDef's frontier allows to say.

    "helps" or "hurts" needs an interval that excludes 0 and at least six identities (fewer cannot reach
    5 % in a sign-flip test); everything else, NaN limits included, is "not established".
    """
    detectable = detectable_difference(interval.standard_error(level=level), level=level)
    enough = interval.n >= _FEWEST_IDENTITIES
    if enough and interval.low > 0:
        outcome = f"{defence} helps"
    elif enough and interval.high < 0:
        outcome = f"{defence} hurts"
    else:
        outcome = "not established"
    size = (
        "an unknown difference" if np.isnan(detectable) else f"a difference of {100 * detectable:.1f} points"
    )
    sentence = f"{outcome}: {interval.percent(signed=True)}; {size} could have been detected with 80 % power"
    return Verdict(outcome, detectable, sentence)
