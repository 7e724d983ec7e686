"""Priors on tiny networks and images: the interface's contracts, the networks' algebra, exact resumption."""

import dataclasses
import json
import math
import re

import pytest
import torch
import yaml
from torch.nn import functional as F

from lib.errors import UserError
from lib.priors import (
    Eigenfaces,
    GanConfig,
    StylePrior,
    StyleSpec,
    augment,
    clamp_through,
    gan,
    prior_from_state,
    spec_for,
    train_gan,
)
from lib.priors.augment import _translate
from lib.priors.stylegan import ModulatedConv, activate, build_networks, upsample
from lib.setups.schema import from_dict
from lib.store import Checkpoint

SPEC = StyleSpec(
    image_size=16,
    latent_dim=8,
    mapping_layers=2,
    generator_channels=(8, 8, 4),
    discriminator_channels=(4, 8),
)
CONFIG = GanConfig(steps=4, batch=4, r1_every=2, r1_batch=2, ema_images=16, networks=SPEC)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(count: int = 40, size: int = 16) -> torch.Tensor:
    """Low-frequency images, uint8, that a few components describe well."""
    coarse = torch.rand(count, 3, 2, 2, generator=seeded(1))
    fine = F.interpolate(coarse, size=size, mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


def style_prior(seed: int = 0) -> StylePrior:
    return StylePrior(*build_networks(SPEC, seed=seed))


PRIORS = {"eigenfaces": lambda: Eigenfaces.fit(smooth_images(), components=8), "stylegan": style_prior}


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]()


def test_samples_and_images_have_the_promised_shape_and_range(prior):
    latents = prior.sample(5, generator=seeded())
    assert latents.shape == (5, prior.latent_dim) and latents.dtype == torch.float32
    images = prior.synthesise(latents * 20)  # far out, so that clamping is needed
    assert images.shape == (5, 3, 16, 16) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert torch.equal(latents, prior.sample(5, generator=seeded()))
    assert not torch.equal(latents, prior.sample(5, generator=seeded(1)))


def test_truncation_shrinks_towards_the_mean(prior):
    full, half, none = (prior.sample(6, generator=seeded(), truncation=psi) for psi in (1.0, 0.5, 0.0))
    assert torch.allclose(none, none[:1].expand_as(none))
    assert torch.allclose(half, (full + none) / 2, atol=1e-6)


def test_gradients_reach_latents_and_no_weight(prior):
    latents = prior.sample(2, generator=seeded()).requires_grad_()
    images = prior.synthesise(latents)
    (images * torch.randn(images.shape, generator=seeded(3))).sum().backward()
    assert (latents.grad.abs().sum(1) > 0).all()
    assert all(not t.requires_grad and t.grad is None for t in prior.state().values())
    if isinstance(prior, StylePrior):
        assert all(not p.requires_grad for p in prior.generator.parameters())
        assert all(not p.requires_grad for p in prior.discriminator.parameters())


def test_state_round_trip_is_exact_and_survives_half_precision(prior):
    tensors, meta = prior.state(), json.loads(json.dumps(prior.meta()))
    latents = prior.sample(3, generator=seeded())
    again = prior_from_state(tensors, meta)
    assert torch.equal(again.sample(3, generator=seeded()), latents)
    assert torch.equal(again.synthesise(latents), prior.synthesise(latents))
    assert torch.equal(again.log_density(latents), prior.log_density(latents))
    half = prior_from_state({name: t.half() for name, t in tensors.items()}, meta)
    assert all(t.dtype == torch.float32 for t in half.state().values())
    assert torch.allclose(half.synthesise(latents), prior.synthesise(latents), atol=0.02)


def test_foreign_state_is_refused(prior):
    tensors, meta = prior.state(), prior.meta()
    name = next(iter(tensors))
    with pytest.raises(UserError, match="another prior"):
        prior_from_state({n: t for n, t in tensors.items() if n != name}, meta)
    with pytest.raises(UserError, match="another prior"):
        prior_from_state(tensors | {"stranger.weight": torch.zeros(1)}, meta)
    with pytest.raises(UserError, match="another prior"):
        prior_from_state(tensors | {name: torch.zeros(2, 2, 2, 2, 2)}, meta)
    with pytest.raises(UserError, match="expected one of eigenfaces, stylegan"):
        prior_from_state(tensors, {"name": "diffusion"})


def test_density_is_zero_at_the_mode_and_lower_elsewhere(prior):
    mode = prior.mode if isinstance(prior, StylePrior) else torch.zeros(prior.latent_dim)
    around = mode + 0.3 * torch.randn(20, prior.latent_dim, generator=seeded())
    assert prior.log_density(mode[None]).item() == pytest.approx(0, abs=1e-5)
    assert (prior.log_density(around) < 0).all()
    farther = mode + 3 * (around - mode)
    assert (prior.log_density(farther) < prior.log_density(around)).all()


def test_style_density_is_that_of_a_whitened_gaussian():
    prior = style_prior()
    # E of the squared Mahalanobis distance is the dimension, for any distribution
    squared = -2 * prior.log_density(prior.sample(4000, generator=seeded(5)))
    assert squared.mean().item() == pytest.approx(SPEC.latent_dim, rel=0.1)


def test_eigenfaces_latents_of_the_public_images_are_white():
    images = smooth_images(300)
    prior = Eigenfaces.fit(images, components=6)
    latents = prior.project(images.float() / 255)
    assert torch.allclose(latents.mean(0), torch.zeros(6), atol=1e-3)
    assert torch.allclose(latents.t().cov(), torch.eye(6), atol=1e-2)
    gram = prior.directions @ prior.directions.t()
    assert torch.allclose(gram, torch.eye(6), atol=1e-4)


def test_eigenfaces_reconstruct_and_more_components_do_it_better():
    images = smooth_images(60)
    real = images.float() / 255
    errors = []
    for components in (2, 6, 12):  # the images have 12 degrees of freedom
        prior = Eigenfaces.fit(images, components=components)
        errors.append((prior.synthesise(prior.project(real)) - real).square().mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert math.sqrt(errors[2]) < 0.01


def test_eigenfaces_are_deterministic():
    first, second = (Eigenfaces.fit(smooth_images(), components=5).state() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("images", [torch.rand(30, 3, 8, 8), torch.zeros(30, 1, 8, 8, dtype=torch.uint8)])
def test_eigenfaces_refuse_other_images(images):
    with pytest.raises(UserError, match="expected uint8 images"):
        Eigenfaces.fit(images, components=4)


def test_eigenfaces_refuse_more_components_than_images():
    with pytest.raises(UserError, match="1 to 39 components"):
        Eigenfaces.fit(smooth_images(40), components=40)


def test_clamping_keeps_gradients_outside_the_range():
    values = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    clamped = clamp_through(values)
    clamped.backward(torch.tensor([3.0, 4.0, 5.0]))
    assert clamped.tolist() == [0.0, 0.5, 1.0]
    assert values.grad.tolist() == [3.0, 4.0, 5.0]


def modulated_by_weights(layer: ModulatedConv, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """StyleGAN2, eq. 1 and 3, as in the paper: one image at a time, by its own weights."""
    outputs = []
    for image, style in zip(x, layer.affine(w), strict=True):
        weight = layer.weight * layer.scale * style[None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        y = F.conv2d(image[None], weight, padding=1)
        y = upsample(y) if layer.up else y
        noise = layer.noise_strength * layer.noise
        outputs.append(activate(y + layer.bias[None, :, None, None] + noise) * math.sqrt(2))
    return torch.cat(outputs)


@pytest.mark.parametrize("up", [False, True])
def test_modulated_activations_equal_modulated_weights(up):
    layer = ModulatedConv(5, 7, 6, 16 if up else 8, up=up)
    with torch.no_grad():
        for parameter in (layer.bias, layer.noise_strength, layer.affine.weight):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(7)))
        x = torch.randn(3, 5, 8, 8, generator=seeded(8))
        w = torch.randn(3, 6, generator=seeded(9))
        assert torch.allclose(layer(x.clone(), w), modulated_by_weights(layer, x, w), atol=1e-5)


def test_demodulation_restores_unit_variance_whatever_the_style():
    layer = ModulatedConv(64, 16, 4, 32)
    x = torch.randn(4, 64, 32, 32, generator=seeded(1))
    with torch.no_grad():
        layer.affine.weight.copy_(3 * torch.randn(64, 4, generator=seeded(2)))
        y, demodulation = layer.convolve(x, torch.randn(4, 4, generator=seeded(3)))
    inner = (y * demodulation)[:, :, 1:-1, 1:-1]  # zero padding lowers the border's variance
    raw = y[:, :, 1:-1, 1:-1].var((2, 3))
    assert raw.max() > 4 * raw.min()
    assert torch.allclose(inner.var((2, 3)), torch.ones(4, 16), atol=0.2)


def test_upsampling_is_the_1331_filter_inside():
    x = torch.randn(1, 1, 6, 6, generator=seeded())
    filter_ = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (torch.outer(filter_, filter_) / 16)[None, None]
    expected = F.conv_transpose2d(x, kernel, stride=2, padding=1)
    assert torch.allclose(upsample(x)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-6)


def test_blocks_compose_to_synthesis_and_each_hears_its_latent():
    prior = style_prior()
    first, second = prior.sample(2, generator=seeded()).split(1)
    states = [(None, None)]
    for block in prior.blocks():
        states.append(block(*states[-1], first))
    assert [tuple(rgb.shape[-2:]) for _, rgb in states[1:]] == [(4, 4), (8, 8), (16, 16)]
    assert torch.equal(prior.finish(states[-1][1]), prior.synthesise(first))
    for block, before, after in zip(prior.blocks(), states, states[1:], strict=False):
        features, rgb = block(*before, second)
        assert not torch.allclose(features, after[0]) and not torch.allclose(rgb, after[1])


def test_mapping_ignores_the_length_of_z():
    generator, _ = build_networks(SPEC)
    z = torch.randn(3, SPEC.latent_dim, generator=seeded())
    assert torch.allclose(generator.mapping(z), generator.mapping(5 * z), atol=1e-5)


def test_critic_judges_images_independently():
    prior = style_prior()
    prior.discriminator.deviation.fill_(0.7)
    images = torch.rand(4, 3, 16, 16, generator=seeded())  # four make a group in training
    together = prior.critic(images)
    alone = torch.cat([prior.critic(image[None]) for image in images])
    assert together.shape == (4,)
    assert torch.allclose(together, alone, atol=1e-5)
    assert Eigenfaces.critic is None


def test_training_critic_sees_the_variety_of_the_batch():
    _, discriminator = build_networks(SPEC)
    image = torch.rand(1, 3, 16, 16, generator=seeded())
    equal = discriminator(image.expand(4, -1, -1, -1))
    varied = discriminator(torch.cat([image, torch.rand(3, 3, 16, 16, generator=seeded(1))]))
    assert not torch.isclose(equal[0], varied[0])
    assert discriminator.deviation > 0


def test_augmentation_is_the_identity_at_zero_and_differentiable_otherwise():
    images = torch.rand(64, 3, 16, 16, generator=seeded(), requires_grad=True)
    assert augment(images, 0.0, generator=seeded()) is images
    changed = augment(images, 1.0, generator=seeded())
    assert changed.shape == images.shape
    assert (changed != images).flatten(1).any(1).all()
    changed.sum().backward()
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()
    # all three kinds untouched: (1 - p)^3 of the images
    half = augment(images.detach(), 0.5, generator=seeded(2))
    untouched = torch.isclose(half, images, atol=1e-6).flatten(1).all(1).float().mean().item()
    assert 0.02 < untouched < 0.3


def test_translation_moves_whole_pixels():
    image = torch.rand(1, 3, 16, 16, generator=seeded())
    # an amount of 1 samples 2 of 16 pixels to the right, -1 two above
    moved = _translate(image, torch.tensor([[1.0], [-1.0]]))
    assert torch.equal(moved[:, :, 2:, :14], image[:, :, :14, 2:])
    assert moved[:, :, :2].abs().max() == 0 and moved[:, :, :, 14:].abs().max() == 0


def assert_same(first, second):
    """Nested states are equal bit for bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    elif isinstance(first, list | tuple):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


class KilledError(Exception):
    pass


def test_killed_and_resumed_training_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "ROW_EVERY", 2)
    images = smooth_images()
    whole = Checkpoint(tmp_path / "whole", every=0)
    train_gan(images, config=CONFIG, seed=3, checkpoint=whole)

    broken = Checkpoint(tmp_path / "broken", every=0)
    torch.randn(7)  # the global random state must not matter

    def kill(row):
        if row["step"] == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train_gan(images, config=CONFIG, seed=3, checkpoint=broken, callback=kill)
    assert broken.load()["step"] == 2
    average, discriminator, history = train_gan(images, config=CONFIG, seed=3, checkpoint=broken)
    assert [row["step"] for row in history] == [2, 4]
    assert_same(broken.load(), whole.load())
    assert_same(broken.load()["average"], average.state_dict())
    assert_same(broken.load()["discriminator"], discriminator.state_dict())


def test_training_moves_all_networks_and_the_average_lags():
    images = smooth_images()
    before, judge_before = build_networks(SPEC, seed=gan.seed_for(0, "gan", "weights"))
    average, discriminator, history = train_gan(images, config=CONFIG, seed=0)
    assert all(
        not torch.equal(old, new)
        for network, start in ((average, before), (discriminator, judge_before))
        for new, old in zip(network.parameters(), start.parameters(), strict=True)
    )
    assert not any(p.requires_grad for p in [*average.parameters(), *discriminator.parameters()])
    assert history[-1]["images"] == 16 and history[-1]["r1"] > 0
    assert all(math.isfinite(value) for value in history[-1].values())


def test_other_seeds_train_other_generators():
    images = smooth_images()
    config = dataclasses.replace(CONFIG, steps=1)
    one, other = (train_gan(images, config=config, seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(one.blocks[0].constant, other.blocks[0].constant)


def test_r1_is_the_squared_input_gradient():
    class Linear(torch.nn.Module):
        def forward(self, x):
            return 6 * x.sum((1, 2, 3))

    norm = gan._gradient_norm(Linear(), torch.rand(2, 3, 4, 4))
    assert norm.item() == pytest.approx(3 * 4 * 4 * 9)  # half the slope, since x spans 2 in units of [-1, 1]


def test_diverging_training_is_an_error_and_leaves_no_checkpoint(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state", every=0)
    with pytest.raises(UserError, match="finite"):
        config = dataclasses.replace(CONFIG, discriminator_rate=math.inf)
        train_gan(smooth_images(), config=config, seed=0, checkpoint=checkpoint)
    assert checkpoint.load() is None


def test_checkpoint_of_another_training_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state")
    config = dataclasses.replace(CONFIG, steps=1)
    train_gan(smooth_images(), config=config, seed=0, checkpoint=checkpoint)
    with pytest.raises(UserError, match="checkpoint: .* remove it with `python -m lib.run cache rm state`"):
        train_gan(smooth_images(), config=config, seed=1, checkpoint=checkpoint)
    with pytest.raises(UserError, match="checkpoint"):
        train_gan(smooth_images(39), config=config, seed=0, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (smooth_images(size=32), "expected its networks' 16 pixels"),
        (smooth_images(3), "at least a batch of 4"),
        (torch.rand(8, 3, 16, 16), "expected uint8"),
        (torch.zeros(8, 3, 16, 8, dtype=torch.uint8), "expected uint8"),
    ],
)
def test_unsuitable_images_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        train_gan(images, config=CONFIG, seed=0)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch": 0}, {"augment_probability": 1.5}, {"decay": -0.1}])
def test_bad_configurations_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        GanConfig(**bad)


def test_network_shapes_follow_the_image_size():
    assert spec_for(32).generator_channels == StyleSpec().generator_channels[:4]
    assert spec_for(32).discriminator_channels == StyleSpec().discriminator_channels[1:]
    assert spec_for(64) == StyleSpec() == StyleSpec(**StyleSpec().as_dict())
    with pytest.raises(UserError, match="power of two"):
        StyleSpec(image_size=48)
    for size in (100, 128):  # what is advised for the one is of no use for the other
        with pytest.raises(UserError, match="a power of two" if size == 100 else "at most 64") as caught:
            spec_for(size)
    advised = yaml.safe_load(re.sub(r"\[(\d) widths\]", r"\1", str(caught.value).partition("networks: ")[2]))
    widths = {name: [4] * value for name, value in advised.items() if name != "image_size"}
    config = from_dict(GanConfig, {"networks": {**widths, "image_size": 128}}, "priors.stylegan")
    generator, discriminator = build_networks(config.networks)
    assert discriminator(generator(torch.randn(4, 128))).shape == (4,)
    with pytest.raises(UserError, match="expected 4 widths for 32 pixels"):
        StyleSpec(image_size=32)


@pytest.mark.parametrize("size", [32, 64])
def test_default_networks_are_small(size):
    for network in build_networks(spec_for(size)):
        assert 0.8e6 < sum(p.numel() for p in network.parameters()) < 3e6
