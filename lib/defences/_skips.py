"""Skip connections of the last stage, scaled by k: what RoLSS, SSF and TTS share.

Source: Koh et al., On the Vulnerability of Skip Connections to Model Inversion Attacks (ECCV 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.densenet import _DenseBlock
from torchvision.models.resnet import BasicBlock, Bottleneck

from lib.defences._checks import number
from lib.errors import UserError
from lib.models import stages_of
from lib.models.ir import Unit
from lib.models.residual import Block
from lib.training.interface import Defence, History


class ScaledSkip(nn.Module):
    """k * shortcut(x); k is the buffer ``skip_scale``, so that it can change during training and is stored."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.register_buffer("skip_scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_scale * self.shortcut(x)


class KeptChannels(nn.Module):
    """layer(x), of whose channels each earlier map's first round(k c) and the newest map's all go on.

    The others are zero behind the layer, an activation or a normalisation with nothing but an activation after
    it: what follows computes exactly what one without these inputs would.

    Args:
        maps: channels c of each map that x (B,sum c,H,W) concatenates, oldest first.
    """

    def __init__(self, layer: nn.Module, maps: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("skip_scale", torch.ones(()))
        place = torch.cat([torch.arange(c) for c in maps])
        place[-maps[-1] :] = -1
        self.register_buffer("place", place, persistent=False)  # of a channel within its map
        self.register_buffer(
            "size", torch.tensor(maps).repeat_interleave(torch.tensor(maps)), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        kept = self.place < (self.skip_scale * self.size).round()
        return y * kept.to(y.dtype)[:, None, None]


def scalable_skips(model: nn.Module) -> list[nn.Module]:
    """Give every skip of the last stage a buffer ``skip_scale`` of 1 and list the modules that have it.

    Raises:
        UserError: the last stage has no skips.
    """
    found: list[nn.Module] = []
    for module in stages_of(model).stages[-1]:
        if isinstance(module, _DenseBlock):
            found += _dense_skips(module, model.body)
        else:
            found += _residual_skips(module)
    if not found:
        raise UserError(
            f"the last stage of {type(model.body).__name__} has no skip connections to scale: expected a residual "
            "or dense network, got a plain one; choose another network or defence"
        )
    return found


def earlier_skips(model: nn.Module, share: float) -> list[nn.Module]:
    """The same of the last blocks of the stage before the last one: a share of them, rounded up.

    Raises:
        UserError: these have no skips of a residual network.
    """
    stages = stages_of(model).stages
    blocks = [block for block in stages[-2] if not isinstance(block, _DenseBlock)] if len(stages) > 1 else []
    found = [skip for block in blocks[-math.ceil(share * len(blocks)) :] for skip in _residual_skips(block)]
    if not found:
        raise UserError(
            f"cut={share:g}: expected a residual network with skips before its last stage, got "
            f"{type(model.body).__name__}; leave cut out"
        )
    return found


def _residual_skips(block: nn.Module) -> list[nn.Module]:
    """What scales the skip of a residual block; nothing of another module."""
    if isinstance(block, Block):
        return [block]
    if isinstance(block, Unit):
        block.shortcut = ScaledSkip(block.shortcut)
        return [block.shortcut]
    if isinstance(block, (BasicBlock, Bottleneck)):
        block.downsample = ScaledSkip(nn.Identity() if block.downsample is None else block.downsample)
        return [block.downsample]
    return []


def _dense_skips(block: _DenseBlock, body: torchvision.models.DenseNet) -> list[nn.Module]:
    """From the second layer on, a layer sees older maps, and so does what follows the last one."""
    layers = list(block.values())
    width = layers[0].conv1.in_channels
    maps = [width, *(layer.conv2.out_channels for layer in layers)]
    for count, layer in enumerate(layers[1:], 2):
        layer.relu1 = KeptChannels(layer.relu1, maps[:count])
    body.features.norm5 = KeptChannels(body.features.norm5, maps)
    return [*(layer.relu1 for layer in layers[1:]), body.features.norm5]


class SkipScale(Defence):
    """Base: every skip of the last stage, the downsampling one included, is multiplied by ``scale``.

    Args:
        cut: share of the blocks of the stage before the last one, its last ones, that have no skips from the first step
            on. The released networks have it at 0.2, undefended ones, too, which the paper does not mention and which
            costs accuracy; 0 leaves them alone.
    """

    def __init__(self, scale: float, *, cut: float) -> None:
        self.scale = scale
        name = type(self).__module__.rpartition(".")[2]
        self.cut = number(f"{name} cut", cut, 0, 1, usage="cut=0.2")
        self._skips: list[nn.Module] = []

    def build(self, model: nn.Module) -> nn.Module:
        """The network with scaled skips.

        Raises:
            UserError: it has none in its last stage (or where ``cut`` looks), or another defence scales them.
        """
        other = getattr(model, "skips_of", None)
        if other:
            raise UserError(
                f"{self.name}: expected skips that no other defence scales, got those of {other}; drop one"
            )
        self._skips = scalable_skips(model)
        for module in earlier_skips(model, self.cut) if self.cut else []:
            module.skip_scale.fill_(0.0)
        model.skips_of = self.name
        self.set(self.scale)
        return model

    def set(self, scale: float) -> None:
        """Scale every skip from now on."""
        for module in self._skips:
            module.skip_scale.fill_(scale)

    def diagnostics(self) -> dict[str, float]:
        """``skip_scale``: the scale in force; NaN before there is a network."""
        scales = [float(module.skip_scale) for module in self._skips]
        return {"skip_scale": sum(scales) / len(scales) if scales else float("nan")}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether skips were scaled at the end."""
        return history[-1]["skip_scale"] != 1
