"""The training loop: deterministic, resumable, with every defence hook in its place."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import nn

from lib.data import Images
from lib.errors import UserError
from lib.models import build_classifier
from lib.store import Checkpoint
from lib.training import Augmentation, Defence, Recipe, accuracy, augment, predict, train_classifier

CPU = torch.device("cpu")
SPEC = {"kind": "residual", "widths": [4, 4, 8, 8]}
DROPS = {"kind": "ir", "widths": [4, 4, 8, 8], "units": [1, 1, 1, 1], "feature_size": 8, "dropout": 0.4}
STILL = Augmentation(rotation=0, translation=0, scale=0, flip=0, brightness=0, contrast=0, saturation=0)


def bars(per_class: int = 12, size: int = 16) -> Images:
    """Three classes told apart by where a bright bar stands."""
    pixels = torch.randint(0, 60, (3 * per_class, 3, size, size), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat_interleave(per_class)
    for k in range(3):
        pixels[labels == k, :, :, 2 + 5 * k : 5 + 5 * k] += 180
    return Images(pixels.byte(), labels, ["left", "middle", "right"])


def run(recipe: Recipe, *, defences=(), seed=0, spec=SPEC, **options):
    return train_classifier(
        lambda planned: build_classifier(spec, 3, 16, width=planned.width),
        bars(),
        recipe=recipe,
        defences=defences,
        seed=seed,
        device=CPU,
        **options,
    )


RECIPE = Recipe(steps=12, batch=12, augmentation=STILL, learning_rate=5e-3)


def weights(result) -> list[torch.Tensor]:
    return list(result.model.state_dict().values())


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_it_learns():
    result = run(dataclasses.replace(RECIPE, steps=60), validation=bars())
    assert result.history[-1]["validation_accuracy"] > 0.9
    assert accuracy(result.model, bars(), device=CPU) == result.history[-1]["validation_accuracy"]


@pytest.mark.parametrize("spec", [SPEC, DROPS])
def test_same_seed_equal_weights_another_seed_not(spec):
    before = torch.get_rng_state()
    first = run(RECIPE, seed=3, spec=spec)
    assert torch.equal(before, torch.get_rng_state()), "a training leaves the global stream alone"
    torch.rand(7)  # and does not depend on it
    assert same(first, run(RECIPE, seed=3, spec=spec))
    assert not same(first, run(RECIPE, seed=4, spec=spec))


class Killed(Exception):
    pass


@pytest.mark.parametrize(("average", "spec"), [(0.0, SPEC), (0.9, SPEC), (0.9, DROPS)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, average, spec):
    recipe = dataclasses.replace(RECIPE, average=average)
    run_it = partial(run, recipe, snapshots=[0.25, 0.75], spec=spec)
    whole = run_it()
    rows = []

    def kill(row):
        rows.append(row)
        if len(rows) == 3:
            raise Killed

    checkpoint = Checkpoint(tmp_path / "c", every=0)
    with pytest.raises(Killed):
        run_it(checkpoint=checkpoint, callback=kill)
    torch.rand(7)
    resumed = run_it(checkpoint=Checkpoint(tmp_path / "c", every=0))
    assert same(whole, resumed)
    assert whole.history == resumed.history
    assert sorted(resumed.snapshots) == [0.25, 0.75]
    for fraction, state in whole.snapshots.items():
        assert all(torch.equal(state[name], resumed.snapshots[fraction][name]) for name in state)


class Stop(Defence):
    name = "stop"

    def __init__(self, fraction):
        self.fraction = fraction

    def plan(self, recipe):
        return dataclasses.replace(recipe, stop=self.fraction)


def test_a_snapshot_is_the_run_stopped_there():
    snapshot = run(RECIPE, snapshots=[0.5]).snapshots[0.5]
    stopped = run(RECIPE, defences=[Stop(0.5)]).model.state_dict()
    assert all(torch.equal(snapshot[name], stopped[name]) for name in snapshot)


class Spy(Defence):
    """Uses every member once and notes the order."""

    name = "spy"

    def __init__(self):
        self.calls = []
        self.net = nn.Linear(1, 1)

    def note(self, name):
        self.calls.append(name)

    def build(self, model):
        self.note("build")
        return model

    def freeze(self, model):
        return set(model.body.stem.parameters())

    def taps(self, model):
        return [model.body.stages[0]]

    def phase(self, epoch, epochs):
        self.note(f"phase {epoch}/{epochs}")

    def source(self, images, index, seed):
        self.note("source")
        return images

    def input(self, images, index, generator):
        self.note("input")
        return lambda x: x * 0.5

    def before(self, model, view, images, labels, generator):
        self.note("before")
        torch.testing.assert_close(view(images), images * 0.5)
        return images.flip(0)

    def batch(self, images, labels, extras):
        self.note("batch")
        doubled = torch.cat([images, extras]), torch.cat([labels, labels.flip(0)])
        return *doubled, torch.cat([torch.ones(len(images)), torch.zeros(len(images))])

    def penalty(self, images, labels, taps):
        self.note("penalty")
        assert len(images) == len(labels) == 12 and taps[0].shape[:2] == (12, 4)
        return taps[0].float().mean() * 0.01

    def diagnostics(self):
        return {"steps": float(self.calls.count("penalty"))}


def test_every_hook_is_called_in_the_documented_order():
    spy = Spy()
    model_before = build_classifier(SPEC, 3, 16)
    stem = {}

    def make(planned):
        model_before.load_state_dict(build_classifier(SPEC, 3, 16).state_dict())
        stem.update({n: t.clone() for n, t in model_before.body.stem.named_parameters()})
        return model_before

    recipe = dataclasses.replace(RECIPE, steps=3)
    result = train_classifier(make, bars(), recipe=recipe, defences=[spy], seed=0, device=CPU)
    assert spy.calls == ["build", "phase 0/1"] + ["source", "input", "before", "batch", "penalty"] * 3
    assert result.diagnostics == {"spy.steps": 3.0}
    for name, parameter in result.model.body.stem.named_parameters():
        assert torch.equal(parameter, stem[name])  # frozen parameters stay bit-identical


class Mirrors(Defence):
    """Appends every photo once more, mirrored."""

    def batch(self, images, labels, extras):
        doubled = torch.cat([images, images.flip(-1)]), torch.cat([labels, labels])
        return *doubled, torch.ones(2 * len(images))


class Hides(Defence):
    """Another mask for every photo; notes what the network is shown."""

    def __init__(self):
        self.masks, self.shown = [], []

    def input(self, images, index, generator):
        mask = torch.rand(len(images), 1, *images.shape[2:], generator=generator) < 0.5
        self.masks.append(mask)
        return lambda x: torch.where(mask, 0.0, x)


def test_appended_rows_are_seen_through_the_view_of_their_photo():
    hides, shown = Hides(), []

    def watched(planned):
        model = build_classifier(SPEC, 3, 16)
        model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach().clone()))
        return model

    train_classifier(
        watched,
        bars(),
        recipe=dataclasses.replace(RECIPE, steps=1),
        defences=[hides, Mirrors()],
        seed=0,
        device=CPU,
    )
    first, again = shown[0].split(12)
    mask = hides.masks[0].expand_as(first)
    assert not first[mask].any() and not again[mask].any() and first[~mask].any()
    kept = ~mask & ~mask.flip(-1)
    assert torch.equal(again[kept], first.flip(-1)[kept])


class AppendsOne(Defence):
    def batch(self, images, labels, extras):
        return torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]]), torch.ones(len(images) + 1)


def test_views_refuse_rows_that_copy_no_photo():
    with pytest.raises(UserError, match="whole copies of the batch of 12 rows"):
        run(RECIPE, defences=[Hides(), AppendsOne()])


class Criterion(Defence):
    name = "criterion"

    @staticmethod
    def criterion(logits, labels):
        return nn.functional.cross_entropy(logits, labels, reduction="none")


class Explodes(Defence):
    name = "explodes"

    @staticmethod
    def criterion(logits, labels):
        return logits.sum(1) * math.inf


def test_own_criterion_and_refusals():
    assert same(run(RECIPE), run(RECIPE, defences=[Criterion()]))
    with pytest.raises(UserError, match="one criterion"):
        run(RECIPE, defences=[Criterion(), Criterion()])
    with pytest.raises(UserError, match="loss became"):
        run(RECIPE, defences=[Explodes()])


def test_a_defence_that_draws_leaves_the_data_order_alone():
    """Named streams: erasing noise must not change which photos come when."""
    orders = []

    class Watch(Defence):
        def source(self, images, index, seed):
            orders.append(index.tolist())
            return images

    class Draws(Watch):
        def input(self, images, index, generator):
            torch.rand(100, generator=generator)
            return None

    run(RECIPE, defences=[Watch()])
    run(RECIPE, defences=[Draws()])
    assert orders[: len(orders) // 2] == orders[len(orders) // 2 :]


def test_share_takes_the_same_fraction_of_everyone():
    class Fewer(Defence):
        def plan(self, recipe):
            return dataclasses.replace(recipe, share=0.5)

    seen = set()

    class Watch(Defence):
        def source(self, images, index, seed):
            seen.update(index.tolist())
            return images

    run(dataclasses.replace(RECIPE, batch=6), defences=[Fewer(), Watch()])
    assert seen == set(range(18))


def test_predict_restores_the_mode_and_matches_the_model():
    model = build_classifier(SPEC, 3, 16).train()
    features, logits = predict(model, bars(), device=CPU, batch=7)
    assert model.training and logits.shape == (36, 3) and features.shape == (36, 8)
    torch.testing.assert_close(logits, model.eval()(bars().float()), rtol=1e-4, atol=1e-4)


def test_augmentation_without_range_is_the_identity_and_stays_in_range():
    images = torch.rand(5, 3, 16, 16)
    same_images = augment(images, STILL, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(same_images, images, atol=1e-5, rtol=0)
    moved = augment(images, Augmentation(), generator=torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.min() >= 0 and moved.max() <= 1
    mirrored = augment(
        images, dataclasses.replace(STILL, flip=1.0), generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(mirrored, images.flip(3), atol=1e-5, rtol=0)
