"""RoLSS: the last stage has no skip connections.

Source: Koh et al., On the Vulnerability of Skip Connections to Model Inversion Attacks (ECCV 2024).
"""

from __future__ import annotations

from lib.defences._skips import SkipScale


class NoLastSkips(SkipScale):
    """``rolss``: skip connections of the last stage are removed from the first step on; the same as ``ssf(0)``.

    A downsampling shortcut with weights stays in the network, unused, and a dense block becomes a plain chain.

    Raises:
        UserError: when it meets a network without skips.
    """

    def __init__(self, *, cut: float) -> None:
        super().__init__(0.0, cut=cut)
