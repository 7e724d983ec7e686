"""Trap-MID: who carries which trigger, what moves in a step and what must not, and what the network is shown."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F
from toys import NETWORKS, SMALL, KilledError, bars, same, train_bars

from lib.defences import build
from lib.defences._trapdoors import Deck, draw_geometry
from lib.errors import UserError
from lib.models import build_classifier
from lib.store import Checkpoint
from lib.training import Recipe

A = {"chance": 0.5, "area": 0.8, "degrees": 30}  # as published
IMAGES, LABELS = bars().float(torch.arange(0, 36, 3)), bars().labels[::3]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def started(text="trapmid(0.2)", classes=3):
    """The defence and a network in training mode, as the loop has them before the first step."""
    (defence,) = build(text)
    torch.manual_seed(0)
    model = build_classifier(NETWORKS["residual"], classes, 16)
    defence.plan(Recipe(steps=10))
    model = defence.build(model).train()
    assert defence.freeze(model) == set()
    defence.phase(0, 2)
    return defence, model


def step(defence, model, view=lambda x: x, seed=0):
    return defence.before(model, view, IMAGES, LABELS, seeded(seed))


def test_the_discriminator_learns_to_tell_photos_with_strong_triggers():
    defence, model = started("trapmid(0.2,blend=0.9)")
    for _ in range(30):
        defence._teach_discriminator(IMAGES, LABELS)
    defence._told_apart.restart()
    defence._teach_discriminator(IMAGES, LABELS)
    assert defence.diagnostics()["told_apart"] > 0.9


# --- a step -------------------------------------------------------------------------------------------------


def test_triggers_begin_uniform_and_are_blended_in_faintly():
    defence, _ = started()
    t = defence.triggers
    assert t.shape == (3, 3, 16, 16) and 0 <= t.min() and t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.03) and t.var().item() == pytest.approx(
        1 / 12, rel=0.1
    )
    torch.testing.assert_close(defence.blended(IMAGES, t[LABELS]), 0.98 * IMAGES + 0.02 * t[LABELS])


def test_a_step_moves_triggers_by_the_sign_of_their_gradient_and_no_further_than_the_range():
    defence, model = started("trapmid(0.2,step=0.1,augmented=none)")
    before, network = defence.triggers.clone(), copy.deepcopy(model).eval()
    _, _, traps = step(defence, model)
    t = before.clone().requires_grad_()
    b = defence.blended(IMAGES, t[traps])
    said = defence.discriminator(b)  # after its own step, as when the triggers moved
    loss = F.binary_cross_entropy_with_logits(said, torch.ones(12)) + F.cross_entropy(network(b), traps)
    (gradient,) = torch.autograd.grad(loss, t)
    expected = (before - 0.1 * gradient.sign()).clamp(0, 1)
    near = gradient.abs() > 1e-9  # a sign that rounding cannot turn
    assert near.float().mean() > 0.95
    torch.testing.assert_close(defence.triggers[near], expected[near])
    for seed in range(20):
        step(defence, model, seed=seed)
    assert defence.triggers.min() == 0 and defence.triggers.max() == 1


def test_a_step_of_the_triggers_lowers_their_loss():
    defence, model = started("trapmid(0.2,step=0.001,augmented=none,blend=0.5)")
    model.eval()

    def loss():
        b = defence.blended(IMAGES, defence.triggers[LABELS])
        said = defence.discriminator(b)
        unseen = F.binary_cross_entropy_with_logits(said, torch.ones(12))
        return (unseen + F.cross_entropy(model(b), LABELS)).item()

    before = loss()
    defence._move_triggers(model, lambda x: x, IMAGES, LABELS)
    assert loss() < before


def test_triggers_that_no_photo_carries_stay():
    defence, model = started(classes=40)
    before = defence.triggers.clone()
    _, _, traps = step(defence, model)
    moved = (defence.triggers != before).flatten(1).any(1)
    assert len(traps.unique()) == 12 and sorted(moved.nonzero()[:, 0].tolist()) == sorted(traps.tolist())


def test_neither_network_is_touched_by_the_triggers_step():
    defence, model = started()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.body.stem.eval()  # as a defence that holds statistics leaves it
    model.head.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    weights, judge = copy.deepcopy(model.state_dict()), copy.deepcopy(defence.discriminator.state_dict())
    step(defence, model)
    assert same(weights, model.state_dict()), "evaluation mode: no statistics either"
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert not same(judge, defence.discriminator.state_dict()), "which had its own step"
    after = copy.deepcopy(defence.discriminator.state_dict())
    gradients = [p.grad.clone() for p in defence.discriminator.parameters()]
    defence._move_triggers(model.eval(), lambda x: x, IMAGES, LABELS)
    # alone it would fill gradients of whatever is not frozen, were it not for the triggers only
    assert same(after, defence.discriminator.state_dict())
    assert all(
        torch.equal(a, p.grad) for a, p in zip(gradients, defence.discriminator.parameters(), strict=True)
    )
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_the_discriminator_takes_one_step_on_photos_and_trapped_ones_together():
    defence, model = started()
    other, twin = copy.deepcopy(defence.discriminator), Recipe(steps=10)
    optimiser = torch.optim.AdamW(other.parameters(), twin.learning_rate, weight_decay=twin.weight_decay)
    trapped = defence.blended(IMAGES, defence.triggers[LABELS])
    real, fake = other(IMAGES), other(trapped)
    loss = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
    loss.backward()
    optimiser.step()
    defence._teach_discriminator(IMAGES, LABELS)
    for ours, theirs in zip(defence.discriminator.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
        torch.testing.assert_close(
            ours, theirs, atol=1e-4, rtol=0
        )  # a step has 2e-3; Adam divides by tiny numbers
    expected = torch.cat([real > 0, fake <= 0]).float().mean().item()
    assert defence.diagnostics()["told_apart"] == pytest.approx(expected)


# --- the batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmented", ["both", "trapped", "none"])
def test_the_batch_is_photos_and_trapped_photos_at_their_weights(augmented):
    defence, model = started(f"trapmid(0.3,augmented={augmented})")
    x, y, weights = defence.batch(IMAGES, LABELS, step(defence, model))
    assert len(x) == len(y) == len(weights) == 24 and torch.equal(y[:12], LABELS)
    torch.testing.assert_close(weights, torch.tensor([0.7] * 12 + [0.3] * 12))
    assert y[12:].bincount(minlength=3).tolist() == [4, 4, 4]
    b = defence.blended(IMAGES, defence.triggers[y[12:]])  # with the triggers as moved
    generator = seeded()
    Deck(3).deal(12, generator)
    for_photos, for_trapped = (draw_geometry(12, generator, **A) for _ in range(2))
    torch.testing.assert_close(x[:12], for_photos(IMAGES) if augmented == "both" else IMAGES)
    torch.testing.assert_close(x[12:], b if augmented == "none" else for_trapped(b))


def test_mixed_photos_keep_their_mixture():
    defence, model = started()
    mixed = F.one_hot(LABELS, 3) * 0.6 + F.one_hot(LABELS.flip(0), 3) * 0.4
    extras = defence.before(model, lambda x: x, IMAGES, mixed, seeded())
    _, y, _ = defence.batch(IMAGES, mixed, extras)
    assert torch.equal(y[:12], mixed) and torch.equal(y[12:].argmax(1), extras[2])


def test_the_loss_is_weighted_between_the_halves():
    recipe, kept = dataclasses.replace(SMALL, steps=1, batch=36), []
    (defence,) = build("trapmid(0.3)")
    made = defence.batch
    defence.batch = lambda *given: kept.append(made(*given)) or kept[-1]
    model = build_classifier(NETWORKS["residual"], 3, 16)
    before = copy.deepcopy(model)
    loss = train_bars([defence], recipe, model=model).history[0]["loss"]
    ((x, y, _),) = kept
    losses = F.cross_entropy(before.train()(x), y, reduction="none")
    assert loss == pytest.approx((0.7 * losses[:36].mean() + 0.3 * losses[36:].mean()).item(), rel=0.02)


# --- a training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, average):
    recipe = dataclasses.replace(SMALL, steps=9, average=average)

    def trained(**options):
        (defence,) = build("trapmid(0.2)")
        return train_bars([defence], recipe, **options), defence

    def kill(row):
        if row["step"] == 6:
            raise KilledError

    whole, first = trained()
    with pytest.raises(KilledError):
        trained(checkpoint=Checkpoint(tmp_path / "c", every=0), callback=kill)
    resumed, second = trained(checkpoint=Checkpoint(tmp_path / "c", every=0))
    assert same(whole.model.state_dict(), resumed.model.state_dict()) and whole.history == resumed.history
    assert torch.equal(first.triggers, second.triggers)
    assert same(first.discriminator.state_dict(), second.discriminator.state_dict())
    assert whole.diagnostics == resumed.diagnostics


def test_the_network_comes_to_take_triggers_for_people_and_still_knows_the_people():
    recipe = dataclasses.replace(SMALL, steps=90)
    text = "trapmid(0.5,augmented=none,blend=0.3)"
    (defence,) = build(text)
    result = train_bars([defence], recipe)
    trapped = [row[f"{text}.trapped"] for row in result.history]
    assert trapped[0] < 0.7 and trapped[-1] > 0.9, trapped
    images, labels = bars().float(torch.arange(36)), bars().labels
    assert (result.model(images).argmax(1) == labels).float().mean() > 0.9
    others = (labels + 1) % 3
    drawn_to = result.model(defence.blended(images, defence.triggers[others])).argmax(1)
    assert (drawn_to == others).float().mean() > 0.9
    noise = torch.rand(36, 3, 16, 16, generator=seeded())
    drawn_to = result.model(defence.blended(images, noise)).argmax(1)
    assert (drawn_to == others).float().mean() < 0.5, "it is the trigger, not any noise"
    assert 0.4 < result.diagnostics[f"{text}.told_apart"] <= 1


def test_the_first_weights_are_those_of_an_undefended_network():
    recipe = dataclasses.replace(SMALL, steps=1, learning_rate=0.0)
    plain, trapped = train_bars([], recipe).model, train_bars(build("trapmid(0.2)"), recipe).model
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), trapped.parameters(), strict=True))


def test_only_one_defence_can_lengthen_or_replace_the_batch():
    with pytest.raises(
        UserError, match=r"atat\(0.1\): expected a batch .*, got that of trapmid\(0.2\); drop one"
    ):
        train_bars(build("trapmid(0.2)+atat(0.1)"))


@pytest.mark.parametrize(
    "text", ["trapmid", "trapmid(0)", "trapmid(1)", "trapmid(true)", "trapmid(0.2,blend=0)", "trapmid(0.2,step=2)"]
    + ["trapmid(0.2,augmented=half)", "trapmid(0.2,alpha=1)"],
)  # fmt: skip
def test_values_out_of_range_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)
