"""Defences: one file each, found by scanning this package; constants in YAML beside them.

``build("re(0.1,0.4)")`` makes the objects that the training loop calls; ``canonical`` is the one spelling of
a defence in tables, stage keys and figures. A new file ``<name>.py`` with one subclass of
:class:`lib.training.interface.Defence` is a new defence; nothing has to be registered.
"""

from lib.defences.names import Term, applied, canonical, constants, parse, resolved, spell
from lib.defences.registry import acted, build, defence_class, names, restore

__all__ = [
    "Term",
    "acted",
    "applied",
    "build",
    "canonical",
    "constants",
    "defence_class",
    "names",
    "parse",
    "resolved",
    "restore",
    "spell",
]
