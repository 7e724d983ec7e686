"""Training of the small StyleGAN2: non-saturating logistic loss, lazy R1, EMA, differentiable augmentation.

Sources: Karras et al. 2020 (StyleGAN2: lazy regularisation every 16 steps, EMA), Mescheder et al. 2018 (R1),
Zhao et al. 2020 (DiffAugment). Both networks see one batch of fakes per step: the discriminator learns on it
first, then the updated discriminator judges the same images for the generator, which saves one synthesis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.errors import UserError
from lib.priors.adversarial import Run, check_images
from lib.priors.augment import augment
from lib.priors.stylegan import Discriminator, Generator, StyleSpec, build_networks, spec_for
from lib.runtime import autocast, digest, seed_for
from lib.store import Checkpoint

NAME = "GAN"
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
    spec = config.networks or spec_for(images.shape[-1])
    asked = {"least": config.batch, "asked": f"a batch of {config.batch}"}
    check_images(NAME, images, size=spec.image_size, whose="its networks'", **asked)
    device = device or images.device
    images = images.to(device)
    run = Run(
        NAME,
        build_networks(spec, seed=seed_for(seed, NAME.lower(), "weights")),
        rates=(config.generator_rate, config.discriminator_rate),
        betas=(0.0, 0.99),
        seed=seed,
        device=device,
        lazy=config.r1_every / (config.r1_every + 1),
    )
    fingerprint = repr((config, spec, int(seed), tuple(images.shape), digest(images)))
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
            checkpoint.save(lambda: run.state(fingerprint), force=run.step == config.steps)
    return *(
        network.eval().requires_grad_(False) for network in (run.average, run.discriminator)
    ), run.history


def _step(run: Run, images: Tensor, config: GanConfig) -> Tensor:
    """One update of both networks; returns (6,) sums for the history, on the device."""
    run.set_rates(config.steps, config.decay)
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
    seen = (run.step + 1) * config.batch
    run.move_average(config.batch, min(config.ema_images, max(config.ema_ramp * seen, 1e-8)))
    return torch.cat([penalty, generator_loss.detach().view(1)])


def _learn_to_judge(run: Run, real: Tensor, fake: Tensor, config: GanConfig) -> Tensor:
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


def _row(run: Run, sums: Tensor, config: GanConfig) -> dict[str, float]:
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
    run.record(row, "the learning rates or raise r1_gamma")
    return row
