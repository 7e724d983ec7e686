"""Training of KEDMI's inversion-specific GAN (Chen et al., ICCV 2021, section 3.1) against one target.

The discriminator learns the target's soft labels of public images besides real from generated; the generator
matches the discriminator's mean features of real images and is to be sure of its class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError
from lib.priors.adversarial import Run, check_images
from lib.priors.inversion_gan import (
    DcganGenerator,
    DcganSpec,
    InversionDiscriminator,
    build_inversion_networks,
)
from lib.runtime import autocast, digest, frozen, seed_for
from lib.store import Checkpoint

NAME = "inversion GAN"
ROW_EVERY = 100
LABEL_BATCH = 256
SUMS = ("discriminator_loss", "label_loss", "real_logit", "fake_logit")
GENERATOR_SUMS = ("generator_loss", "feature_gap", "entropy")


@dataclass(frozen=True)
class InversionGanConfig:
    """What determines a trained inversion GAN, next to the images, the target and the seed.

    Attributes:
        steps: discriminator steps (published: 56 000).
        batch: images per step, of each of labelled, unlabelled and generated ones.
        width, latent_dim: of the networks (:class:`~lib.priors.inversion_gan.DcganSpec`; published: 64, 100).
        n_critic: discriminator steps per generator step (published: 5).
        rate: Adam's learning rate of both networks (betas .5, .999).
        entropy_weight: of the mean entropy of D's classes on generated images. Published: 1e-4 times the sum
            over a batch of 64, here the same per image, so that it does not depend on the batch.
        ema_images: half-life of the generator's average, in generated images; 0 keeps the last weights instead,
            as published.
    """

    steps: int = 5000
    batch: int = 64
    width: int = 24
    latent_dim: int = 100
    n_critic: int = 5
    rate: float = 2e-4
    entropy_weight: float = 6.4e-3
    ema_images: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "width", "latent_dim", "n_critic"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name}: expected at least 1, got {getattr(self, name)}; give a positive number"
                )
        if not self.rate > 0:
            raise UserError(f"rate: expected above 0, got {self.rate}; the published one is 2e-4")
        for name in ("entropy_weight", "ema_images"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"{name}: expected at least 0, got {getattr(self, name)}; use 0 to do without"
                )


def soft_cross_entropy(soft: Tensor, logits: Tensor) -> Tensor:
    """-mean over the batch of sum_k P_k log softmax(logits)_k: (B, K) twice to a scalar."""
    return -(soft * logits.log_softmax(1)).sum(1).mean()


def unlabelled_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the binary cross entropy of p(real) = sigmoid(logsumexp) on real and generated images, from logits
    (B, K) each. The published softplus(a) - a is softplus(-a) here, which large a do not cancel in."""
    return 0.5 * (F.softplus(-real.logsumexp(1)).mean() + F.softplus(fake.logsumexp(1)).mean())


def generator_terms(real_features: Tensor, fake_features: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of the batches' mean features (B, d), averaged over d, and the mean entropy of the classes
    from logits (B, K)."""
    gap = (fake_features.mean(0) - real_features.mean(0)).abs().mean()
    log_p = fake.log_softmax(1)
    return gap, -(log_p.exp() * log_p).sum(1).mean()


def train_inversion_gan(
    images: Tensor,
    target: nn.Module,
    *,
    config: InversionGanConfig,
    seed: int,
    device: torch.device | None = None,
    checkpoint: Checkpoint | None = None,
    callback: Callable[[dict[str, float]], None] | None = None,
) -> tuple[DcganGenerator, InversionDiscriminator, list[dict[str, float]]]:
    """Train on public uint8 ``images`` (N, 3, S, S) with what ``target`` says of them.

    The target labels every image once, in evaluation mode. The published code asks it anew in every step, in
    training mode: batch statistics and dropout change the labels there, and its running statistics drift.

    The run is resumed exactly from ``checkpoint`` where there is one, bit for bit on one device and thread
    count.

    Args:
        device: where to train; the target must be there. By default where the images are.
        callback: gets every history row as it is made.

    Returns:
        The generator (its average with ``ema_images``) and the discriminator, both frozen and in evaluation
        mode, and the history, one row every 100 steps: ``step``, ``images`` (real ones seen), and the means
        since the last row of ``discriminator_loss``, its part ``label_loss``, ``real_logit`` and
        ``fake_logit`` (logsumexp), and of ``generator_loss`` with its parts ``feature_gap`` and ``entropy``
        (absent if the generator made no step).

    Raises:
        UserError: images of another size than the target's, too few, or not uint8; a checkpoint of another
            training; a loss that is not finite.
    """
    asked = {"least": config.batch, "asked": f"a batch of {config.batch}"}
    check_images(NAME, images, size=target.image_size, whose="the target's", **asked)
    device = device or images.device
    images = images.to(device)
    spec = DcganSpec(images.shape[-1], config.latent_dim, config.width)
    run = Run(
        NAME,
        build_inversion_networks(spec, target.num_classes, seed=seed_for(seed, NAME.lower(), "weights")),
        rates=(config.rate, config.rate),
        betas=(0.5, 0.999),
        seed=seed,
        device=device,
    )
    content = digest(images, *target.state_dict().values())
    fingerprint = repr((config, int(seed), tuple(images.shape), content))
    checkpoint = checkpoint or Checkpoint()
    saved = checkpoint.load()
    if saved is not None:
        run.restore(saved, fingerprint, checkpoint.removal)
    labels = soft_labels(target, images)
    judged = torch.zeros(len(SUMS), device=device)
    made = torch.zeros(len(GENERATOR_SUMS), device=device)
    while run.step < config.steps:
        judged += _learn_to_judge(run, images, labels, config)
        if (run.step + 1) % config.n_critic == 0:
            made += _learn_to_make(run, images, config)
        run.step += 1
        if run.step % ROW_EVERY == 0 or run.step == config.steps:
            row = _row(run, judged, made, config)
            judged.zero_()
            made.zero_()
            if callback is not None:
                callback(row)
            # only at rows, so that no partial sums need saving
            checkpoint.save(lambda: run.state(fingerprint), force=run.step == config.steps)
    kept = run.average if config.ema_images else run.generator
    return *(network.eval().requires_grad_(False) for network in (kept, run.discriminator)), run.history


def soft_labels(target: nn.Module, images: Tensor) -> Tensor:
    """(N, K): the target's softmax of uint8 images (N, 3, S, S), in evaluation mode."""
    with frozen(target), torch.no_grad():
        parts = (target(part.float() / 255).float().softmax(1) for part in images.split(LABEL_BATCH))
        return torch.cat(list(parts))


def _pick(run: Run, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Random images (count, 3, S, S) in [0, 1] and their indices."""
    index = torch.randint(len(images), (count,), generator=run.random, device=images.device)
    return images[index].float() / 255, index


def _noise(run: Run, config: InversionGanConfig, device: torch.device) -> Tensor:
    return torch.randn(config.batch, config.latent_dim, generator=run.random, device=device)


def _learn_to_judge(run: Run, images: Tensor, labels: Tensor, config: InversionGanConfig) -> Tensor:
    """Discriminator update; returns the values of SUMS, on the device."""
    # labelled and unlabelled images are independent draws; one pass serves all, as D looks at each alone
    real, index = _pick(run, images, 2 * config.batch)
    with autocast(images.device):
        with torch.no_grad():
            fake = run.generator(_noise(run, config, images.device))
        logits = run.discriminator(torch.cat([real, fake]))
    labelled, unlabelled, generated = logits.chunk(3)
    label_loss = soft_cross_entropy(labels[index[: config.batch]], labelled)
    loss = label_loss + unlabelled_loss(unlabelled, generated)
    run.optimisers[1].zero_grad()
    loss.backward()
    run.optimisers[1].step()
    logit_means = (part.logsumexp(1).mean() for part in (unlabelled, generated))
    return torch.stack([value.detach() for value in (loss, label_loss, *logit_means)])


def _learn_to_make(run: Run, images: Tensor, config: InversionGanConfig) -> Tensor:
    """Generator update; returns the values of GENERATOR_SUMS, on the device."""
    real, _ = _pick(run, images, config.batch)
    run.discriminator.requires_grad_(False)
    with autocast(images.device):
        real_features, _ = run.discriminator.both(real)
        fake_features, logits = run.discriminator.both(run.generator(_noise(run, config, images.device)))
    gap, entropy = generator_terms(real_features, fake_features, logits)
    loss = gap + config.entropy_weight * entropy
    run.optimisers[0].zero_grad()
    loss.backward()
    run.optimisers[0].step()
    run.discriminator.requires_grad_(True)
    if config.ema_images:
        run.move_average(config.batch, config.ema_images)
    return torch.stack([value.detach() for value in (loss, gap, entropy)])


def _row(run: Run, judged: Tensor, made: Tensor, config: InversionGanConfig) -> dict[str, float]:
    steps = run.step % ROW_EVERY or ROW_EVERY
    made_steps = run.step // config.n_critic - (run.step - steps) // config.n_critic
    row = {"step": run.step, "images": run.step * 2 * config.batch}
    row |= {name: value / steps for name, value in zip(SUMS, judged.tolist(), strict=True)}
    if made_steps:
        row |= {name: value / made_steps for name, value in zip(GENERATOR_SUMS, made.tolist(), strict=True)}
    run.record(row, "rate")
    return row
