"""NoDef control: group norms in place of batch norms, the network that DP-SGD trains, without its noise."""

from __future__ import annotations

from torch import nn

from lib.defences._checks import whole
from lib.defences._groups import with_groups
from lib.training.interface import Defence, History


class GroupNormNetwork(Defence):
    """``groupnorm``: every photo is normalised by itself, in groups of channels.

    Args:
        groups: at most so many, 1 or more, of at least four channels each.

    Raises:
        UserError: for values out of range.
    """

    def __init__(self, *, groups: int) -> None:
        self.groups = whole("groupnorm groups", groups, 1, usage="groups=32")
        self._replaced = 0

    def build(self, model: nn.Module) -> nn.Module:
        before = sum(isinstance(module, nn.GroupNorm) for module in model.modules())
        model = with_groups(model, self.groups)
        self._replaced = sum(isinstance(module, nn.GroupNorm) for module in model.modules()) - before
        return model

    def diagnostics(self) -> dict[str, float]:
        """``replaced``: normalisations that no longer look at the batch."""
        return {"replaced": float(self._replaced)}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether normalisations were replaced."""
        return history[-1]["replaced"] > 0
