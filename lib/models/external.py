"""A user's own classifier as target: a factory, a weights file, and how its input looks."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lib.errors import UserError
from lib.models.classifier import load_weights
from lib.setups.schema import from_dict

SHOWN_NAMES = 5  # of the people that an error lists


@dataclass(frozen=True)
class External:
    """What a setup says of the classifier (``target.network`` without its kind).

    Attributes:
        factory: ``package.module:function``, called without arguments. weights: the file, ``~`` allowed.
        mean, std: of the input's channels, as in its training: (image - mean) / std with the image in [0,1].
        class_names: the person of each output, spelled like the folders of the photos. Without them the
            outputs are taken to be the people in the order of their sorted folder names.
        feature_layer: see :class:`ExternalClassifier`.
    """

    factory: str
    weights: str
    mean: list[float] = field(default_factory=lambda: [0.5] * 3)
    std: list[float] = field(default_factory=lambda: [0.5] * 3)
    class_names: list[str] | None = None
    feature_layer: str | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise UserError(
                    f"target.network.{name}: expected three numbers, a channel each, got {values}"
                )
        if min(self.std) <= 0:
            raise UserError(f"target.network.std: expected numbers above 0, got {self.std}; it is divided by")
        names = self.class_names or []
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(
                f"target.network.class_names: expected each name once, got {listed(repeated)} again"
            )

    @property
    def path(self) -> Path:
        """The weights file.

        Raises:
            UserError: there is none.
        """
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise UserError(f"{path}: expected a weights file, found none; correct target.network.weights")
        return path

    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights file, and of the one that the factory is in.

        Raises:
            UserError: there is none.
        """
        with self.path.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        return {"weights_sha256": weights, "factory_sha256": _source_digest(self.factory)}


@cache  # as Python, which reads a module once
def _source_digest(factory: str) -> str:
    try:
        spec = importlib.util.find_spec(factory.partition(":")[0])
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    except (ImportError, ValueError, AttributeError, TypeError, OSError) as error:
        raise UserError(
            f"factory {factory!r}: expected package.module:function, found no such module ({error}); correct "
            "target.network.factory"
        ) from error


def external_config(content: dict[str, Any]) -> External:
    """Read and check ``target.network``, with or without its kind.

    Raises:
        UserError: an unknown or missing key, or a value that means nothing.
    """
    kept = {key: os.fspath(v) if isinstance(v, Path) else v for key, v in content.items() if key != "kind"}
    return from_dict(External, kept, "target.network")


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
        self.register_buffer("order", None, persistent=False)
        self._seen: list[Tensor] = []
        layer = modules[self.feature_layer]
        if isinstance(layer, nn.Linear):
            self.head = layer
            layer.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0].flatten(1)))
        else:
            layer.register_forward_hook(lambda _, __, output: self._seen.append(output.flatten(1)))
        features, logits = self._probe()
        self.num_classes, self.feature_size = logits.shape[1], features.shape[1]
        self._given = list(class_names or [])
        self.class_names = self._given or [str(k) for k in range(self.num_classes)]
        if len(self.class_names) != self.num_classes:
            raise UserError(
                f"{len(self.class_names)} class names given, the network has {self.num_classes} classes; "
                "give target.network.class_names one name a class"
            )

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, Tensor]:
        """Features and logits of two grey images.

        Raises:
            UserError: the network cannot take them, or returns something else.
        """
        size = self.image_size
        try:
            logits = self.network((torch.full((2, 3, size, size), 0.5) - self.mean) / self.std)
        except Exception as error:  # a network of somebody else's may raise anything
            raise UserError(
                f"the network does not take images 3 x {size} x {size} ({' '.join(str(error).split())[:200]}); "
                "set image_size to that of its training"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"the network returns {got}, expected logits (batch, classes); let the factory return one that does"
            )
        if not self._seen:
            raise UserError(
                f"feature_layer {self.feature_layer!r} is never used; name one that the images pass"
            )
        return self._seen.pop(), logits

    def number_like(self, people: Sequence[str]) -> None:
        """Put the classes into the order of ``people``, the names of the private photos' labels 0, 1, ...: from
        then on, logit k is of person k. A network without class names is taken to be in that order already.

        Raises:
            UserError: people and classes do not match one to one.
        """
        if self._given:
            unknown = [name for name in people if name not in self._given]
            if unknown:
                raise UserError(
                    f"target.network.class_names: expected the names of the private people, got none for "
                    f"{listed(unknown)}; spell them like the folders"
                )
            absent = [name for name in self._given if name not in people]
            if absent:
                raise UserError(
                    f"data.private: expected photos of everybody in target.network.class_names, found none (or fewer "
                    f"than min_images) of {listed(absent)}; add them"
                )
            self.order = torch.tensor([self._given.index(name) for name in people])
            self.head = None  # its rows are in the network's own order
        elif len(people) != self.num_classes:
            raise UserError(
                f"data.private: expected photos of the {self.num_classes} people the network tells apart, found "
                f"{len(people)} with enough of them; add photos, or lower min_images"
            )
        self.class_names = list(people)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features, logits) in one pass."""
        self._seen.clear()
        logits = self.network((images - self.mean) / self.std)
        return self._seen.pop(), logits if self.order is None else logits[:, self.order]

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


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def load_external(*, image_size: int, **content: Any) -> ExternalClassifier:
    """Build the network of :class:`External` and load a safetensors file or a state dict into it.

    Nothing in the weights file is executed: a pickle of anything but tensors is refused.

    Raises:
        UserError: ``content`` is not as :class:`External` says, or the network does not fit it.
    """
    config = external_config(content)
    module_name, _, function = config.factory.partition(":")
    try:
        network = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"factory {config.factory!r}: expected package.module:function that takes no arguments ({error})"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"factory {config.factory!r} returned {type(network).__name__}, expected a torch.nn.Module"
        )
    load_weights(network, read_weights(config.path), where=str(config.path))
    return ExternalClassifier(
        network,
        image_size=image_size,
        mean=config.mean,
        std=config.std,
        class_names=config.class_names,
        feature_layer=config.feature_layer,
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """A flat dict of tensors from a safetensors file or a state dict; compile prefixes are dropped."""
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
