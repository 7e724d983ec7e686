"""SSF: the skip connections of the last stage are scaled down.

Source: Koh et al., On the Vulnerability of Skip Connections to Model Inversion Attacks (ECCV 2024).
"""

from __future__ import annotations

from lib.defences._checks import number
from lib.defences._skips import SkipScale


class ScaledSkips(SkipScale):
    """``ssf(k)``: in every block of the last stage, out = relu(F(x) + k shortcut(x)), k fixed.

    In a dense block, after each layer the previous map keeps its first round(k channels) channels. Published:
    0.2 for residual networks, 0.01 for dense ones. The paper's page calls k learnable, its code holds it constant
    and so do we.

    Args:
        k: in [0, 1]; 1 is the stock network, bit for bit.

    Raises:
        UserError: for values out of range; when it meets a network without skips.
    """

    def __init__(self, k: float, *, cut: float) -> None:
        super().__init__(number("ssf k", k, 0, 1, usage="ssf(0.2)"), cut=cut)
