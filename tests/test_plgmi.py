"""PLG-MI: the conditional networks, pseudo labels and training of its GAN, its views, its margin, its attack."""

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
    SIZE,
    KilledError,
    SizedTarget,
    ToyPrior,
    ToyTarget,
    equal,
    parameters,
    same,
    smooth_images,
)

from lib import attacks
from lib.attacks import Reconstructions, plgmi
from lib.attacks.losses import max_margin
from lib.attacks.plgmi import PlgmiBudget, step_views
from lib.errors import UserError
from lib.priors import (
    PRIORS,
    TRAINERS,
    ConditionalGan,
    ConditionalGanConfig,
    ConditionalSpec,
    conditional_training,
    prior_from_state,
    train_conditional_gan,
)
from lib.priors.conditional_gan import (
    MOST_CLASSES,
    ConditionalGenerator,
    ConditionalNorm,
    DownBlock,
    ProjectionDiscriminator,
    UpBlock,
    build_conditional_networks,
)
from lib.priors.conditional_training import hinge, pseudo_labelled, top_images
from lib.priors.guidance import DRAWS, ViewLaw, draw_views, look
from lib.runtime import generator
from lib.setups.schema import from_dict
from lib.store import Checkpoint

SPEC = ConditionalSpec(CLASSES, image_size=16, latent_dim=6, width=4)
CONFIG = ConditionalGanConfig(
    steps=7, batch=6, top=4, width=4, latent_dim=6, n_critic=2, mirror=True, ema_images=16.0
)
SMALL = PlgmiBudget(candidates=3, keep=2, steps=5, views=3, chunk=2)
STILL = ViewLaw(crop=(1.0, 1.0), mirror=0.0, jitter=0.0, rotation=0.0)


class ToyConditional(ToyPrior):
    """Images sigmoid((z + class vector) A); the class vector is the one of :class:`ToyTarget`'s class, halved."""

    name, classes = "conditional_gan", CLASSES
    latent_dim = ToyPrior.latent_dim + 1

    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        z = super().sample(n, generator=generator, truncation=truncation)
        return torch.cat([z, torch.randint(CLASSES, (n, 1), generator=generator).float()], 1)

    def synthesise(self, latents: Tensor) -> Tensor:
        own = 0.75 * F.one_hot(latents[:, -1].detach().long(), latents.shape[1] - 1)
        return super().synthesise(latents[:, :-1] + own)


@pytest.fixture
def prior() -> ToyConditional:
    return ToyConditional()


@pytest.fixture
def target() -> ToyTarget:
    return ToyTarget(ToyPrior())


def gan_prior(spec: ConditionalSpec = SPEC) -> ConditionalGan:
    """A generator whose classes and statistics are no longer the initial ones."""
    made = build_conditional_networks(spec, seed=0)[0].train()
    stream = generator(0, "classes")
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.Embedding):
                module.weight += torch.randn(module.weight.shape, generator=stream)
        for _ in range(30):
            labels = torch.randint(spec.classes, (8,), generator=stream)
            made(torch.randn(8, spec.latent_dim, generator=stream), labels)
    return ConditionalGan(made)


# --- the networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "generators", "discriminators"),
    [(1000, 17_973_379, 11_165_441), (60, 12_558_979, 10_202_881)],
)
def test_the_networks_have_the_published_numbers_of_parameters(
    classes: int, generators: int, discriminators: int
) -> None:
    with torch.device("meta"):
        made = ConditionalGenerator(ConditionalSpec(classes))
    assert parameters(made) == generators
    assert parameters(ProjectionDiscriminator(ConditionalSpec(classes))) == discriminators


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_shapes_and_ranges(size: int) -> None:
    made, judge = build_conditional_networks(ConditionalSpec(3, size, latent_dim=6, width=4), seed=0)
    prior = ConditionalGan(made)
    latents = prior.sample(2, generator=generator(0, "z"))
    images = prior.synthesise(latents)
    assert latents.shape == (2, 7) and prior.latent_dim == 7 and prior.image_size == size
    assert images.shape == (2, 3, size, size) and images.dtype == torch.float32
    assert 0 < images.min() and images.max() < 1 and images.std() > 0.01
    assert judge(images, torch.tensor([0, 2])).shape == (2,)
    assert (
        made.first.out_features == 16 * judge.output.in_features
    )  # 4 pixels a side, then 2, of the same width
    assert prior.blocks() == [] and prior.critic is None


def test_default_class_embeddings_leave_plain_batch_normalisation() -> None:
    layer, plain = ConditionalNorm(5, CLASSES), nn.BatchNorm2d(5)
    for step in range(3):
        x = 3 * torch.randn(4, 5, 6, 6, generator=generator(step, "x")) + 1
        torch.testing.assert_close(layer(x, torch.tensor([0, 3, 4, 4])), plain(x))
    x = torch.randn(2, 5, 6, 6, generator=generator(9, "x"))
    torch.testing.assert_close(layer.eval()(x, torch.tensor([1, 2])), plain.eval()(x))


def test_class_embeddings_scale_and_shift_their_class_alone() -> None:
    layer = ConditionalNorm(5, CLASSES)
    with torch.no_grad():
        layer.scale.weight[3], layer.shift.weight[3] = 2.0, -1.0
    x = torch.randn(4, 5, 6, 6, generator=generator(0, "x"))
    wanted = nn.BatchNorm2d(5)(x)
    wanted[2] = 2 * wanted[2] - 1
    torch.testing.assert_close(layer(x, torch.tensor([0, 1, 3, 4])), wanted)


def test_shortcuts_commute_with_resizing_as_published() -> None:
    x = torch.randn(2, 6, 8, 8, generator=generator(0, "x"))
    up, down = UpBlock(6, 4, CLASSES), DownBlock(6, 4)
    torch.testing.assert_close(
        F.interpolate(up.skip(x), scale_factor=2, mode="bilinear"),
        up.skip(F.interpolate(x, scale_factor=2, mode="bilinear")),
    )
    torch.testing.assert_close(down.skip.eval()(F.avg_pool2d(x, 2)), F.avg_pool2d(down.skip(x), 2))


def test_the_discriminator_is_a_projection_of_spectral_norm_one() -> None:
    _, judge = build_conditional_networks(SPEC, seed=0)
    images = torch.rand(3, 3, 16, 16, generator=generator(0, "x"))
    for _ in range(50):  # power iterations
        judge(images, torch.tensor([0, 1, 2]))
    judge.eval()
    layers = [
        module for module in judge.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding)
    ]
    assert len(layers) == 3 * len(judge.blocks) + 2
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert norm == pytest.approx(1.0, abs=0.02)
    seen: list[Tensor] = []
    judge.output.register_forward_hook(lambda module, given, result: seen.extend([given[0], result[:, 0]]))
    said = judge(images, torch.tensor([4, 0, 1]))
    features, plain = seen
    torch.testing.assert_close(said, plain + (judge.classes.weight[[4, 0, 1]] * features).sum(1))
    alone = torch.cat([judge(images[i : i + 1], torch.tensor([y])) for i, y in enumerate((4, 0, 1))])
    torch.testing.assert_close(said, alone)


# --- the prior ------------------------------------------------------------------------------------------


def test_latents_are_standard_normal_with_a_uniform_class_that_truncation_leaves_alone() -> None:
    made = gan_prior()
    full = made.sample(5000, generator=generator(0, "z"))
    z, classes = full[:, :-1], full[:, -1]
    assert z.mean().abs() < 0.03 and abs(z.std() - 1) < 0.03
    counts = torch.bincount(classes.long(), minlength=CLASSES)
    assert torch.equal(classes, classes.round()) and (counts - 1000).abs().max() < 120
    half = made.sample(5000, generator=generator(0, "z"), truncation=0.3)
    torch.testing.assert_close(half[:, :-1], 0.3 * z)
    assert torch.equal(half[:, -1], classes)


def test_density_is_that_of_z_alone() -> None:
    made = gan_prior()
    latents = made.sample(8, generator=generator(0, "z"))
    normal = torch.distributions.Normal(0.0, 1.0)
    wanted = (normal.log_prob(latents[:, :-1]) - normal.log_prob(torch.tensor(0.0))).sum(1)
    torch.testing.assert_close(made.log_density(latents), wanted)


def test_the_class_coordinate_chooses_the_class_is_rounded_and_has_no_gradient() -> None:
    made = gan_prior()
    latents = made.sample(1, generator=generator(0, "z")).repeat(CLASSES, 1)
    latents[:, -1] = torch.arange(CLASSES)
    images = made.synthesise(latents.requires_grad_())
    (images * torch.randn(images.shape, generator=generator(1, "w"))).sum().backward()
    assert (latents.grad[:, :-1].abs().sum(1) > 0).all() and (latents.grad[:, -1] == 0).all()
    images = images.detach()
    assert min((a - b).abs().max() for i, a in enumerate(images) for b in images[:i]) > 1e-3
    with torch.no_grad():
        near = latents + 0.4 * F.one_hot(torch.tensor(6), 7)
        torch.testing.assert_close(made.synthesise(near), images)
        beyond = latents + 10.0 * F.one_hot(torch.tensor(6), 7)
        torch.testing.assert_close(made.synthesise(beyond)[0], images[-1])
    assert all(p.grad is None and not p.requires_grad for p in made.generator.parameters())


def test_no_latent_influences_the_image_of_another() -> None:
    made = gan_prior()
    latents = made.sample(4, generator=generator(0, "z"))
    alone = torch.cat([made.synthesise(latent[None]) for latent in latents])
    torch.testing.assert_close(made.synthesise(latents), alone, atol=1e-5, rtol=1e-5)


def test_the_prior_goes_through_the_store() -> None:
    made = gan_prior()
    tensors, meta = made.state(), json.loads(json.dumps(made.meta()))
    latents = made.sample(3, generator=generator(0, "z"))
    again = prior_from_state(tensors, meta)
    assert isinstance(again, ConditionalGan) and same(again.state(), tensors) and again.meta() == made.meta()
    assert torch.equal(again.synthesise(latents), made.synthesise(latents))
    half = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    narrow = prior_from_state(half, meta)
    assert narrow.state()["first.weight"].dtype == torch.float32
    torch.testing.assert_close(narrow.synthesise(latents), made.synthesise(latents), atol=0.02, rtol=0)
    for strange in (
        {name: t for name, t in tensors.items() if name != "first.bias"},
        tensors | {"stranger": torch.zeros(1)},
        tensors | {"first.bias": torch.zeros(2)},
    ):
        with pytest.raises(
            UserError, match="conditional_gan prior: .*another architecture|first.bias has shape"
        ):
            prior_from_state(strange, meta)


def test_classes_survive_the_rounding_of_latents() -> None:
    every = torch.arange(MOST_CLASSES).float()
    assert torch.equal(every.half().float(), every)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": MOST_CLASSES + 1}, f"2 to {MOST_CLASSES} .*got {MOST_CLASSES + 1}"),
        ({"classes": 1}, "classes: .*got 1"),
        ({"image_size": 48}, "power of two"),
        ({"image_size": 4}, "power of two"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"width": 0}, "width"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SPEC, **change)


# --- margin and views -----------------------------------------------------------------------------------


def test_the_margin_of_three_one_two() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]] * 3)
    assert max_margin(logits, torch.tensor([0, 1, 2])).tolist() == [-1.0, 2.0, 1.0]
    logits = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    max_margin(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.tolist() == [[-1.0, 0.0, 1.0]]
    assert max_margin(1e4 * logits.detach(), torch.tensor([0])).item() == -1e4, "no hinge"


def test_a_law_of_nothing_shows_the_image_itself() -> None:
    images = torch.rand(5, 3, 8, 8, generator=generator(0, "x"))
    draws = draw_views(5, generator=generator(0, "draws"))
    torch.testing.assert_close(look(images, draws, STILL), images)
    mirrored = dataclasses.replace(STILL, mirror=1.0)
    torch.testing.assert_close(look(images, draws, mirrored), images.flip(-1))


def test_crops_are_squares_of_the_drawn_area_and_place() -> None:
    """Of an image whose first two channels are its coordinates in half sides."""
    line = (torch.arange(32) + 0.5) / 16 - 1
    coordinates = torch.stack([line.expand(32, 32), line[:, None].expand(32, 32), torch.zeros(32, 32)])
    draws = draw_views(200, generator=generator(0, "draws"))
    seen = look(
        coordinates.expand(200, -1, -1, -1) / 2 + 0.5, draws, dataclasses.replace(STILL, crop=(0.36, 0.81))
    )
    seen = 2 * seen - 1
    wide = seen[:, 0, 16, 24] - seen[:, 0, 16, 8]  # half a side apart
    high = seen[:, 1, 24, 16] - seen[:, 1, 8, 16]
    torch.testing.assert_close(wide, (0.36 + 0.45 * draws[:, 0]).sqrt())
    torch.testing.assert_close(high, wide)
    middle = seen[:, :2, 15:17, 15:17].mean((2, 3))
    room = 1 - wide
    assert (middle.abs() <= room[:, None] + 1e-5).all() and (middle / room[:, None]).std() > 0.4


def test_rotation_turns_by_up_to_the_angle_and_only_that_often() -> None:
    line = (torch.arange(32) + 0.5) / 16 - 1
    coordinates = torch.stack([line.expand(32, 32), line[:, None].expand(32, 32), torch.zeros(32, 32)])
    draws = draw_views(400, generator=generator(0, "draws"))
    seen = look(
        coordinates.expand(400, -1, -1, -1) / 2 + 0.5, draws, dataclasses.replace(STILL, rotation=20.0)
    )
    along = seen[:, :, 16, 20] - seen[:, :, 16, 12]  # a horizontal step, turned
    angle = torch.rad2deg(torch.atan2(along[:, 1], along[:, 0]))
    turned = angle.abs() > 1e-2
    assert 0.4 < turned.float().mean() < 0.6
    assert 19 < angle.max() < 20.01 and -20.01 < angle.min() < -19
    torch.testing.assert_close(along[:, :2].norm(dim=1), torch.full((400,), 0.25), atol=1e-4, rtol=0)


def test_jitter_multiplies_brightness_and_contrast_about_the_mean() -> None:
    image = torch.tensor([0.3, 0.5]).repeat_interleave(96).view(1, 3, 8, 8)
    draws = draw_views(600, generator=generator(0, "draws"))
    seen = look(image.expand(600, -1, -1, -1), draws, dataclasses.replace(STILL, jitter=0.2))
    touched = (draws[:, 6] < 0.5).float()
    factor, spread = seen.mean((1, 2, 3)) / 0.4, (seen.amax((1, 2, 3)) - seen.amin((1, 2, 3))) / 0.2
    torch.testing.assert_close(factor, 1 + 0.2 * (2 * draws[:, 7] - 1) * touched)
    torch.testing.assert_close(spread, factor * (1 + 0.2 * (2 * draws[:, 8] - 1) * touched))
    assert torch.equal(seen[touched == 0], image.expand(600, -1, -1, -1)[touched == 0])


def test_a_view_depends_on_its_own_draws_stays_in_range_and_passes_gradients() -> None:
    images = torch.rand(4, 3, 8, 8, generator=generator(0, "x")).requires_grad_()
    draws = draw_views(4, generator=generator(1, "draws"))
    seen = look(images, draws, ViewLaw(jitter=0.9, jitter_probability=1.0))
    assert seen.min() == 0 and seen.max() == 1 and draws.shape == (4, DRAWS)
    (seen * torch.randn(seen.shape, generator=generator(2, "w"))).sum().backward()
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()
    alone = [look(images[i : i + 1], draws[i : i + 1], ViewLaw()) for i in range(4)]
    torch.testing.assert_close(look(images, draws, ViewLaw()), torch.cat(alone))
    assert (torch.cat(alone) - images).abs().amax((1, 2, 3)).min() > 0.01


@pytest.mark.parametrize(
    "change",
    [{"crop": (0.0, 1.0)}, {"crop": (0.9, 1.1)}, {"mirror": 1.5}, {"jitter": -0.1}, {"rotation": 200.0}],
)
def test_impossible_views_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"view {next(iter(change))}: expected"):
        ViewLaw(**change)


# --- training -------------------------------------------------------------------------------------------


def train(target: nn.Module, images: Tensor, config: ConditionalGanConfig = CONFIG, **rest: Any):
    return train_conditional_gan(images, target, config=config, seed=0, **rest)


def test_top_images_are_exactly_so_many_per_class_and_one_may_serve_several() -> None:
    probabilities = torch.rand(40, 6, generator=generator(0, "p"))
    probabilities[7] = 2.0
    chosen = top_images(probabilities, 5)
    assert chosen.shape == (6, 5)
    for label in range(6):
        ranking = sorted(range(40), key=lambda i: -probabilities[i, label])
        assert chosen[label].tolist() == ranking[:5]
    assert (chosen == 7).sum() == 6 and (chosen[:, 0] == 7).all()


def test_the_target_labels_in_evaluation_mode_and_comes_back_as_it_was() -> None:
    target, images = SizedTarget(16).train(), smooth_images(300, 16)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    chosen = pseudo_labelled(target, images, 4)
    assert target.training and same(before, target.state_dict())
    with torch.no_grad():
        p = target.eval()(images.float() / 255).softmax(1)
    taken = p.gather(0, chosen.t())  # bf16 may swap neighbours
    torch.testing.assert_close(taken, p.topk(4, 0).values, atol=0.02, rtol=0)


def test_the_hinge_loss() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert hinge(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 2) / 2)


def test_history_and_result() -> None:
    target, images = SizedTarget(16), smooth_images(30, 16)
    rows: list[dict[str, float]] = []
    made, history = train(target, images, callback=rows.append)
    assert rows == history and [row["step"] for row in history] == [7]
    row = history[0]
    assert row["images"] == 42 and 0 <= row["agreement"] <= 1
    assert row["unique_share"] == len(pseudo_labelled(target, images, 4).unique()) / 20
    assert 0 < row["discriminator_loss"] < 4 and all(math.isfinite(value) for value in row.values())
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    assert made.spec == SPEC
    assert isinstance(PRIORS["conditional_gan"](made), ConditionalGan)


def test_training_leaves_the_target_as_it_was_without_gradients() -> None:
    target, images = SizedTarget(16).train(), smooth_images(30, 16)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    train(target, images)
    assert target.training and same(before, target.state_dict())
    assert all(p.grad is None and p.requires_grad for p in target.parameters())


def test_the_margin_teaches_the_generator_what_the_target_recognises() -> None:
    target, images = SizedTarget(16), smooth_images(60, 16)
    config = dataclasses.replace(
        CONFIG, steps=50, n_critic=1, generator_rate=2e-3, discriminator_rate=2e-3, ema_images=0.0
    )
    with_margin, without = (
        train(target, images, dataclasses.replace(config, margin_weight=weight))[1][-1]["margin"]
        for weight in (2.0, 0.0)
    )
    assert with_margin < without - 0.05


def test_the_discriminator_sees_no_view_and_the_target_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[Tensor, Tensor]] = []
    shown: list[Tensor] = []

    def spy(images: Tensor, draws: Tensor, law: ViewLaw) -> Tensor:
        looked.append((images, look(images, draws, law)))
        return looked[-1][1]

    class Watched(SizedTarget):
        def forward(self, images: Tensor) -> Tensor:
            shown.append(images.detach().clone())
            return super().forward(images)

    judged: list[Tensor] = []
    own = ProjectionDiscriminator.forward
    monkeypatch.setattr(conditional_training, "look", spy)
    monkeypatch.setattr(
        ProjectionDiscriminator, "forward", lambda self, x, y: (judged.append(x.detach()), own(self, x, y))[1]
    )
    train(Watched(16), smooth_images(30, 16), dataclasses.replace(CONFIG, steps=2, n_critic=3))
    assert len(looked) == 2 and len(judged) == 8, "one generator step, then three of the discriminator"
    assert torch.equal(judged[0], looked[0][0]) and torch.equal(judged[4], looked[1][0])
    assert [len(images) for images in shown] == [30, 6, 6] and torch.equal(shown[1], looked[0][1])
    fakes = [judged[i][6:] for i in (1, 2, 3)]
    assert not torch.equal(fakes[0], fakes[1]) and all(len(images) == 12 for images in judged[1:4])


@pytest.mark.parametrize("ema_images", [0.0, 16.0])
def test_a_resumed_training_has_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_images: float
) -> None:
    monkeypatch.setattr(conditional_training, "ROW_EVERY", 2)
    target, images = SizedTarget(16), smooth_images(20, 16)
    config = dataclasses.replace(CONFIG, ema_images=ema_images, decay=0.5)
    whole = train(target, images, config)
    checkpoint = Checkpoint(tmp_path / "gan.checkpoint", every=0)

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 6:
            raise KilledError

    with pytest.raises(KilledError):
        train(target, images, config, checkpoint=checkpoint, callback=kill)
    assert checkpoint.load()["step"] == 4
    with monkeypatch.context() as patch:
        patch.setattr(conditional_training, "pseudo_labelled", None)  # the labels are in the checkpoint
        resumed = train(target, images, config, checkpoint=checkpoint)
    assert same(whole[0].state_dict(), resumed[0].state_dict()) and whole[1] == resumed[1]
    with pytest.raises(UserError, match="conditional GAN checkpoint: .* remove it with"):
        train(SizedTarget(16, 3), images, config, checkpoint=checkpoint)


def test_the_average_differs_from_the_last_weights_and_other_seeds_from_each_other() -> None:
    target, images = SizedTarget(16), smooth_images(20, 16)
    kept, last = (
        train(target, images, dataclasses.replace(CONFIG, ema_images=e))[0].state_dict() for e in (500.0, 0.0)
    )
    assert not torch.equal(kept["first.weight"], last["first.weight"])
    name = "blocks.0.norm1.norm.running_var"
    assert not torch.equal(kept[name], last[name]) and not torch.equal(kept[name], torch.ones(8))
    other = train_conditional_gan(images, target, config=CONFIG, seed=1)[0].state_dict()
    assert not torch.equal(other["first.weight"], kept["first.weight"])


@pytest.mark.parametrize(
    ("images", "target", "message"),
    [
        (torch.rand(30, 3, 16, 16), SizedTarget(16), "expected uint8"),
        (smooth_images(30, 8), SizedTarget(16), "the target's 16 pixels, got 8"),
        (smooth_images(3, 16), SizedTarget(16), "at least top = 4, got 3"),
        (smooth_images(30, 16), SizedTarget(16, 1), "classes: .*got 1"),
    ],
)
def test_bad_material_is_refused(images: Tensor, target: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(target, images)


def test_a_nan_loss_is_a_clear_error() -> None:
    target = SizedTarget(16)
    with torch.no_grad():
        target.head.bias[0] = math.nan
    with pytest.raises(UserError, match="finite losses.*learning rates"):
        train(target, smooth_images(30, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"top": 0}, "top"),
        ({"batch": 1}, "batch"),
        ({"n_critic": 0}, "n_critic"),
        ({"generator_rate": 0.0}, "generator_rate"),
        ({"discriminator_rate": math.nan}, "discriminator_rate"),
        ({"margin_weight": -0.1}, "margin_weight"),
        ({"margin_weight": math.inf}, "margin_weight"),
        ({"ema_images": -1.0}, "ema_images"),
        ({"decay": 1.5}, "decay"),
    ],
)
def test_bad_constants_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_published_constants_are_the_defaults_but_for_the_size_and_a_setup_can_give_all() -> None:
    config = ConditionalGanConfig()
    assert (config.top, config.n_critic, config.margin_weight, config.latent_dim) == (30, 5, 0.2, 128)
    assert config.generator_rate == config.discriminator_rate == 2e-4
    assert config.decay == config.ema_images == 0 and not config.mirror
    law = config.views
    assert (law.crop, law.mirror, law.jitter, law.rotation) == ((0.8, 1.0), 0.5, 0.2, 5.0)
    assert law.jitter_probability == law.rotation_probability == 0.5
    given = from_dict(
        ConditionalGanConfig, {"steps": 9, "views": {"crop": [0.9, 1.0], "rotation": 0}}, "setup"
    )
    assert given.views == ViewLaw(crop=(0.9, 1.0), rotation=0.0) and given.steps == 9
    trainer = TRAINERS["conditional_gan"]
    assert trainer.Config is ConditionalGanConfig and trainer.train is train_conditional_gan


# --- the attack -----------------------------------------------------------------------------------------


def run(target: nn.Module, prior: Any, labels: list[int], **rest: Any) -> Reconstructions:
    return plgmi.invert(target, prior, labels, **{"budget": SMALL, "seed": 3, **rest})


def test_the_registry_finds_it() -> None:
    found = attacks.get("plgmi")
    assert found.Budget is PlgmiBudget and found.prior == "conditional_gan" and found.sees == "gradients"
    budget = found.budget(crop_scale=[0.9, 1.0])
    assert budget.crop_scale == (0.9, 1.0)
    assert (budget.candidates, budget.steps, budget.learning_rate, budget.keep) == (5, 600, 0.1, 5)
    assert budget.work == 5 * (2 * 600 * 1.5 + 50) and budget.law == ViewLaw(crop=(0.9, 1.0))


def test_it_beats_prior_samples_of_the_class(target: ToyTarget, prior: ToyConditional) -> None:
    budget = dataclasses.replace(SMALL, steps=40, candidates=4, keep=1)
    found = run(target, prior, [2, 0, 4], budget=budget)
    target.eval()
    with torch.no_grad():
        before, after = (
            max_margin(target(prior.synthesise(each.flatten(0, 1))), found.labels.repeat_interleave(4))
            for each in (found.initial, found.latents)
        )
    assert (after < before - 0.5).all()
    torch.testing.assert_close(found.loss.flatten(), after, atol=0.05, rtol=0.02)
    assert found.history[-1]["loss"] < found.history[0]["loss"] - 1
    best = found.confidence.argmax(1, keepdim=True)
    assert torch.equal(found.selected, best)


def test_the_class_coordinate_is_the_label_and_never_moves(target: ToyTarget, prior: ToyConditional) -> None:
    found = run(target, prior, [4, 1, 3])
    assert found.latents.shape == found.initial.shape == (3, 3, prior.latent_dim)
    wanted = torch.tensor([4.0, 1.0, 3.0])[:, None].expand(3, 3)
    assert torch.equal(found.initial[..., -1], wanted) and torch.equal(found.latents[..., -1], wanted)
    assert (found.latents[..., :-1] != found.initial[..., :-1]).all()


def test_steps_are_adams_on_the_margins_of_two_views(target: ToyTarget, prior: ToyConditional) -> None:
    found = run(target, prior, [1], budget=dataclasses.replace(SMALL, fast=False))
    views = step_views([1], budget=SMALL, seed=3)
    assert views.shape == (5, 2, 3, DRAWS) and not torch.equal(views[0, 0], views[0, 1])
    latents = found.initial[0].clone().requires_grad_()
    method = torch.optim.Adam([latents], lr=0.1)
    target.eval()
    for draws in views:
        images = prior.synthesise(latents)
        both = [max_margin(target(look(images, view, SMALL.law)), torch.tensor([1] * 3)) for view in draws]
        method.zero_grad()
        (both[0] + both[1]).sum().backward()
        method.step()
    torch.testing.assert_close(found.latents[0], latents.detach(), atol=2e-3, rtol=2e-3)
    assert found.cost["target_forward"] == 3 * (5 * 2 + 1 + SMALL.views)
    assert found.cost["target_backward"] == 3 * 5 * 2 and found.cost["synthesis"] == 3 * (5 + 1)
    assert found.cost["critic"] == 0


def test_starts_follow_the_truncation(target: ToyTarget, prior: ToyConditional) -> None:
    full, half = (
        run(target, prior, [2], budget=dataclasses.replace(SMALL, truncation=psi)).initial
        for psi in (1.0, 0.5)
    )
    torch.testing.assert_close(half[..., :-1], full[..., :-1] / 2, atol=1e-3, rtol=1e-3)
    assert torch.equal(half[..., -1], full[..., -1])


def test_order_and_company_change_nothing(target: ToyTarget, prior: ToyConditional) -> None:
    labels = [4, 1, 0, 3, 2]
    whole = run(target, prior, labels)
    again = run(target, prior, sorted(labels))
    assert equal(whole, run(target, prior, labels))
    assert all(torch.equal(whole.latents[i], again.latents[label]) for i, label in enumerate(labels))
    alone = run(target, prior, [3])
    torch.testing.assert_close(alone.latents[0], whole.latents[3], atol=5e-3, rtol=5e-3)
    assert torch.equal(alone.initial[0], whole.initial[3])


@pytest.mark.parametrize("done", [2, 4])
def test_a_resumed_attack_has_the_bits_of_the_whole(
    target: ToyTarget, prior: ToyConditional, tmp_path: Path, done: int
) -> None:
    labels = [4, 1, 0, 3, 2]
    whole = run(target, prior, labels)

    def kill(event: dict[str, Any]) -> None:
        if event["done"] == done:
            raise KilledError

    checkpoint = Checkpoint(tmp_path / "attack.checkpoint", every=0)
    with pytest.raises(KilledError):
        run(target, prior, labels, callback=kill, checkpoint=checkpoint)
    assert equal(whole, run(target, prior, labels, checkpoint=checkpoint))


def test_a_real_generator_is_attacked_and_both_networks_come_back_as_they_were() -> None:
    target, made = SizedTarget(16).train(), gan_prior()
    before = [{n: t.clone() for n, t in network.state_dict().items()} for network in (target, made.generator)]
    found = run(target, made, [0, 4], budget=dataclasses.replace(SMALL, steps=15))
    for network, state in zip((target, made.generator), before, strict=True):
        assert same(state, network.state_dict()) and all(p.grad is None for p in network.parameters())
    assert target.training and not made.generator.training
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert Reconstructions.from_tensors(found.to_tensors(), found.meta()).latents.equal(found.latents)


def test_other_priors_are_refused(target: ToyTarget) -> None:
    with pytest.raises(UserError, match="plgmi: expected a prior of kind conditional_gan, got toy"):
        run(target, ToyPrior(), [0])
    few = gan_prior(ConditionalSpec(3, image_size=SIZE, latent_dim=6, width=4))
    with pytest.raises(UserError, match="target's 5 classes, got a conditional_gan of 3 classes; train"):
        run(target, few, [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, "view crop"),
        ({"jitter": -0.1}, "view jitter"),
        ({"jitter_probability": 2.0}, "view jitter_probability"),
        ({"keep": 4}, "budget keep"),
        ({"steps": 0}, "budget steps"),
    ],
)
def test_bad_budgets_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)
