"""The referee: an ensemble of attacks with one verdict, and flags that say when it is not to be believed.

What AutoAttack is to adversarial robustness: no defence is judged by a single attack, per identity the best of
the ensemble counts as the target alone judges it, and a weak attack is made visible instead of passing for a
strong defence.
"""

from lib.attacks.referee.ensemble import (
    Chosen,
    Entry,
    Member,
    choose,
    combine,
    plain_confidence,
    run_members,
)
from lib.attacks.referee.flags import Diagnostic, Flag
from lib.attacks.referee.verdict import Evidence, Verdict, judge

__all__ = [
    "Chosen",
    "Diagnostic",
    "Entry",
    "Evidence",
    "Flag",
    "Member",
    "Verdict",
    "choose",
    "combine",
    "judge",
    "plain_confidence",
    "run_members",
]
