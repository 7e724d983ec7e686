"""Model-inversion attacks, one per file: ``invert(target, prior, labels, *, budget, seed, ...)``.

A module of this package with ``NAME``, ``Budget`` and ``invert`` is an attack; :func:`get` finds it by name. When
what it does changes, by a default of its budget, too, its ``REVISION`` (1 if it has none) is raised: stored results are
known by what setups say and by that.
The stages they share (candidate search, optimisation, selection) are modules of their own.
"""

from lib.attacks.interface import Budget, Reconstructions
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.registry import Attack, get, names

__all__ = ["NOTHING", "Attack", "Budget", "Knowledge", "Reconstructions", "get", "names"]
