"""A classifier with its normalisation inside, its penultimate features exposed and a spec that rebuilds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError
from lib.models.ir import ImprovedResidual
from lib.models.residual import Residual


class Cosine(nn.Linear):
    """scale * cos(feature, class vector): the head of embeddings that are compared by angle."""

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Classifier(nn.Module):
    """images (B,3,S,S) in [0,1] -> logits (B,C).

    Attributes:
        body: normalised image -> penultimate features (B,d). head: features -> logits.
        spec: JSON values that rebuild the network. num_classes, image_size: what it expects.
    """

    def __init__(
        self, body: nn.Module, head: nn.Linear, *, spec: dict[str, Any], num_classes: int, image_size: int
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.spec, self.num_classes, self.image_size = spec, num_classes, image_size
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5), persistent=False)
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.5), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (B,d): what the last linear layer sees."""
        return self.body((images - self.mean) / self.std)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features, logits) in one pass."""
        features = self.features(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]

    def restart(self) -> None:
        """Begin the random draws of a network that answers at random anew; attacks do before every chunk."""
        for module in self.modules():
            if module is not self and hasattr(module, "restart"):
                module.restart()


def build_classifier(
    spec: dict[str, Any], num_classes: int, image_size: int, *, width: float = 1.0
) -> Classifier:
    """Build a network from a spec.

    Args:
        spec: ``{kind: residual | ir | densenet | torchvision, ...options}`` and optionally ``cosine``: the
            scale of a cosine head.
        width: multiplier of all widths.

    Raises:
        UserError: an unknown kind or option.
    """
    options = {key: value for key, value in spec.items() if key not in ("kind", "cosine")}
    kind = spec.get("kind")
    if width != 1.0 and kind not in ("residual", "ir"):
        raise UserError(f"network kind {kind!r} has one width; drop small(...), or use residual or ir")
    try:
        if kind == "residual":
            body: nn.Module = Residual(_scaled(options.pop("widths", (24, 48, 96, 192)), width), **options)
        elif kind == "ir":
            widths = _scaled(options.pop("widths", (32, 64, 128, 256)), width)
            body = ImprovedResidual(widths, image_size=image_size, **options)
        elif kind == "densenet":
            body = _headless(torchvision.models.DenseNet(num_classes=num_classes, **options))
        elif kind == "torchvision":
            model = torchvision.models.get_model(options.pop("name"), num_classes=num_classes, **options)
            body = _headless(model)
        else:
            raise UserError(
                f"network kind {kind!r} is unknown; expected residual, ir, densenet or torchvision"
            )
    except (TypeError, KeyError, ValueError, RuntimeError) as error:  # the last by torch, of negative sizes
        raise UserError(f"network {spec}: {error}; correct the setup's network") from error
    size = body.feature_size
    head = Cosine(size, num_classes, spec["cosine"]) if spec.get("cosine") else nn.Linear(size, num_classes)
    full = {**spec, "width": width} if width != 1.0 else dict(spec)
    return Classifier(body, head, spec=full, num_classes=num_classes, image_size=image_size)


def classifier_from(
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    *,
    surgery: Callable[[nn.Module], nn.Module] | None = None,
) -> Classifier:
    """Rebuild a stored classifier (fp16 weights are widened).

    Args:
        surgery: what was changed on the network before it was trained (:func:`lib.defences.restore`).
    """
    spec = dict(meta["spec"])
    width = spec.pop("width", 1.0)
    model: nn.Module = build_classifier(spec, meta["num_classes"], meta["image_size"], width=width)
    if surgery is not None:
        model = surgery(model)
    load_weights(model, tensors)
    return model.eval()


def load_weights(model: nn.Module, tensors: dict[str, Tensor], *, where: str = "checkpoint") -> None:
    """Load weights strictly, converting floats to fp32.

    Raises:
        UserError: names or shapes differ: another architecture or class count.
    """
    own = model.state_dict()
    absent, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if absent or extra:
        raise UserError(
            f"{where}: another architecture: {len(absent)} weights are missing (first {absent[:1]}), "
            f"{len(extra)} are unknown (first {extra[:1]}); check the network of the setup"
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}; "
                "another architecture or number of classes"
            )
    model.load_state_dict({n: t.to(own[n].dtype) for n, t in tensors.items()})


def _scaled(widths: Sequence[int], width: float) -> tuple[int, ...]:
    return tuple(max(4, round(value * width / 4) * 4) for value in widths)


def _headless(model: nn.Module) -> nn.Module:
    """Replace the last linear layer by the identity and note the size of what it saw."""
    name, last = next((n, m) for n, m in reversed(list(model.named_modules())) if isinstance(m, nn.Linear))
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Identity())
    model.feature_size = last.in_features
    return model
