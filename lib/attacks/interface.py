"""What every attack takes and returns: a budget, input checks, and the reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from lib.attacks.transforms import check_crop
from lib.errors import UserError
from lib.priors import PRIORS, ConditionalGan, Prior
from lib.runtime import frozen

Callback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all budgets have in common. Checked on construction.

    Attributes:
        candidates: latents optimised per identity.
        steps: optimisation steps per latent.
        learning_rate: in latent units (see the attack).
        keep: reconstructions kept per identity by the final selection.
        views: random views over which the target's confidence is averaged.
        view_scale, view_ratio: area and aspect ratio of those views (PPA's values).
        truncation: of the prior samples the attack starts from.
        chunk: identities per chunk; the work's memory grows with chunk x candidates, whatever the identities. Kept of
            each of these are only its starts, of an attack with a pool its samples' scores, and the results.
        fast: bf16 in the target's forward pass where the device has it; losses stay in fp32.
    """

    candidates: int
    steps: int
    learning_rate: float
    keep: int
    views: int = 100
    view_scale: tuple[float, float] = (0.5, 0.9)
    view_ratio: tuple[float, float] = (0.8, 1.2)
    truncation: float = 1.0
    chunk: int = 4
    fast: bool = True

    def __post_init__(self) -> None:
        self.require_count("candidates", "steps", "keep", "views", "chunk")
        self.require_positive("learning_rate", "truncation")
        for name in ("view_scale", "view_ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # YAML gives lists
        check_crop(self.view_scale, self.view_ratio)
        if self.keep > self.candidates:
            raise UserError(
                f"budget keep: expected at most the {self.candidates} candidates per identity, got "
                f"{self.keep}; keep fewer or try more"
            )

    @property
    def work(self) -> float:
        """Images through the target per identity, a backward pass counted as half a forward and backward one;
        for estimates of the time an attack takes."""
        return self.candidates * (self.steps * 1.5 + self.views / 2)

    @property
    def descent(self) -> tuple[float, float]:
        """Where in its history the loss descends at the full learning rate along what is moved last: from and to, as
        fractions of the steps."""
        return 0.0, 1.0

    def short(self) -> Self:
        """The same attack at next to no cost, to measure how fast it is."""
        few: dict[str, Any] = {"steps": 2, "views": 2}
        return replace(self, **few | ({"pool": self.candidates} if hasattr(self, "pool") else {}))

    def require_count(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(
                    f"budget {name}: expected a whole number of at least 1, got {value!r}; raise it"
                )

    def require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise UserError(f"budget {name}: expected a number above 0, got {value!r}; raise it")

    def require_choice(self, name: str, *known: str) -> None:
        if getattr(self, name) not in known:
            raise UserError(
                f"budget {name}: expected {' or '.join(known)}, got {getattr(self, name)!r}; choose one"
            )


@dataclass
class Reconstructions:
    """What an attack returns, for K identities, n candidates each, m of them kept. Everything on the CPU.

    Latents are rounded to fp16 before the target judges them, so that what is stored is what was judged.

    Attributes:
        labels: (K,) int64, in the caller's order.
        latents: (K, n, d) after the optimisation.
        initial: (K, n, d) where it started.
        selected: (K, m) int64 into n, best first, chosen by the target alone.
        confidence: (K, n) the target's mean p_y over the selection views.
        loss: (K, n) the attack's identity loss of the final, untransformed image.
        history: rows ``step, loss, confidence``: means over all latents during the optimisation.
        cost: per identity: ``target_forward, target_backward, synthesis, critic`` (images through the
            network), ``seconds``; and ``memory_mb`` at its peak, beyond networks and photos, where the system tells.
        attack: its name.
        images: (K, n, 3, S, S) uint8 of attacks whose results the prior cannot synthesise from their latents
            (intermediate features, a tuned generator); rounded before the target judges them. Else None.
    """

    labels: Tensor
    latents: Tensor
    initial: Tensor
    selected: Tensor
    confidence: Tensor
    loss: Tensor
    history: list[dict[str, float]]
    cost: dict[str, float]
    attack: str = ""
    images: Tensor | None = None

    def kept(self) -> Tensor:
        """(K, m, d): the selected latents, best first."""
        return self.latents.gather(1, self.selected[..., None].expand(-1, -1, self.latents.shape[-1]))

    def render(self, index: Tensor, synthesise: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, 3, S, S) in [0, 1]: the final images of flat, identity-major candidates ``index`` (N,)."""
        if self.images is None:
            return synthesise(self.latents.flatten(0, 1)[index])
        return self.images.flatten(0, 1)[index].float() / 255

    def to_tensors(self) -> dict[str, Tensor]:
        """For the store: latents as fp16 (nothing is lost, see above)."""
        images = {} if self.images is None else {"images": self.images}
        return images | {
            "labels": self.labels,
            "latents": self.latents.half(),
            "initial": self.initial.half(),
            "selected": self.selected,
            "confidence": self.confidence,
            "loss": self.loss,
        }

    def meta(self) -> dict[str, Any]:
        """The JSON beside the tensors."""
        return {"attack": self.attack, "history": self.history, "cost": self.cost}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Reconstructions:
        """Inverse of :meth:`to_tensors` and :meth:`meta`."""
        values = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        return cls(**values, **{name: meta[name] for name in ("attack", "history", "cost")})


def storable(latents: Tensor) -> Tensor:
    """The nearest latents that fp16 can hold, as fp32."""
    return latents.detach().half().float()


def networks(target: nn.Module, prior: Prior, *more: nn.Module) -> list[nn.Module]:
    """Everything an attack passes gradients through and must leave as it was."""
    parts = [target, prior, *getattr(prior, "__dict__", {}).values(), *more]
    return [part for part in parts if isinstance(part, nn.Module)]


def check_labels(target: nn.Module, labels: Sequence[int] | Tensor) -> Tensor:
    """(K,) int64 on the CPU.

    Raises:
        UserError: empty, not whole, repeated, or a label that the target does not have.
    """
    given = torch.as_tensor(labels).detach().cpu()
    if given.ndim != 1 or given.numel() == 0:
        raise UserError(
            f"labels: expected a list of at least one label, got shape {tuple(given.shape)}; name the classes"
        )
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise UserError(f"labels: expected whole numbers, got {given.dtype}; pass class indices")
    given = given.long()
    outside = given[(given < 0) | (given >= target.num_classes)]
    if len(outside):
        raise UserError(
            f"labels: expected classes 0 to {target.num_classes - 1}, got {outside[0].item()}; remove it"
        )
    if len(given.unique()) != len(given):
        raise UserError("labels: expected each label once, got repeated ones; raise candidates instead")
    return given


def check_kind(target: nn.Module, prior: Prior, *, attack: str, kind: str) -> None:
    """Refuse a prior that an attack on one kind of prior alone cannot use, and say what it lacks.

    Raises:
        UserError: no critic where the kind has one, other classes than the target's where the kind has classes,
            or another kind.
    """
    classes = getattr(prior, "classes", None)
    if PRIORS[kind].critic is not None and getattr(prior, "critic", None) is None:
        wanted, found = "a prior with a critic", f"{prior.name} without one"
    elif prior.name != kind:
        wanted, found = f"a prior of kind {kind}", prior.name
    elif classes is not None and classes != target.num_classes:
        wanted = f"a {kind} of the target's {target.num_classes} classes"
        found = f"a {prior.name} of {classes} classes"
    else:
        return
    raise UserError(f"{attack}: expected {wanted}, got {found}; train {kind} against this target")


def refuse_oracle(target: nn.Module) -> None:
    """Raises: UserError for a target that only answers questions."""
    if hasattr(target, "ask"):
        raise UserError(
            "target: expected a network that passes gradients, got an oracle that answers with "
            f"{target.reveals}; use an attack that needs no gradients (black box)"
        )


def check_inputs(
    target: nn.Module,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    gradients: bool = True,
    attack: str = "attack",
    kind: str | None = None,
) -> Tensor:
    """Refuse what would fail, or silently do nothing, hours later. Costs one pass of one image, and of an oracle
    no query.

    Args:
        kind: the only kind of prior that the ``attack`` works with (its ``PRIOR``); None for any.

    Returns:
        (K,) int64 labels on the CPU.

    Raises:
        UserError: bad labels; a prior that is not of the ``kind`` (:func:`check_kind`), or a conditional one where any
            is taken; prior and target of different image sizes; a target or (with ``gradients``) a prior that no
            gradient passes through; logits of a wrong shape or not finite.
    """
    blind = hasattr(target, "ask")  # an oracle
    if gradients:
        refuse_oracle(target)
    given = check_labels(target, labels)
    if kind is not None:
        check_kind(target, prior, attack=attack, kind=kind)
    elif prior.name == ConditionalGan.name:
        raise UserError(
            f"{attack}: expected a prior whose latents say nothing of the class, got a {prior.name}, whose latents "
            "carry it as a number that would be moved; use plgmi, or another prior"
        )
    if prior.image_size != target.image_size:
        raise UserError(
            f"prior: expected images of {target.image_size} px like the target's, got {prior.image_size} px; "
            "use a prior of that size"
        )
    device = target.device if blind else device_of(target)
    latents = prior.sample(1, generator=torch.Generator().manual_seed(0)).detach()
    if latents.device != device:
        raise UserError(
            f"prior: expected it on the target's device {device}, got {latents.device}; "
            f"use prior.to({str(device)!r})"
        )
    with frozen(*networks(target, prior)), torch.enable_grad():
        images = prior.synthesise(latents.requires_grad_(gradients))
        if blind:  # asking would cost a query
            return given
        probe = images.detach().requires_grad_(gradients)
        logits = target(probe)
    if logits.shape != (1, target.num_classes) or not logits.isfinite().all():
        raise UserError(
            f"target: expected finite logits of shape (1, {target.num_classes}), got {tuple(logits.shape)}"
            f"{'' if logits.isfinite().all() else ' with NaN or infinity'}; check its weights"
        )
    if gradients and not (images.requires_grad and logits.requires_grad):
        guilty = "prior" if not images.requires_grad else "target"
        raise UserError(
            f"{guilty}: expected a network that passes gradients to its input, got a detached output; use an "
            "attack that needs no gradients (black box)"
        )
    return given


def device_of(module: nn.Module) -> torch.device:
    """Where a network's weights lie (the CPU if it has none)."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
