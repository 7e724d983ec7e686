"""Networks without batch norms: what groupnorm and dpsgd share.

Source: Wu and He, Group Normalization (ECCV 2018).
"""

from __future__ import annotations

from torch import nn

SMALLEST_GROUP = 4  # channels: with fewer, a map of one pixel would lose what it says


def group_count(channels: int, groups: int) -> int:
    """The largest number of equal groups, ``groups`` at most, that leaves four channels to each; else 1."""
    fits = (g for g in range(groups, 1, -1) if channels % g == 0 and channels // g >= SMALLEST_GROUP)
    return next(fits, 1)


def with_groups(model: nn.Module, groups: int) -> nn.Module:
    """The network with group norms in place of its batch norms; feature vectors (B,d) are normalised as a whole."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        count = 1 if isinstance(module, nn.BatchNorm1d) else group_count(module.num_features, groups)
        parent = model.get_submodule(name.rpartition(".")[0])
        norm = nn.GroupNorm(count, module.num_features, eps=module.eps, affine=module.affine)
        setattr(parent, name.rpartition(".")[2], norm)
    return model
