"""A user's own classifier as target: a factory, a weights file, and how its input looks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lib.errors import UserError
from lib.models.classifier import load_weights


class ExternalClassifier(nn.Module):
    """Any network behind the interface of :class:`lib.models.Classifier`.

    Args:
        network: normalised image (B,3,S,S) -> logits (B,C).
        feature_layer: dotted name of a layer; its *input* is the feature if it is linear, its flattened
            output otherwise. Default: the last linear layer.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Sequence[str] | None = None,
        feature_layer: str | None = None,
    ) -> None:
        super().__init__()
        self.network, self.image_size = network.eval(), image_size
        linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        self.feature_layer = feature_layer or (linears[-1] if linears else "")
        modules = dict(network.named_modules())
        if not self.feature_layer or self.feature_layer not in modules:
            raise UserError(
                f"feature_layer {feature_layer!r} does not exist in the network; expected one of "
                f"{', '.join(list(modules)[-5:])} (the last five)"
            )
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)
        self._seen: list[Tensor] = []
        layer = modules[self.feature_layer]
        if isinstance(layer, nn.Linear):
            self.head = layer
            layer.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0].flatten(1)))
        else:
            layer.register_forward_hook(lambda _, __, output: self._seen.append(output.flatten(1)))
        with torch.no_grad():
            features, logits = self.both(torch.full((2, 3, image_size, image_size), 0.5))
        if logits.ndim != 2:
            raise UserError(
                f"the network returns shape {tuple(logits.shape)}, expected logits (batch, classes)"
            )
        self.num_classes, self.feature_size = logits.shape[1], features.shape[1]
        self.class_names = list(class_names) if class_names else [str(k) for k in range(self.num_classes)]
        if len(self.class_names) != self.num_classes:
            raise UserError(
                f"{len(self.class_names)} class names given, the network has {self.num_classes} classes"
            )

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features, logits) in one pass."""
        self._seen.clear()
        logits = self.network((images - self.mean) / self.std)
        return self._seen.pop(), logits

    def features(self, images: Tensor) -> Tensor:
        return self.both(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]

    def detected(self) -> dict[str, Any]:
        """What the check page shows."""
        return {
            "network": type(self.network).__name__,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "input": f"3 x {self.image_size} x {self.image_size}, values in [0,1]",
            "normalisation": f"mean {self.mean.flatten().tolist()}, std {self.std.flatten().tolist()}",
            "classes": self.num_classes,
            "feature layer": self.feature_layer,
            "feature size": self.feature_size,
        }


def load_external(
    *,
    factory: str,
    weights: str | Path,
    image_size: int,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    class_names: Sequence[str] | None = None,
    feature_layer: str | None = None,
) -> ExternalClassifier:
    """Build ``package.module:function`` and load a safetensors file or a state dict into it.

    Nothing in the weights file is executed: a pickle of anything but tensors is refused.
    """
    module_name, _, function = factory.partition(":")
    try:
        network = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"factory {factory!r}: expected package.module:function that takes no arguments ({error})"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"factory {factory!r} returned {type(network).__name__}, expected a torch.nn.Module")
    load_weights(network, read_weights(Path(weights)), where=str(weights))
    return ExternalClassifier(
        network,
        image_size=image_size,
        mean=mean,
        std=std,
        class_names=class_names,
        feature_layer=feature_layer,
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """A flat dict of tensors from a safetensors file or a state dict; compile prefixes are dropped."""
    if not path.is_file():
        raise UserError(f"{path}: expected a weights file, found none")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from error
    except Exception as error:  # torch raises several kinds for pickles it refuses to run
        raise UserError(
            f"{path}: refused, not a plain state dict of tensors (its pickle was not executed); save it with "
            "torch.save(model.state_dict(), ...) or as safetensors"
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{path}: expected a dict of tensors; save model.state_dict()")
    return {name.removeprefix("_orig_mod.").removeprefix("module."): t for name, t in tensors.items()}
