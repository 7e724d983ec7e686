"""Training of PLG-MI's conditional GAN against one target (Yuan et al., AAAI 2023, section 3).

The target picks, for each of its classes, the public images it is surest of; the GAN learns these pseudo classes
by the hinge loss, and the generator besides to be recognised by the target through random views.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError
from lib.models import folded
from lib.priors.adversarial import Run, check_images
from lib.priors.conditional_gan import ConditionalGenerator, ConditionalSpec, build_conditional_networks
from lib.priors.guidance import ViewLaw, draw_views, look, max_margin
from lib.runtime import autocast, digest, frozen, seed_for
from lib.store import Checkpoint

NAME = "conditional GAN"
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
    asked = {"least": config.top, "asked": f"top = {config.top}"}
    check_images(NAME, images, size=target.image_size, whose="the target's", **asked)
    spec = ConditionalSpec(target.num_classes, target.image_size, config.latent_dim, config.width)
    device = device or images.device
    run = Run(
        NAME,
        build_conditional_networks(spec, seed=seed_for(seed, NAME.lower(), "weights")),
        rates=(config.generator_rate, config.discriminator_rate),
        betas=(0.0, 0.9),
        seed=seed,
        device=device,
    )
    content = digest(images, *target.state_dict().values())
    fingerprint = repr((config, spec, int(seed), tuple(images.shape), content))
    checkpoint = checkpoint or Checkpoint()
    saved = checkpoint.load()
    if saved is not None:
        run.restore(saved, fingerprint, checkpoint.removal)
    else:
        run.kept["chosen"] = pseudo_labelled(target, images.to(device), config.top)
    real = images.to(device)[run.kept["chosen"].flatten()]
    made = torch.zeros(len(SUMS), device=device)
    judged = torch.zeros(len(JUDGE_SUMS), device=device)
    guide = folded(target)
    with frozen(guide):
        while run.step < config.steps:
            run.set_rates(config.steps, config.decay)
            made += _learn_to_make(run, guide, config)
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


def _wanted(run: Run, config: ConditionalGanConfig) -> tuple[Tensor, Tensor]:
    """z (B, d) and classes (B,), drawn uniformly."""
    spec, device = run.generator.spec, run.random.device
    z = torch.randn(config.batch, spec.latent_dim, generator=run.random, device=device)
    return z, torch.randint(spec.classes, (config.batch,), generator=run.random, device=device)


def _learn_to_make(run: Run, target: nn.Module, config: ConditionalGanConfig) -> Tensor:
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
        run.move_average(config.batch, min(config.ema_images, RAMP * (run.step + 1) * config.batch))
    agreement = (logits.argmax(1) == labels).float().mean()
    return torch.stack([value.detach() for value in (loss, margin, agreement)])


def _learn_to_judge(run: Run, real: Tensor, config: ConditionalGanConfig) -> Tensor:
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


def _row(run: Run, made: Tensor, judged: Tensor, config: ConditionalGanConfig) -> dict[str, float]:
    steps = run.step % ROW_EVERY or ROW_EVERY
    chosen = run.kept["chosen"]
    unique = len(chosen.unique()) / chosen.numel()
    row = {"step": run.step, "images": run.step * config.batch, "unique_share": unique}
    row |= {name: value / steps for name, value in zip(SUMS, made.tolist(), strict=True)}
    steps *= config.n_critic
    row |= {name: value / steps for name, value in zip(JUDGE_SUMS, judged.tolist(), strict=True)}
    run.record(row, "the learning rates")
    return row
