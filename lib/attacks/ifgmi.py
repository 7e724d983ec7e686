"""IF-GMI, intermediate-feature generative model inversion (Qiu et al., ECCV 2024), white box.

After PPA's optimisation of the latents the generator is opened: block by block, finer and finer, the features
that enter the rest of the generator are moved together with the latents, both kept in an l1 ball around where the
stage began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from lib.attacks.access import Access
from lib.attacks.chunks import run_chunks
from lib.attacks.interface import Callback, Reconstructions, check_inputs, networks, storable
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import poincare
from lib.attacks.optimise import refine, target_confidence
from lib.attacks.search import PoolBudget, pool_starts, starts_of
from lib.attacks.selection import rank
from lib.attacks.transforms import apply_crops, check_crop, draw_crops
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Block, Prior

NAME = "ifgmi"
ROUNDS = 30  # of the projection; what is left after a few is rounding


@dataclass(frozen=True, kw_only=True)
class IfgmiBudget(PoolBudget):
    """Defaults: the published FaceScrub run (50 steps on the latents, then 10 per stage).

    Attributes:
        pool: prior samples scored for the candidate search.
        steps: on the latents alone. feature_steps: on each of the following stages; as many stages.
        learning_rate: of Adam(.1, .1), so that no value ever moves more than this per step.
        radius: of the l1 balls, as a fraction of the furthest that the steps of a stage could move all values
            together (values x steps x learning rate): stages 1, 2, ...; the last one serves those after it.
            1 never binds. The published radii are absolute (2000 to 8000 at 1024 px) and as such fractions
            from "never" at the first stages to .02 at the last.
        crop_scale: area of the random crop drawn at each step.
        latent_radius: the same for the latents.
        reference: as the published code: one whole-pixel crop per step for all samples, and a stage starts
            from an empty image, so that what the blocks before it drew is lost and the image jumps. Else a crop
            per sample, and the image of those blocks is carried on. Either way the image that counts is that after the
            last step; the code keeps the one before it.
    """

    pool: int = 2000
    candidates: int = 50
    steps: int = 50
    feature_steps: tuple[int, ...] = (10,) * 7
    learning_rate: float = 0.005
    keep: int = 50
    truncation: float = 0.5
    radius: tuple[float, ...] = (1.0, 1.0, 0.6, 0.2, 0.06, 0.04, 0.02)
    crop_scale: tuple[float, float] = (0.9, 1.0)
    latent_radius: float = 1.0
    reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("latent_radius")
        for name in ("feature_steps", "radius", "crop_scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_crop(self.crop_scale)
        if not self.feature_steps or any(not isinstance(n, int) or n < 1 for n in self.feature_steps):
            raise UserError(
                f"budget feature_steps: expected whole numbers of at least 1, got {self.feature_steps}; use (10, 10)"
            )
        if not self.radius or not all(0 < r for r in self.radius):
            raise UserError(
                f"budget radius: expected numbers above 0, got {self.radius}; use e.g. (1.0, 0.2)"
            )

    @property
    def work(self) -> float:
        return self.candidates * ((self.steps + sum(self.feature_steps)) * 1.5 + self.views / 2)

    @property
    def descent(self) -> tuple[float, float]:
        return 1 - self.feature_steps[-1] / (self.steps + sum(self.feature_steps)), 1.0

    def short(self) -> Self:
        return replace(super().short(), feature_steps=(1,))


Budget = IfgmiBudget


def invert(
    target: Classifier,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: IfgmiBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments and errors as in :func:`lib.attacks.ppa.invert`. The latents of the
    result no longer make its images, which it therefore carries."""
    labels = check_inputs(target, prior, labels)
    stages = len(budget.feature_steps)
    if len(prior.blocks()) < stages + 1:
        raise UserError(
            f"ifgmi: expected a prior of at least {stages + 1} blocks for {stages} feature stages, got {prior.name} "
            f"with {len(prior.blocks())}; use a StyleGAN, or shorten feature_steps"
        )
    with frozen(*networks(target, prior)):
        access = Access(target, prior, fast=budget.fast)
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed),
            name=NAME,
            budget=budget,
            seed=seed,
            prepare=pool_starts(access, budget, seed=seed, callback=callback),
            callback=callback,
            checkpoint=checkpoint,
        )


def _attack(
    access: Access, labels: Tensor, prepared: dict[str, Tensor], *, budget: IfgmiBudget, seed: int
) -> dict[str, Tensor]:
    """One chunk: k labels on the device, their starts (k, n, d)."""
    starts = starts_of(prepared)
    at = State(starts.flatten(0, 1))
    stages = (budget.steps, *budget.feature_steps)
    histories = []
    for stage, steps in enumerate(stages):
        rest = access.prior.blocks()[stage:]
        at, history = _stage(access, labels, at, rest, stage=stage, steps=steps, budget=budget, seed=seed)
        histories.append(history)
        if stage + 1 < len(stages):
            with torch.no_grad():
                features, rgb = rest[0](at.features, at.rgb, at.latents)
            at = State(at.latents, features, torch.zeros_like(rgb) if budget.reference else rgb)
    with torch.no_grad():
        images = _render(access, rest, at)
    images = images.clamp(0, 1).mul(255).round().byte().unflatten(0, starts.shape[:2])
    judged = rank(access, images.float() / 255, labels, budget=budget, loss=poincare, seed=seed)
    return {
        "latents": storable(at.latents).view_as(starts),
        "initial": starts,
        "history": torch.cat(histories),
        "images": images,
        **judged,
    }


@dataclass(frozen=True)
class State:
    """Where the synthesis is opened: latents (B, d), and the features and image (B, c, s, s) that enter the next
    block; None before the first."""

    latents: Tensor
    features: Tensor | None = None
    rgb: Tensor | None = None

    def pack(self) -> Tensor:
        """(B, d + c s s): what is optimised."""
        return (
            self.latents if self.features is None else torch.cat([self.latents, self.features.flatten(1)], 1)
        )

    def unpack(self, values: Tensor) -> State:
        """The state with the latents and features of :meth:`pack`; the image stays."""
        width = self.latents.shape[1]
        if self.features is None:
            return replace(self, latents=values)
        features = values[:, width:].unflatten(1, self.features.shape[1:])
        return replace(self, latents=values[:, :width], features=features)


def _render(access: Access, rest: list[Block], at: State) -> Tensor:
    """The rest of the synthesis to images in [0, 1]."""
    access.counts["synthesis"] += len(at.latents)
    features, rgb = at.features, at.rgb
    for block in rest:
        features, rgb = block(features, rgb, at.latents)
    return access.prior.finish(rgb)


def _stage(
    access: Access,
    labels: Tensor,
    at: State,
    rest: list[Block],
    *,
    stage: int,
    steps: int,
    budget: IfgmiBudget,
    seed: int,
) -> tuple[State, Tensor]:
    """Move latents and features along the loss of the image that the ``rest`` of the generator makes of them."""
    flat = labels.repeat_interleave(budget.candidates)
    crops = _crops(labels.tolist(), steps, stage, budget=budget, seed=seed, size=access.target.image_size)
    crops = crops.to(access.device)
    start, width = at.pack(), at.latents.shape[1]
    radius = budget.radius[min(max(stage, 1), len(budget.radius)) - 1]
    furthest = steps * budget.learning_rate

    def objective(values: Tensor, step: int) -> tuple[Tensor, Tensor]:
        logits = access.logits(apply_crops(_render(access, rest, at.unpack(values)), crops[step]))
        return poincare(logits, flat), target_confidence(logits.detach(), flat)

    def project(values: Tensor) -> None:
        moved = values - start
        for part, share in ((slice(width), budget.latent_radius), (slice(width, None), radius)):
            if (count := moved[:, part].shape[1]) > 0:
                values[:, part] = start[:, part] + project_l1(moved[:, part], share * furthest * count)

    values, history = refine(
        access,
        start,
        objective,
        steps=steps,
        optimiser=partial(torch.optim.Adam, lr=budget.learning_rate, betas=(0.1, 0.1)),
        project=project,
    )
    return at.unpack(values), history


def _crops(labels: list[int], steps: int, stage: int, *, budget: IfgmiBudget, seed: int, size: int) -> Tensor:
    """(steps, k * candidates, 5), or (steps, 1, 5) with ``reference``."""
    if budget.reference:
        shared = generator(seed, "ifgmi", "crops", stage, "shared")
        return draw_crops(steps, 1, scale=budget.crop_scale, generator=shared, whole_pixels=size)
    draws = [
        draw_crops(
            steps,
            budget.candidates,
            scale=budget.crop_scale,
            generator=generator(seed, "ifgmi", "crops", stage, label),
        )
        for label in labels
    ]
    return torch.cat(draws, dim=1)


def project_l1(values: Tensor, radius: float) -> Tensor:
    """The nearest points (B, d), in the Euclidean sense, of the l1 ball around 0.

    Soft thresholding by the theta for which ``sum max(|x| - theta, 0)`` is the radius. Theta is found by
    Newton's rounds (Michelot 1986): each is the theta for which the values above the last one would be enough;
    they rise monotonically and end exactly, without sorting millions of values.
    """
    size = values.abs()
    theta = ((size.sum(1) - radius) / values.shape[1]).clamp_min(0.0)
    for _ in range(ROUNDS):
        above = size > theta[:, None]
        needed = ((size * above).sum(1) - radius) / above.sum(1).clamp_min(1)
        theta = torch.maximum(theta, needed)
    return values.sign() * (size - theta[:, None]).clamp_min(0.0)
