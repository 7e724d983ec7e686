"""Attacks other than inversion on the same targets: evasion, a backdoor, membership inference.

A defence against inversion may pay elsewhere: nearer decision borders, a trigger that is never erased, training
photos that stand out.
"""

from lib.robustness.backdoor import Backdoor, Poisoned, poison, stamp
from lib.robustness.evasion import Evasion, evade
from lib.robustness.membership import Membership, log_odds, membership

__all__ = [
    "Backdoor",
    "Evasion",
    "Membership",
    "Poisoned",
    "evade",
    "log_odds",
    "membership",
    "poison",
    "stamp",
]
