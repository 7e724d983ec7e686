"""KEDMI: the inversion-specific GAN, its losses and training; the distribution that is moved, and the attack."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import (
    CLASSES,
    DIM,
    KilledError,
    SizedTarget,
    ToyPrior,
    ToyTarget,
    confidence,
    equal,
    parameters,
    same,
    smooth_images,
)

from lib import attacks
from lib.attacks import Reconstructions, kedmi
from lib.attacks.kedmi import KedmiBudget, draw, noise_of
from lib.attacks.losses import cross_entropy
from lib.errors import UserError
from lib.priors import (
    PRIORS,
    TRAINERS,
    DcganSpec,
    InversionGan,
    InversionGanConfig,
    inversion_training,
    prior_from_state,
    train_inversion_gan,
)
from lib.priors.inversion_gan import DcganGenerator, InversionDiscriminator, build_inversion_networks
from lib.priors.inversion_training import generator_terms, soft_cross_entropy, soft_labels, unlabelled_loss
from lib.runtime import generator, seed_for
from lib.store import Checkpoint

SPEC = DcganSpec(image_size=16, latent_dim=6, width=4)
CONFIG = InversionGanConfig(steps=7, batch=8, width=4, latent_dim=6, n_critic=2, ema_images=16.0)
SMALL = KedmiBudget(candidates=4, keep=2, steps=6, views=3, chunk=2, learning_rate=0.05)


def critic(images: Tensor) -> Tensor:
    """log p(real) of a toy discriminator that likes one corner bright."""
    return F.logsigmoid(6.0 * images[:, 0, 0, 0] - 3.0)


@pytest.fixture
def prior() -> ToyPrior:
    toy = ToyPrior()
    toy.critic = critic
    toy.name = "inversion_gan"
    return toy


@pytest.fixture
def target(prior: ToyPrior) -> ToyTarget:
    return ToyTarget(prior)


def gan_prior(spec: DcganSpec = SPEC, classes: int = CLASSES) -> InversionGan:
    return InversionGan(*build_inversion_networks(spec, classes, seed=0))


def logits(seed: int, count: int = 7, classes: int = 5) -> Tensor:
    return 3 * torch.randn(count, classes, generator=generator(seed, "logits"))


# --- the networks ---------------------------------------------------------------------------------------


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        made = DcganGenerator(DcganSpec())
        judges = {classes: InversionDiscriminator(DcganSpec(), classes) for classes in (1000, 60)}
    assert parameters(made) == 5_142_083
    convolutions = [
        (3, 64, 5),
        (64, 128, 5),
        (128, 256, 5),
        (256, 256, 3),
    ]  # each with bias, and an affine norm
    body = sum(a * b * k * k + b + 2 * b for a, b, k in convolutions)
    for classes, published in ((1000, 18_888_936), (60, 14_977_596)):
        minibatch_layer = 4096 * 64 * 50 + 64 * classes  # its tensor, and what it adds to the last layer
        assert parameters(judges[classes]) == body + 4097 * classes == published - minibatch_layer


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shapes_and_ranges(size: int) -> None:
    made = gan_prior(DcganSpec(size, latent_dim=6, width=4), 3)
    z = made.sample(2, generator=generator(0, "z"))
    images = made.synthesise(z)
    features, said = made.discriminator.both(images)
    assert made.image_size == size and made.latent_dim == 6
    assert images.shape == (2, 3, size, size) and 0 < images.min() and images.max() < 1
    assert features.shape == (2, 16 * made.discriminator.spec.widths[-2]) and said.shape == (2, 3)
    assert made.critic(images).shape == (2,) and made.blocks() == []


def test_the_critic_is_minus_the_binary_cross_entropy_of_logsumexp_against_real() -> None:
    made, images = gan_prior(), torch.rand(6, 3, 16, 16, generator=generator(0, "x"))
    realness = made.discriminator(images).logsumexp(1)
    wanted = F.binary_cross_entropy_with_logits(realness, torch.ones(6), reduction="none")
    torch.testing.assert_close(made.critic(images), -wanted)
    wanted = torch.log1p(torch.exp(realness)) - realness  # as published
    torch.testing.assert_close(-made.critic(images), wanted)


def test_no_image_influences_what_the_critic_says_of_another() -> None:
    made, images = gan_prior(), torch.rand(4, 3, 16, 16, generator=generator(0, "x"))
    alone = torch.cat([made.critic(image[None]) for image in images])
    torch.testing.assert_close(made.critic(images), alone)
    assert alone.std() > 1e-4


def test_latents_are_standard_normal_and_truncation_scales_them() -> None:
    made = gan_prior()
    z = made.sample(4000, generator=generator(0, "z"))
    assert z.mean().abs() < 0.03 and abs(z.std() - 1) < 0.03
    torch.testing.assert_close(made.sample(4000, generator=generator(0, "z"), truncation=0.3), 0.3 * z)
    normal = torch.distributions.Normal(0.0, 1.0)
    wanted = (normal.log_prob(z) - normal.log_prob(torch.tensor(0.0))).sum(1)
    torch.testing.assert_close(made.log_density(z), wanted)


def test_the_prior_goes_through_the_store() -> None:
    made = gan_prior()
    made.generator.first[1].running_mean.uniform_(-1, 1)  # statistics are part of it
    tensors, meta = made.state(), json.loads(json.dumps(made.meta()))
    back = prior_from_state(tensors, meta)
    z = made.sample(3, generator=generator(0, "z"))
    assert torch.equal(back.synthesise(z), made.synthesise(z))
    assert torch.equal(back.critic(made.synthesise(z)), made.critic(made.synthesise(z)))
    assert all(not p.requires_grad for p in (*back.generator.parameters(), *back.discriminator.parameters()))
    half = {name: tensor.half() for name, tensor in tensors.items()}
    torch.testing.assert_close(
        prior_from_state(half, meta).synthesise(z), made.synthesise(z), atol=0.02, rtol=0
    )
    with pytest.raises(UserError, match="inversion_gan prior"):
        prior_from_state({name: tensors[name] for name in list(tensors)[1:]}, meta)
    with pytest.raises(UserError, match="inversion_gan prior"):
        prior_from_state(tensors, meta | {"classes": CLASSES + 1})


@pytest.mark.parametrize("values", [{"image_size": 48}, {"image_size": 8}, {"latent_dim": 0}, {"width": 0}])
def test_bad_shapes_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        DcganSpec(**values)


# --- its losses and training ----------------------------------------------------------------------------


def test_the_unlabelled_loss_is_half_the_binary_cross_entropy() -> None:
    real, fake = logits(0), logits(1, 9)
    said = F.binary_cross_entropy_with_logits
    wanted = said(real.logsumexp(1), torch.ones(7)) + said(fake.logsumexp(1), torch.zeros(9))
    torch.testing.assert_close(unlabelled_loss(real, fake), 0.5 * wanted)
    far = 1e4 * torch.ones(1, 5)  # confident and right: the loss is 0, not inf - inf
    assert unlabelled_loss(far, -far) == 0 and unlabelled_loss(-far, far).isfinite()


def test_the_labelled_loss_is_the_cross_entropy_with_soft_labels() -> None:
    soft = logits(2).softmax(1)
    torch.testing.assert_close(soft_cross_entropy(soft, logits(0)), F.cross_entropy(logits(0), soft))


def test_the_generators_terms_by_hand() -> None:
    real, fake = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 5.0]])
    gap, entropy = generator_terms(real, fake, torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]]))
    assert gap.item() == pytest.approx((0.5 + 2.0) / 2)
    assert entropy.item() == pytest.approx((math.log(2) + math.log(4) - 0.75 * math.log(3)) / 2)
    # the published sum over 64 images times 1e-4
    assert InversionGanConfig().entropy_weight == pytest.approx(64 * 1e-4)


def test_the_target_labels_in_evaluation_mode_and_comes_back_as_it_was() -> None:
    target, images = SizedTarget(16).train(), smooth_images(20, 16)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    labels = soft_labels(target, images)
    train(target, images)
    assert same(target.state_dict(), before) and target.training
    assert all(p.requires_grad and p.grad is None for p in target.parameters())
    with torch.no_grad():
        torch.testing.assert_close(labels, target.eval()(images / 255).softmax(1))
    torch.testing.assert_close(labels.sum(1), torch.ones(20))


def train(target: nn.Module, images: Tensor, config: InversionGanConfig = CONFIG, **rest: Any) -> tuple:
    return train_inversion_gan(images, target, config=config, seed=0, **rest)


def test_training_teaches_the_targets_classes_and_what_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion_training, "ROW_EVERY", 10)
    target, images = SizedTarget(16, 3), smooth_images(64, 16)
    config = dataclasses.replace(CONFIG, steps=120, batch=16, width=8, rate=2e-3)
    made, judge, history = train(target, images, config)
    prior = InversionGan(made, judge)
    assert history[-1]["label_loss"] < 0.75 * history[0]["label_loss"]
    assert history[-1]["discriminator_loss"] < history[0]["discriminator_loss"]
    held_out = smooth_images(200, 16, seed=1)
    said = judge(held_out / 255).argmax(1)
    assert (said == soft_labels(target, held_out).argmax(1)).float().mean() > 0.7
    noise = torch.rand(50, 3, 16, 16, generator=generator(0, "noise"))
    assert prior.critic(held_out / 255).mean() > prior.critic(noise).mean()
    assert not (made.training or judge.training)
    assert all(not p.requires_grad for p in (*made.parameters(), *judge.parameters()))


def test_rows_say_what_the_steps_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion_training, "ROW_EVERY", 3)
    told: list[dict] = []
    _, _, history = train(SizedTarget(16), smooth_images(20, 16), callback=told.append)
    assert told == history and [row["step"] for row in history] == [3, 6, 7]
    assert [row["images"] for row in history] == [3 * 16, 6 * 16, 7 * 16]
    first, _, last = history
    wanted = first["feature_gap"] + CONFIG.entropy_weight * first["entropy"]
    assert first["generator_loss"] == pytest.approx(wanted)
    assert 0 < first["entropy"] < math.log(CLASSES) and "generator_loss" not in last  # step 7 is D's alone


def start_of_training() -> tuple[DcganGenerator, InversionDiscriminator]:
    return build_inversion_networks(SPEC, CLASSES, seed=seed_for(0, "inversion gan", "weights"))


def test_the_generator_steps_once_in_n_critic_steps_and_leaves_the_discriminator_alone() -> None:
    target, images = SizedTarget(16), smooth_images(20, 16)
    config = dataclasses.replace(CONFIG, steps=2, ema_images=0.0)
    (still, judge, _), (moved, other, _) = (
        train(target, images, dataclasses.replace(config, n_critic=n)) for n in (3, 2)
    )
    weights = dict(start_of_training()[0].named_parameters())
    assert all(torch.equal(p, weights[n]) for n, p in still.named_parameters())
    assert any(not torch.equal(p, weights[n]) for n, p in moved.named_parameters())
    assert same(judge.state_dict(), other.state_dict())
    assert not torch.equal(judge.output.weight, start_of_training()[1].output.weight)


@pytest.mark.parametrize("ema_images", [0.0, 16.0])
def test_a_resumed_training_has_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_images: float
) -> None:
    monkeypatch.setattr(inversion_training, "ROW_EVERY", 2)
    target, images = SizedTarget(16), smooth_images(20, 16)
    config = dataclasses.replace(CONFIG, ema_images=ema_images)
    whole = train(target, images, config)
    checkpoint = Checkpoint(tmp_path / "gan.checkpoint", every=0)

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 6:
            raise KilledError

    with pytest.raises(KilledError):
        train(target, images, config, checkpoint=checkpoint, callback=kill)
    assert checkpoint.load()["step"] == 4
    resumed = train(target, images, config, checkpoint=checkpoint)
    assert all(same(a.state_dict(), b.state_dict()) for a, b in zip(whole[:2], resumed[:2], strict=True))
    assert whole[2] == resumed[2]
    with pytest.raises(UserError, match="inversion GAN checkpoint: .* remove it with"):
        train(SizedTarget(16, 3), images, config, checkpoint=checkpoint)


def test_the_average_lags_behind_the_generator() -> None:
    target, images = SizedTarget(16), smooth_images(20, 16)
    last, average = (
        train(target, images, dataclasses.replace(CONFIG, ema_images=ema))[0].state_dict()
        for ema in (0.0, 1e3)
    )
    weight = start_of_training()[0].state_dict()["first.0.weight"]
    moved, lagged = ((s["first.0.weight"] - weight).norm() for s in (last, average))
    assert 0 < lagged < 0.1 * moved


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (smooth_images(20, 16).float(), "uint8"),
        (smooth_images(20, 32), "target's 16 pixels, got 32"),
        (smooth_images(5, 16), "batch of 8, got 5"),
    ],
)
def test_bad_images_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(SizedTarget(16), images)


def test_bad_constants_and_lost_losses_are_refused() -> None:
    for values in ({"steps": 0}, {"rate": 0.0}, {"entropy_weight": -1.0}, {"ema_images": math.inf}):
        with pytest.raises(UserError, match=next(iter(values))):
            InversionGanConfig(**values)
    with pytest.raises(UserError, match="finite losses"):
        train(SizedTarget(16), smooth_images(20, 16), dataclasses.replace(CONFIG, rate=1e30))


def test_the_prior_is_registered_as_one_against_a_target() -> None:
    assert PRIORS["inversion_gan"] is InversionGan and attacks.get("kedmi").prior == "inversion_gan"
    trainer = TRAINERS["inversion_gan"]
    assert trainer.train is train_inversion_gan and trainer.Config is InversionGanConfig
    common = dict(config=CONFIG, seed=0, device=torch.device("cpu"), checkpoint=None, callback=None)
    *networks, _ = trainer.train(smooth_images(20, 16), SizedTarget(16), **common)
    assert PRIORS["inversion_gan"](*networks).image_size == 16


# --- the distribution -----------------------------------------------------------------------------------


def distribution(mean: float, log_variance: float, size: int = DIM) -> Tensor:
    return torch.tensor([mean, log_variance]).repeat_interleave(size)


@pytest.mark.parametrize(
    ("at", "mean", "std"), [(kedmi.START, 0.0, math.exp(0.5)), ((2.0, -1.0), 2.0, math.exp(-0.5))]
)
def test_draws_have_the_moments_of_the_distribution(at: tuple[float, float], mean: float, std: float) -> None:
    noise = torch.randn(40_000, DIM, generator=generator(0, "noise"))
    z = draw(distribution(*at), noise)
    torch.testing.assert_close(z.mean(0), torch.full((DIM,), mean), atol=0.03, rtol=0)
    torch.testing.assert_close(z.std(0), torch.full((DIM,), std), atol=0, rtol=0.02)


def test_gradients_reach_mean_and_log_variance_but_not_through_the_clamp() -> None:
    noise = torch.tensor([[0.5, -4.0, 0.1]])
    at = distribution(0.2, -0.6, 3)[None].requires_grad_()
    std = math.exp(-0.3)
    (gradient,) = torch.autograd.grad(draw(at, noise).sum(), [at])
    torch.testing.assert_close(gradient, torch.cat([torch.ones(1, 3), 0.5 * std * noise], 1))
    clamped = draw(at, noise, clip=1.0)
    assert clamped.tolist()[0] == pytest.approx([0.2 + 0.5 * std, -1.0, 0.2 + 0.1 * std])
    (gradient,) = torch.autograd.grad(clamped.sum(), [at])
    assert gradient[0, [1, 4]].tolist() == [0, 0] and (gradient[0, [0, 2, 3, 5]] > 0).all()


def test_more_than_half_of_the_first_latents_lie_outside_lommas_clamp() -> None:
    noise = torch.randn(40_000, 1, generator=generator(0, "noise"))
    outside = (draw(distribution(*kedmi.START, 1), noise).abs() > 1).float().mean()
    assert outside.item() == pytest.approx(0.544, abs=0.01)


def test_every_identity_step_and_candidate_has_noise_of_its_own() -> None:
    steps, finals = noise_of([3, 0], budget=SMALL, seed=0, latent_dim=DIM)
    assert steps.shape == (6, 2, DIM) and finals.shape == (2, 4, DIM)
    flat = torch.cat([steps.flatten(0, 1), finals.flatten(0, 1)])
    assert len(flat.unique(dim=0)) == len(flat)
    alone = noise_of([0], budget=SMALL, seed=0, latent_dim=DIM)
    assert torch.equal(alone[0], steps[:, 1:]) and torch.equal(alone[1], finals[1:])
    assert not torch.equal(alone[0], noise_of([0], budget=SMALL, seed=1, latent_dim=DIM)[0])


# --- the attack -----------------------------------------------------------------------------------------


def run(
    target: nn.Module, prior: Any, labels: Any, budget: KedmiBudget = SMALL, **rest: Any
) -> Reconstructions:
    return kedmi.invert(target, prior, labels, budget=budget, **{"seed": 3, **rest})


@pytest.mark.parametrize("clip", [None, 1.5])
def test_steps_are_adams_on_the_papers_loss(target: ToyTarget, prior: ToyPrior, clip: float | None) -> None:
    budget = dataclasses.replace(SMALL, steps=4, clip=clip, realism_weight=30.0)
    found = run(target.eval(), prior, [1, 4], budget, seed=0)
    for row, label in enumerate((1, 4)):
        steps, finals = noise_of([label], budget=budget, seed=0, latent_dim=DIM)
        mean, log_variance = torch.zeros(DIM, requires_grad=True), torch.ones(DIM, requires_grad=True)
        adam = torch.optim.Adam([mean, log_variance], lr=budget.learning_rate)

        def latent(noise: Tensor, mean: Tensor = mean, log_variance: Tensor = log_variance) -> Tensor:
            z = mean + (0.5 * log_variance).exp() * noise
            return z if clip is None else z.clamp(-clip, clip)

        torch.testing.assert_close(found.initial[row], latent(finals[0]).detach(), atol=2e-3, rtol=0)
        for noise in steps:
            images = prior.synthesise(latent(noise))
            loss = 30.0 * -critic(images) + 100.0 * cross_entropy(target(images), torch.tensor([label]))
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
        torch.testing.assert_close(found.latents[row], latent(finals[0]).detach(), atol=3e-3, rtol=0)
        assert (found.latents[row] - found.initial[row]).abs().max() > 0.05


def test_it_beats_its_starts_and_prior_samples(target: ToyTarget, prior: ToyPrior) -> None:
    labels = torch.arange(CLASSES)
    found = run(target, prior, labels, dataclasses.replace(SMALL, steps=120))
    samples = prior.sample(200, generator=generator(9, "samples")).expand(CLASSES, -1, -1)
    reached = confidence(target, prior, found.kept(), labels).mean(1)
    assert (reached > confidence(target, prior, samples, labels).mean(1) + 0.3).all()
    assert (reached > confidence(target, prior, found.initial, labels).mean(1) + 0.3).all()
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert found.history[-1]["confidence"] > found.history[0]["confidence"]


@pytest.mark.parametrize("size", [32, 64])
def test_shapes_and_costs_with_its_gan(size: int) -> None:
    made = gan_prior(DcganSpec(size, latent_dim=6, width=4))
    found = run(SizedTarget(size), made, [4, 0, 2])
    assert found.attack == "kedmi" and found.labels.tolist() == [4, 0, 2] and found.images is None
    assert found.latents.shape == found.initial.shape == (3, 4, 6)
    assert found.selected.shape == (3, 2) and found.confidence.shape == found.loss.shape == (3, 4)
    assert [row["step"] for row in found.history] == list(range(6))
    assert found.cost["target_backward"] == found.cost["critic"] == 6
    assert found.cost["synthesis"] == 6 + 4 and found.cost["target_forward"] == 6 + 4 * (1 + 3)
    assert SMALL.work == 1.5 * 6 + 4 * 3 / 2
    back = Reconstructions.from_tensors(found.to_tensors(), found.meta())
    assert torch.equal(back.latents, found.latents) and back.history == found.history


def test_the_clamp_holds_and_without_it_latents_leave_the_box(target: ToyTarget, prior: ToyPrior) -> None:
    held, free = (run(target, prior, [0, 1], dataclasses.replace(SMALL, clip=clip)) for clip in (0.5, None))
    assert held.latents.abs().max() == held.initial.abs().max() == 0.5
    assert free.latents.abs().max() > 1 and free.initial.abs().max() > 1


def test_realism_pulls_towards_what_the_critic_likes(target: ToyTarget, prior: ToyPrior) -> None:
    budget = dataclasses.replace(SMALL, steps=30)
    without, much = (
        run(target, prior, [0, 1], dataclasses.replace(budget, realism_weight=w)) for w in (0.0, 2000.0)
    )
    realism = [critic(prior.synthesise(found.latents.flatten(0, 1))).mean() for found in (without, much)]
    assert realism[1] > realism[0] + 0.3
    assert without.cost["critic"] == 0 and much.cost["critic"] == 30


def test_it_keeps_what_the_target_prefers(target: ToyTarget, prior: ToyPrior) -> None:
    by_logit = run(target, prior, [0, 1, 2], dataclasses.replace(SMALL, rank_by="logit", keep=4))
    with torch.no_grad():
        said = target.eval()(prior.synthesise(by_logit.kept().flatten(0, 1))).unflatten(0, (3, 4))
    wanted = torch.stack([said[i, :, i] for i in range(3)])
    assert (wanted.diff(dim=1) <= 0).all()
    by_confidence = run(target, prior, [0, 1, 2])
    ranked = by_confidence.confidence.gather(1, by_confidence.selected)
    assert torch.equal(ranked, by_confidence.confidence.topk(2).values)


def test_the_order_of_labels_changes_nothing(target: ToyTarget, prior: ToyPrior) -> None:
    first = run(target, prior, range(CLASSES))
    assert equal(first, run(target, prior, torch.arange(CLASSES)))
    shuffled = run(target, prior, [3, 0, 4, 1, 2])
    back = shuffled.labels.argsort()
    assert torch.equal(shuffled.latents[back], first.latents)
    assert torch.equal(shuffled.selected[back], first.selected)
    assert not torch.equal(run(target, prior, range(CLASSES), seed=4).latents, first.latents)


@pytest.mark.parametrize("kind", ["toy", "gan"])
def test_an_identity_does_not_depend_on_its_company(target: ToyTarget, prior: ToyPrior, kind: str) -> None:
    pair = (target, prior) if kind == "toy" else (SizedTarget(16), gan_prior())
    together, alone = run(*pair, range(CLASSES)), run(*pair, [3])
    assert torch.equal(alone.initial[0], together.initial[3])
    torch.testing.assert_close(alone.latents[0], together.latents[3], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(alone.confidence[0], together.confidence[3], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("done", [2, 4])
def test_a_resumed_attack_has_the_bits_of_the_whole(
    target: ToyTarget, prior: ToyPrior, tmp_path: Path, done: int
) -> None:
    labels = [4, 1, 0, 3, 2]
    whole = run(target, prior, labels)

    def kill(event: dict[str, Any]) -> None:
        if event["done"] == done:
            raise KilledError

    checkpoint = Checkpoint(tmp_path / "attack.checkpoint", every=0)
    with pytest.raises(KilledError):
        run(target, prior, labels, callback=kill, checkpoint=checkpoint)
    seen: list[int] = []
    resumed = run(
        target, prior, labels, checkpoint=checkpoint, callback=lambda event: seen.append(event["done"])
    )
    assert seen == [d for d in (2, 4, 5) if d > done] and equal(whole, resumed)
    assert whole.cost["critic"] == resumed.cost["critic"]


def test_no_gradient_is_left_and_all_networks_come_back_as_they_were() -> None:
    target, made = SizedTarget(16).train(), gan_prior()
    made.discriminator.requires_grad_(True)
    networks = (target, made.generator, made.discriminator)
    before = [{name: tensor.clone() for name, tensor in n.state_dict().items()} for n in networks]
    run(target, made, [0, 1])
    assert all(same(n.state_dict(), b) for n, b in zip(networks, before, strict=True))
    assert all(p.grad is None for n in networks for p in n.parameters())
    assert target.training and all(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in made.discriminator.parameters()) and not made.generator.training


def test_it_attacks_in_evaluation_mode(prior: ToyPrior, target: ToyTarget) -> None:
    assert equal(run(target.train(), prior, [0, 1]), run(target.eval(), prior, [0, 1]))


def test_a_prior_without_a_critic_is_refused(target: ToyTarget) -> None:
    with pytest.raises(UserError, match="kedmi: expected a prior with a critic, got toy without one"):
        run(target, ToyPrior(), [0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip": 0.0}, "clip"),
        ({"identity_weight": 0.0}, "identity_weight"),
        ({"realism_weight": -1.0}, "realism_weight"),
        ({"rank_by": "taste"}, "rank_by"),
        ({"truncation": 0.7}, "truncation"),
        ({"keep": 6}, "keep"),
        ({"restarts": 2}, "unknown key"),
    ],
)
def test_bad_budgets_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attacks.get("kedmi").budget(**values)


def test_published_defaults_are_the_defaults() -> None:
    budget = KedmiBudget()
    assert (budget.steps, budget.learning_rate, budget.candidates, budget.keep) == (2400, 0.02, 5, 5)
    assert (budget.identity_weight, budget.realism_weight, budget.clip) == (100.0, 1.0, None)
    assert kedmi.START == (0.0, 1.0) and budget.short().steps == 2
    config = DcganSpec(), InversionGanConfig()
    assert (config[0].width, config[0].latent_dim, config[1].rate, config[1].n_critic) == (64, 100, 2e-4, 5)


def test_a_prior_with_another_critic_is_refused(target: ToyTarget, prior: ToyPrior) -> None:
    prior.name = "stylegan"
    with pytest.raises(UserError, match="of kind inversion_gan, got stylegan"):
        kedmi.invert(target, prior, [0], budget=KedmiBudget(candidates=1, keep=1, steps=1), seed=0)
