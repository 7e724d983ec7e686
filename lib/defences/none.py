"""NoDef: plain training, the reference point of every comparison."""

from lib.training.interface import Defence


class NoDefence(Defence):
    """``none``: every member is the identity."""
