"""Training of PLG-MI's conditional GAN against one target (Yuan et al., AAAI 2023, section 3).

The target picks, for each of its classes, the public images it is surest of; the GAN learns these pseudo classes
by the hinge loss, and the generator besides to be recognised by the target through random views.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError
from lib.priors.conditional_gan import ConditionalGenerator, ConditionalSpec, build_conditional_networks
from lib.priors.guidance import ViewLaw, draw_views, look, max_margin
from lib.runtime import autocast, frozen, seed_for
from lib.store import Checkpoint

ROW_EVERY = 50
LABEL_BATCH = 256
RAMP = 0.05
SUMS = ("generator_loss", "margin", "agreement")
JUDGE_SUMS = ("discriminator_loss", "real_logit", "fake_logit")


@dataclass(frozen=True)
class ConditionalGanConfig:
    """What determines a trained conditional GAN, next to the images, the target and the seed.

    Attributes:
        steps: generator steps (published: 30 000).
        batch: images per step (published: 64).
        top: public images per class, those the target is surest of; an image may serve several classes.
        width, latent_dim: of the networks (:class:`~lib.priors.conditional_gan.ConditionalSpec`; published: 64, 128).
        n_critic: discriminator steps after each generator step, each on fakes of its own (published: 5).
        generator_rate, discriminator_rate: Adam's learning rates (betas 0, .9; published: 2e-4 both).
        decay: fraction of the steps, at the end, over which both rates fall linearly to a tenth; published: 0.
        margin_weight: of the max-margin loss of the target beside -D.
        views: through which the target sees generated images; the discriminator sees them as they are.
        mirror: whether every other real image is shown mirrored; published: not.
        ema_images: half-life of the generator's average, in generated images, and early on at most a twentieth
            of those seen; 0 keeps the last weights instead, as published.
    """

    steps: int = 3000
    batch: int = 32
    top: int = 30
    width: int = 16
    latent_dim: int = 128
    n_critic: int = 5
    generator_rate: float = 2e-4
    discriminator_rate: float = 2e-4
    decay: float = 0.0
    margin_weight: float = 0.2
    views: ViewLaw = field(default_factory=ViewLaw)
    mirror: bool = False
    ema_images: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "top", "width", "latent_dim", "n_critic"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name}: expected at least 1, got {getattr(self, name)}; give a positive number"
                )
        if self.batch < 2:  # of batch normalisation
            raise UserError(f"batch: expected at least 2, got {self.batch}; raise it")
        for name in ("generator_rate", "discriminator_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"{name}: expected above 0, got {getattr(self, name)}; the published one is 2e-4"
                )
        for name, highest in (("decay", 1.0), ("margin_weight", math.inf), ("ema_images", math.inf)):
            if not 0 <= getattr(self, name) <= highest or getattr(self, name) == math.inf:
                raise UserError(
                    f"{name}: expected 0 to {highest}, got {getattr(self, name)}; use 0 to do without"
                )


def top_images(probabilities: Tensor, count: int) -> Tensor:
    """(K, count) indices of the images of highest P(k | x) for each class k, surest first: (N, K) probabilities.
    An image may be among those of several classes."""
    return probabilities.topk(count, dim=0).indices.t().contiguous()


def pseudo_labelled(target: nn.Module, images: Tensor, count: int) -> Tensor:
    """:func:`top_images` of uint8 ``images`` (N, 3, S, S) by the target in evaluation mode."""
    parts = []
    with frozen(target), torch.no_grad(), autocast(images.device):
        for part in images.split(LABEL_BATCH):
            shown = (part.float() / 255).contiguous(memory_format=torch.channels_last)
            parts.append(target(shown).float().softmax(1))
    return top_images(torch.cat(parts), count)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """mean relu(1 - D(real)) + mean relu(1 + D(fake)) of logits (B,) each."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


class _Run:
    """Networks, optimisers, chosen images and random stream of one training, all in one saveable state."""

    NETWORKS = ("generator", "discriminator", "average")

    def __init__(
        self, spec: ConditionalSpec, config: ConditionalGanConfig, seed: int, device: torch.device
    ) -> None:
        networks = build_conditional_networks(spec, seed=seed_for(seed, "conditional gan", "weights"))
        self.generator, self.discriminator = (network.to(device).train() for network in networks)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.rates = config.generator_rate, config.discriminator_rate
        self.optimisers = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.9))
            for network, rate in zip(networks, self.rates, strict=True)
        ]
        self.random = torch.Generator(device=device).manual_seed(seed_for(seed, "conditional gan", "batches"))
        self.chosen = torch.empty(0, dtype=torch.int64)
        self.step = 0
        self.history: list[dict[str, float]] = []

    def state(self, fingerprint: str) -> dict[str, Any]:
        return {
            "fingerprint": fingerprint,
            **{name: getattr(self, name).state_dict() for name in self.NETWORKS},
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "chosen": self.chosen,
            "random": self.random.get_state(),
            "step": self.step,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any], fingerprint: str, removal: str) -> None:
        if state.get("fingerprint") != fingerprint:
            raise UserError(
                "conditional GAN checkpoint: expected one of this training (same configuration, seed, images and "
                f"target), got another's; remove it with {removal} and start again"
            )
        for name in self.NETWORKS:
            getattr(self, name).load_state_dict(state[name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.chosen = state["chosen"].to(self.random.device)
        self.random.set_state(state["random"])
        self.step, self.history = state["step"], list(state["history"])


def train_conditional_gan(
    images: Tensor,
    target: nn.Module,
    *,
    config: ConditionalGanConfig,
    seed: int,
    device: torch.device | None = None,
    checkpoint: Checkpoint | None = None,
    callback: Callable[[dict[str, float]], None] | None = None,
) -> tuple[ConditionalGenerator, list[dict[str, float]]]:
    """Train on public uint8 ``images`` (N, 3, S, S), of which the target chooses and labels some once, in
    evaluation mode. In its discriminator steps the published code also back-propagates through the generator, to no
    effect; here these fakes have no graph.

    The run is resumed exactly from ``checkpoint`` where there is one, bit for bit on one CPU and thread count.

    Args:
        device: where to train; the target must be there. By default where the images are.
        callback: gets every history row as it is made.

    Returns:
        The generator (its average with ``ema_images``), frozen and in evaluation mode, and the history, one row
        every 50 steps: ``step``, ``images`` (generated, in generator steps), ``unique_share`` of the chosen images
        (1: none serves two classes), and the means since the last row of ``generator_loss`` (-D), ``margin`` (the
        target's, through the views), ``agreement`` (share of views that the target gives the class wanted),
        ``discriminator_loss``, ``real_logit`` and ``fake_logit``.

    Raises:
        UserError: images of another size than the target's, too few, or not uint8; a target of too many classes;
            a checkpoint of another training; a loss that is not finite.
    """
    spec = _check(images, target, config)
    device = device or images.device
    run = _Run(spec, config, seed, device)
    digest = _digest(images, *target.state_dict().values())
    fingerprint = repr((config, spec, int(seed), tuple(images.shape), digest))
    checkpoint = checkpoint or Checkpoint()
    saved = checkpoint.load()
    if saved is not None:
        run.restore(saved, fingerprint, checkpoint.removal)
    else:
        run.chosen = pseudo_labelled(target, images.to(device), config.top)
    real = images.to(device)[run.chosen.flatten()]
    made = torch.zeros(len(SUMS), device=device)
    judged = torch.zeros(len(JUDGE_SUMS), device=device)
    with frozen(target):
        while run.step < config.steps:
            _set_rates(run, config)
            made += _learn_to_make(run, target, config)
            for _ in range(config.n_critic):
                judged += _learn_to_judge(run, real, config)
            run.step += 1
            if run.step % ROW_EVERY == 0 or run.step == config.steps:
                row = _row(run, made, judged, config)
                made.zero_()
                judged.zero_()
                if callback is not None:
                    callback(row)
                # only at rows, so that no partial sums need saving
                checkpoint.save(lambda: run.state(fingerprint), force=run.step == config.steps)
    kept = run.average if config.ema_images else run.generator
    return kept.eval().requires_grad_(False), run.history


def _check(images: Tensor, target: nn.Module, config: ConditionalGanConfig) -> ConditionalSpec:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise UserError(
            f"conditional GAN images: expected uint8 (N, 3, S, S), got {images.dtype} {shape}; decode them with "
            "lib.data"
        )
    if shape[-1] != target.image_size:
        raise UserError(
            f"conditional GAN images: expected the target's {target.image_size} pixels, got {shape[-1]}; resize "
            "the images"
        )
    if len(images) < config.top:
        raise UserError(
            f"conditional GAN images: expected at least top = {config.top}, got {len(images)}; lower top or add "
            "images"
        )
    return ConditionalSpec(target.num_classes, target.image_size, config.latent_dim, config.width)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def _set_rates(run: _Run, config: ConditionalGanConfig) -> None:
    left = (config.steps - run.step) / max(config.decay * config.steps, 1)
    for optimiser, rate in zip(run.optimisers, run.rates, strict=True):
        optimiser.param_groups[0]["lr"] = rate * (0.1 + 0.9 * min(1.0, left))


def _wanted(run: _Run, config: ConditionalGanConfig) -> tuple[Tensor, Tensor]:
    """z (B, d) and classes (B,), drawn uniformly."""
    spec, device = run.generator.spec, run.random.device
    z = torch.randn(config.batch, spec.latent_dim, generator=run.random, device=device)
    return z, torch.randint(spec.classes, (config.batch,), generator=run.random, device=device)


def _learn_to_make(run: _Run, target: nn.Module, config: ConditionalGanConfig) -> Tensor:
    """Generator update; returns the values of SUMS, on the device."""
    z, labels = _wanted(run, config)
    draws = draw_views(config.batch, generator=run.random)
    run.discriminator.requires_grad_(False)
    with autocast(z.device):
        fake = run.generator(z, labels)
        realness = run.discriminator(fake, labels)
    seen = look(fake, draws, config.views).contiguous(memory_format=torch.channels_last)
    with autocast(z.device):
        logits = target(seen)
    loss, margin = -realness.mean(), max_margin(logits, labels).mean()
    run.optimisers[0].zero_grad()
    (loss + config.margin_weight * margin).backward()
    run.optimisers[0].step()
    run.discriminator.requires_grad_(True)
    if config.ema_images:
        _average(run, config)
    agreement = (logits.argmax(1) == labels).float().mean()
    return torch.stack([value.detach() for value in (loss, margin, agreement)])


def _learn_to_judge(run: _Run, real: Tensor, config: ConditionalGanConfig) -> Tensor:
    """Discriminator update on chosen images ``real`` (K * top, 3, S, S); returns the values of JUDGE_SUMS."""
    index = torch.randint(len(real), (config.batch,), generator=run.random, device=real.device)
    shape = (config.batch, *real.shape[1:])
    # the uniform noise of dequantisation
    shown = (real[index] + torch.rand(shape, generator=run.random, device=real.device)) / 256
    if config.mirror:
        flip = torch.rand(config.batch, 1, 1, 1, generator=run.random, device=real.device) < 0.5
        shown = torch.where(flip, shown.flip(3), shown)
    z, labels = _wanted(run, config)
    with autocast(real.device):
        with torch.no_grad():
            fake = run.generator(z, labels)
        logits = run.discriminator(torch.cat([shown, fake]), torch.cat([index // config.top, labels]))
    on_real, on_fake = logits.chunk(2)
    loss = hinge(on_real, on_fake)
    run.optimisers[1].zero_grad()
    loss.backward()
    run.optimisers[1].step()
    return torch.stack([value.detach() for value in (loss, on_real.mean(), on_fake.mean())])


@torch.no_grad()
def _average(run: _Run, config: ConditionalGanConfig) -> None:
    """Move the average towards the generator; the statistics of its batch normalisation too."""
    half_life = min(config.ema_images, RAMP * (run.step + 1) * config.batch)
    weight = 1 - 0.5 ** (config.batch / half_life)
    pairs = zip(run.average.state_dict().values(), run.generator.state_dict().values(), strict=True)
    for kept, value in pairs:
        if kept.is_floating_point():
            kept.lerp_(value, weight)
        else:
            kept.copy_(value)


def _row(run: _Run, made: Tensor, judged: Tensor, config: ConditionalGanConfig) -> dict[str, float]:
    steps = run.step % ROW_EVERY or ROW_EVERY
    unique = len(run.chosen.unique()) / run.chosen.numel()
    row = {"step": run.step, "images": run.step * config.batch, "unique_share": unique}
    row |= {name: value / steps for name, value in zip(SUMS, made.tolist(), strict=True)}
    steps *= config.n_critic
    row |= {name: value / steps for name, value in zip(JUDGE_SUMS, judged.tolist(), strict=True)}
    if not all(math.isfinite(value) for value in row.values()):
        raise UserError(
            f"conditional GAN training: expected finite losses, got NaN or infinity before step {run.step}; lower "
            "the learning rates and train again"
        )
    run.history.append(row)
    return row
