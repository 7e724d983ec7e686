"""Training of the small StyleGAN2: non-saturating logistic loss, lazy R1, EMA, differentiable augmentation.

Sources: Karras et al. 2020 (StyleGAN2: lazy regularisation every 16 steps, EMA), Mescheder et al. 2018 (R1),
Zhao et al. 2020 (DiffAugment). Both networks see one batch of fakes per step: the discriminator learns on it
first, then the updated discriminator judges the same images for the generator, which saves one synthesis.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError
from lib.priors.augment import augment
from lib.priors.stylegan import Discriminator, Generator, StyleSpec, build_networks, spec_for
from lib.runtime import autocast, seed_for
from lib.store import Checkpoint

ROW_EVERY = 100


@dataclass(frozen=True)
class GanConfig:
    """What determines a trained GAN, next to the images and the seed.

    Attributes:
        steps: training steps (one discriminator and one generator update each).
        batch: images per step.
        generator_rate, discriminator_rate: Adam learning rates (betas 0, 0.99).
        decay: fraction of the steps, at the end, over which both rates fall linearly to a tenth.
        r1_gamma: weight of the gradient penalty gamma/2 E|dD/dx|^2 on real images, x in units of [-1, 1].
        r1_every: steps between penalties (lazy regularisation; the penalty is scaled up accordingly).
        r1_batch: real images the penalty is computed on.
        ema_images: half-life of the generator average, in images.
        ema_ramp: early on, the half-life is at most this fraction of the images seen so far.
        augment_probability: chance of each of colour, translation and cutout per image.
        networks: None for :func:`lib.priors.stylegan.spec_for` at the images' size.
    """

    steps: int = 30_000
    batch: int = 32
    generator_rate: float = 2e-3
    discriminator_rate: float = 2e-3
    decay: float = 0.2
    r1_gamma: float = 0.03
    r1_every: int = 16
    r1_batch: int = 16
    ema_images: float = 10_000
    ema_ramp: float = 0.05
    augment_probability: float = 0.15
    networks: StyleSpec | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "r1_every", "r1_batch"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name}: expected at least 1, got {getattr(self, name)}; give a positive number"
                )
        if not 0 <= self.augment_probability <= 1 or not 0 <= self.decay <= 1:
            raise UserError("augment_probability and decay: expected values in [0, 1]; correct the setup")


class _Run:
    """Networks, optimisers and random stream of one training, all in one saveable state."""

    def __init__(self, spec: StyleSpec, config: GanConfig, seed: int, device: torch.device) -> None:
        networks = build_networks(spec, seed=seed_for(seed, "gan", "weights"))
        self.generator, self.discriminator = networks
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        for network in (self.generator, self.discriminator, self.average):
            network.to(device)
        lazy = config.r1_every / (config.r1_every + 1)
        self.rates = (config.generator_rate, config.discriminator_rate * lazy)
        self.optimisers = (
            _adam(self.generator, self.rates[0], 1.0),
            _adam(self.discriminator, self.rates[1], lazy),
        )
        self.random = torch.Generator(device=device).manual_seed(seed_for(seed, "gan", "batches"))
        self.step = 0
        self.history: list[dict[str, float]] = []

    def state(self, spec: StyleSpec, fingerprint: str) -> dict[str, Any]:
        return {
            "fingerprint": fingerprint,
            "spec": spec.as_dict(),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "random": self.random.get_state(),
            "step": self.step,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any], fingerprint: str, removal: str) -> None:
        if state.get("fingerprint") != fingerprint:
            raise UserError(
                "GAN checkpoint: expected one of this training (same configuration, seed and images), got "
                f"another's; remove it with {removal} and start again"
            )
        for name in ("generator", "discriminator", "average"):
            getattr(self, name).load_state_dict(state[name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.random.set_state(state["random"])
        self.step, self.history = state["step"], list(state["history"])


def _adam(network: nn.Module, rate: float, lazy: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.99**lazy), eps=1e-8)


def train_gan(
    images: Tensor,
    *,
    config: GanConfig,
    seed: int,
    device: torch.device | None = None,
    checkpoint: Checkpoint | None = None,
    callback: Callable[[dict[str, float]], None] | None = None,
) -> tuple[Generator, Discriminator, list[dict[str, float]]]:
    """Train on uint8 ``images`` (N, 3, S, S).

    The run is resumed exactly from ``checkpoint`` where there is one: killed and resumed equals
    uninterrupted, bit for bit on one device and thread count.

    Args:
        device: where to train; by default where the images are.
        callback: gets every history row as it is made.

    Returns:
        The averaged generator and the discriminator, both frozen and in evaluation mode, and the history, one
        row every 100 steps: ``step``, ``images`` seen, and the means since the last row of
        ``discriminator_loss``, ``generator_loss``, ``real_logit``, ``fake_logit`` and ``r1`` (E|dD/dx|^2;
        absent if none was computed).

    Raises:
        UserError: images of another size than the networks, too few, or not uint8; a checkpoint of another
            training; a loss that is not finite.
    """
    spec = _check(images, config)
    device = device or images.device
    images = images.to(device)
    content = hashlib.sha256(images.cpu().contiguous().numpy()).hexdigest()[:16]
    fingerprint = repr((config, spec, int(seed), tuple(images.shape), content))
    run = _Run(spec, config, seed, device)
    checkpoint = checkpoint or Checkpoint()
    saved = checkpoint.load()
    if saved is not None:
        run.restore(saved, fingerprint, checkpoint.removal)
    sums = torch.zeros(6, device=device)
    while run.step < config.steps:
        sums += _step(run, images, config)
        run.step += 1
        if run.step % ROW_EVERY == 0 or run.step == config.steps:
            row = _row(run, sums, config)
            sums.zero_()
            if callback is not None:
                callback(row)
            # only at rows, so that no partial sums need saving
            checkpoint.save(lambda: run.state(spec, fingerprint), force=run.step == config.steps)
    return run.average, run.discriminator.eval().requires_grad_(False), run.history


def generator_from_checkpoint(state: dict[str, Any]) -> tuple[Generator, Discriminator]:
    """Averaged generator and discriminator from ``checkpoint.load()`` of a training that may still run."""
    spec = StyleSpec(**state["spec"])
    generator, discriminator = build_networks(spec)
    generator.load_state_dict(state["average"])
    discriminator.load_state_dict(state["discriminator"])
    return generator.eval().requires_grad_(False), discriminator.eval().requires_grad_(False)


def _check(images: Tensor, config: GanConfig) -> StyleSpec:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise UserError(
            f"GAN images: expected uint8 (N, 3, S, S), got {images.dtype} {shape}; decode them with lib.data"
        )
    spec = config.networks or spec_for(images.shape[-1])
    if spec.image_size != images.shape[-1]:
        raise UserError(
            f"GAN images: expected {spec.image_size} pixels as in config.networks, got {images.shape[-1]}; "
            "resize the images or leave networks unset"
        )
    if len(images) < config.batch:
        raise UserError(
            f"GAN images: expected at least a batch of {config.batch}, got {len(images)}; lower batch or "
            "add images"
        )
    return spec


def _step(run: _Run, images: Tensor, config: GanConfig) -> Tensor:
    """One update of both networks; returns (6,) sums for the history, on the device."""
    progress = (config.steps - run.step) / max(config.decay * config.steps, 1)
    for optimiser, rate in zip(run.optimisers, run.rates, strict=True):
        optimiser.param_groups[0]["lr"] = rate * (0.1 + 0.9 * min(1.0, progress))
    device, random, probability = images.device, run.random, config.augment_probability
    index = torch.randint(len(images), (config.batch,), generator=random, device=device)
    flip = torch.rand(config.batch, 1, 1, 1, generator=random, device=device) < 0.5
    real = images[index].float() / 255
    real = augment(torch.where(flip, real.flip(3), real), probability, generator=random)
    z = torch.randn(config.batch, run.generator.spec.latent_dim, generator=random, device=device)

    with autocast(device):
        fake = run.generator(z)
    penalty = _learn_to_judge(run, real, augment(fake.detach(), probability, generator=random), config)

    run.discriminator.requires_grad_(False)
    with autocast(device):
        logit = run.discriminator(augment(fake, probability, generator=random))
    generator_loss = F.softplus(-logit).mean()
    run.optimisers[0].zero_grad()
    generator_loss.backward()
    run.optimisers[0].step()
    run.discriminator.requires_grad_(True)
    _average(run, config)
    return torch.cat([penalty, generator_loss.detach().view(1)])


def _learn_to_judge(run: _Run, real: Tensor, fake: Tensor, config: GanConfig) -> Tensor:
    """Discriminator update; returns (5,): loss, real logit, fake logit, squared gradient norm, its count."""
    with autocast(real.device):
        on_real, on_fake = run.discriminator(real), run.discriminator(fake)
    loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
    run.optimisers[1].zero_grad()
    loss.backward()
    norm, count = real.new_zeros(()), 0
    if run.step % config.r1_every == 0:
        norm, count = _gradient_norm(run.discriminator, real[: config.r1_batch]), 1
        (norm * (config.r1_gamma / 2 * config.r1_every)).backward()
    run.optimisers[1].step()
    parts = (loss, on_real.mean(), on_fake.mean(), norm, norm.new_tensor(float(count)))
    return torch.stack([part.detach() for part in parts])


def _gradient_norm(discriminator: Discriminator, real: Tensor) -> Tensor:
    """E|dD/dx|^2 with x in units of [-1, 1], in fp32 (Mescheder et al. 2018, eq. 9)."""
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return (gradient / 2).square().sum((1, 2, 3)).mean()


@torch.no_grad()
def _average(run: _Run, config: GanConfig) -> None:
    seen = (run.step + 1) * config.batch
    half_life = min(config.ema_images, max(config.ema_ramp * seen, 1e-8))
    weight = 1 - 0.5 ** (config.batch / half_life)
    torch._foreach_lerp_(list(run.average.parameters()), list(run.generator.parameters()), weight)


def _row(run: _Run, sums: Tensor, config: GanConfig) -> dict[str, float]:
    steps = run.step % ROW_EVERY or ROW_EVERY
    judge, real, fake, norm, penalties, generator = sums.tolist()
    row = {
        "step": run.step,
        "images": run.step * config.batch,
        "discriminator_loss": judge / steps,
        "generator_loss": generator / steps,
        "real_logit": real / steps,
        "fake_logit": fake / steps,
    }
    if penalties:
        row["r1"] = norm / penalties
    if not all(math.isfinite(value) for value in row.values()):
        raise UserError(
            f"GAN training: expected finite losses, got NaN or infinity before step {run.step}; lower the "
            "learning rates or raise r1_gamma and train again"
        )
    run.history.append(row)
    return row
