"""The stages of a network: what defences that freeze, tap or cut "the first", "each" or "the last stage" mean."""

from __future__ import annotations

from dataclasses import dataclass

import torchvision
from torch import nn

from lib.errors import UserError
from lib.models.ir import ImprovedResidual, Unit
from lib.models.residual import Residual


@dataclass(frozen=True)
class Stages:
    """A network's body, cut where the resolution falls.

    Attributes:
        stem: the modules before the first stage; empty where the first stage begins with the image.
        stages: the modules of each stage in order; the output of the last one is the stage's.
    """

    stem: list[nn.Module]
    stages: list[list[nn.Module]]


def stages_of(model: nn.Module) -> Stages:
    """The stages of a :class:`lib.models.Classifier`: residual stages; dense blocks, each with the transition
    before it; of a VGG, what ends with a pooling.

    Raises:
        UserError: a network whose stages are not known.
    """
    body = getattr(model, "body", None)
    if isinstance(body, Residual):
        return Stages([body.stem], [list(stage) for stage in body.stages])
    if isinstance(body, ImprovedResidual):
        layers = list(body.body)[:-1]  # without the normalisation behind the last stage
        return _cut_before(layers, [isinstance(m, Unit) and m.stride > 1 for m in layers])
    if isinstance(body, torchvision.models.ResNet):
        return Stages([body.conv1, body.bn1], [list(getattr(body, f"layer{i}")) for i in range(1, 5)])
    if isinstance(body, torchvision.models.DenseNet):
        named = {name: m for name, m in body.features.named_children() if name != "norm5"}
        begins = [name.startswith("transition") or name == "denseblock1" for name in named]
        return _cut_before(list(named.values()), begins)
    if isinstance(body, torchvision.models.VGG):
        layers = list(body.features)
        ends = [isinstance(m, nn.MaxPool2d) for m in layers]
        return _cut_before(layers, [True, *ends[:-1]])
    raise UserError(
        f"network {type(body or model).__name__}: expected one whose stages are known (residual, ir, densenet, or "
        "torchvision's ResNet, DenseNet or VGG), got another; choose another network or defence"
    )


def _cut_before(layers: list[nn.Module], begins: list[bool]) -> Stages:
    stem: list[nn.Module] = []
    stages: list[list[nn.Module]] = []
    for layer, begin in zip(layers, begins, strict=True):
        if begin:
            stages.append([])
        (stages[-1] if stages else stem).append(layer)
    return Stages(stem, stages)
