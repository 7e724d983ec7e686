"""DP-SGD: gradients clipped photo by photo, noise of the size it says, accounts that add up; group norms alone."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import NETWORKS, SMALL, assert_resumes, bars, train_bars

from lib.defences import build, restore
from lib.defences._groups import group_count, with_groups
from lib.defences._pgd import perturbed
from lib.defences._private import noise_for, spent
from lib.errors import UserError
from lib.models import build_classifier

IMAGES, LABELS = bars().float(torch.arange(0, 36, 3)), bars().labels[::3]
RECIPE = dataclasses.replace(SMALL, steps=30)
DELTA = 1e-5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(name="residual"):
    torch.manual_seed(0)
    return build_classifier(NETWORKS[name], 3, 16)


def started(text="dpsgd(8)", name="residual", recipe=RECIPE):
    """The defence, a network in training mode and plain SGD of rate 1 behind the defence."""
    (defence,) = build(text)
    model = defence.build(network(name)).train()
    plain = copy.deepcopy(model)
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    optimiser = defence.optimise(sgd, model, defences=[defence], photos=36, recipe=recipe)
    defence.before(model, None, IMAGES, LABELS, seeded())
    return defence, model, optimiser, plain


def step(model, optimiser, scale=1.0):
    """The gradients that one step leaves."""
    optimiser.zero_grad()
    (F.cross_entropy(model(IMAGES).float(), LABELS) * scale).backward()
    optimiser.step()
    return [parameter.grad for parameter in model.parameters()]


# --- networks without batch norms ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "count"), [(4, 1), (8, 2), (24, 6), (48, 12), (96, 24), (192, 32), (7, 1)]
)
def test_groups_are_equal_and_of_four_channels_at_least(channels, count):
    assert group_count(channels, 32) == count and group_count(channels, 1) == 1


@pytest.mark.parametrize("name", ["residual", "ir", "densenet", "resnet"])
def test_every_photo_is_normalised_by_itself(name):
    model = with_groups(network(name), 32).train()
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    together, alone = model(IMAGES), torch.cat([model(image[None]) for image in IMAGES])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert (together.std(0) > 1e-4).all(), "and still says something about it"


def test_the_control_trains_and_is_rebuilt():
    result = train_bars(build("groupnorm"), dataclasses.replace(SMALL, steps=60))
    assert result.diagnostics == {
        "groupnorm.replaced": sum(isinstance(m, nn.GroupNorm) for m in result.model.modules())
    }
    assert result.diagnostics["groupnorm.replaced"] > 0
    images, labels = bars().float(torch.arange(36)), bars().labels
    assert (result.model(images).argmax(1) == labels).float().mean() > 0.9
    meta = {"spec": result.model.spec, "num_classes": 3, "image_size": 16, "defence": "groupnorm"}
    torch.testing.assert_close(restore(result.model.state_dict(), meta)(IMAGES), result.model(IMAGES))
    (private,) = build("dpsgd(8)")
    assert private.build(network()).state_dict().keys() == result.model.state_dict().keys(), (
        "the same network"
    )


# --- a step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "ir"])
@pytest.mark.parametrize("clip", [0.05, 1.0, 1000])
def test_the_gradient_is_the_mean_of_each_photos_own_clipped_to_its_norm(name, clip):
    defence, model, optimiser, plain = started(f"dpsgd(8,clip={clip})", name)
    optimiser.noise_multiplier = 0.0
    found = step(model, optimiser)
    expected, norms = [torch.zeros_like(p) for p in plain.parameters()], []
    for image, label in zip(IMAGES, LABELS, strict=True):
        loss = F.cross_entropy(plain(image[None]), label[None])
        own = torch.autograd.grad(loss, list(plain.parameters()))
        norms.append(torch.stack([g.norm() for g in own]).norm().item())
        for total, gradient in zip(expected, own, strict=True):
            total += gradient * min(1.0, clip / norms[-1]) / 12
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-3)
    assert torch.stack([g.norm() for g in found]).norm().item() <= clip * 1.001
    defence.phase(1, 2)
    step(model, optimiser)
    assert clip != 1000 or defence.diagnostics()["clipped"] == 0
    assert clip != 0.05 or defence.diagnostics()["clipped"] == 1


def test_the_noise_has_its_size_and_comes_from_the_stream():
    def noise(seed):
        defence, model, optimiser, _ = started("dpsgd(8,clip=3)")
        defence.before(model, None, IMAGES, LABELS, seeded(seed))
        before = torch.get_rng_state()
        gradients = torch.cat([g.flatten() for g in step(model, optimiser, scale=0.0)])
        assert torch.equal(before, torch.get_rng_state())
        return gradients, defence.diagnostics()["noise"]

    first, multiplier = noise(0)
    assert multiplier > 0.5 and first.std().item() == pytest.approx(multiplier * 3 / 12, rel=0.05)
    assert abs(first.mean().item()) < 4 * first.std().item() / math.sqrt(len(first))
    assert torch.equal(first, noise(0)[0]) and not torch.equal(first, noise(1)[0])


def test_clipping_is_in_fp32_inside_autocast():
    _, model, optimiser, _ = started("dpsgd(8,clip=0.05)")
    optimiser.noise_multiplier = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(IMAGES).float(), LABELS)
    loss.backward()
    optimiser.step()
    assert all(p.grad_sample.dtype == torch.float32 for p in model.parameters())
    each = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in model.parameters()]).norm(dim=0)
    expected = [torch.einsum("i,i...", 0.05 / each, p.grad_sample) / 12 for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


# --- the accounts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (5.0, 10), (20.0, 400)])
def test_full_batches_spend_what_the_gaussian_mechanism_does(noise, steps):
    """Rényi DP of order a is a T / (2 noise^2); the classical conversion gives a bound a little above ours."""
    rho = steps / (2 * noise**2)
    classical = rho + 2 * math.sqrt(rho * math.log(1 / DELTA))
    assert 0.75 * classical < spent(noise, rate=1.0, steps=steps, delta=DELTA) < classical


def test_drawing_saves_budget_and_steps_and_silence_cost_it():
    def cost(**given):
        return spent(given.pop("noise", 1.0), **{"rate": 0.05, "steps": 100, "delta": DELTA, **given})

    assert cost(steps=0) == 0
    assert cost(steps=10) < cost() < cost(steps=1000) and cost(noise=2.0) < cost() < cost(rate=0.5)
    for epsilon in (1.0, 8.0, 50.0):
        noise = noise_for(epsilon, rate=0.05, steps=100, delta=DELTA, name="dpsgd")
        assert 0.98 * epsilon < cost(noise=noise) <= epsilon


def test_a_run_spends_its_budget_and_no_more():
    (defence,) = build("dpsgd(8)")
    result = train_bars([defence], RECIPE)
    key = f"{defence.name}.epsilon"
    costs = [row[key] for row in result.history]
    assert costs == sorted(costs) and 0.98 * 8 < costs[-1] <= 8 and costs[0] < 5
    found = defence.diagnostics()
    assert found["epsilon_shuffled"] == spent(found["noise"], rate=1.0, steps=10, delta=DELTA) > 8
    assert 0 <= found["clipped"] <= 1


# --- a training ---------------------------------------------------------------------------------------------


def test_little_noise_learns_and_much_noise_does_not():
    recipe = dataclasses.replace(SMALL, steps=120)
    images, labels = bars().float(torch.arange(36)), bars().labels
    right = []
    for text in ("dpsgd(1000000,clip=10)", "dpsgd(0.5,clip=10)"):
        model = train_bars(build(text), recipe).model
        right.append((model(images).argmax(1) == labels).float().mean().item())
    assert right[0] > 0.9 and right[1] < right[0] - 0.2, right


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_nothing_of_opacus_is_left_on_the_network(average):
    result = train_bars(build("dpsgd(8)"), dataclasses.replace(SMALL, average=average))
    model = result.model
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    moved = perturbed(model.train(), IMAGES, LABELS, eps=0.1, step=0.05, steps=2)
    assert not torch.equal(moved, IMAGES)
    meta = {"spec": model.spec, "num_classes": 3, "image_size": 16, "defence": "dpsgd(8)"}
    torch.testing.assert_close(restore(model.state_dict(), meta)(IMAGES), model.eval()(IMAGES))


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, average):
    recipe = dataclasses.replace(SMALL, steps=9, average=average)
    assert_resumes(lambda: build("dpsgd(8)"), recipe, tmp_path)


@pytest.mark.parametrize(
    "text", ["re(0.1,0.4)+dpsgd(8)", "dpsgd(8)+negls(-0.05)", "noise(0.1)+crop(0.5)+dpsgd(8)"]
)
def test_defences_of_single_photos_go_with_it(text):
    result = train_bars(build(text), dataclasses.replace(SMALL, steps=2))
    assert all(math.isfinite(value) for value in result.diagnostics.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpsgd(8)+mixup(1)", r"treat every photo by itself, got mixup\(1\); drop one"),
        ("dpsgd(8)+bido_hsic(0.05,0.5)", r"treat every photo by itself, got bido_hsic\(0.05,0.5\)"),
        ("re(0.1,0.4,value=image)+dpsgd(8)", r"treat every photo by itself, got re\(0.1,0.4,value=image\)"),
        ("dpsgd(8)+trapmid(0.2)", r"expected a batch that no other defence"),
        ("dpsgd(8,delta=0.1)", r"expected delta below 1 / photos = 0.028, got 0.1; lower delta"),
        (
            "dpsgd(0.001)",
            r"expected an epsilon that some noise can reach .*, got 0.001; raise epsilon or delta",
        ),
    ],
)
def test_what_would_break_the_guarantee_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        train_bars(build(text, {"bido_hsic": {"identities": 3, "photos": 4}}))


def test_balanced_batches_and_other_networks_are_refused():
    with pytest.raises(UserError, match="expected shuffled photos, got balanced batches of 3 people"):
        train_bars(build("dpsgd(8)"), dataclasses.replace(SMALL, identities=3))
    with pytest.raises(UserError, match="expected a network of kind residual or ir, .*, got DenseNet"):
        build("dpsgd(8)")[0].build(network("densenet"))


def test_a_loop_that_keeps_its_own_optimiser_is_a_defect():
    (defence,) = build("dpsgd(8)")
    with pytest.raises(TypeError, match="nothing would be private"):
        defence.before(None, None, IMAGES, LABELS, seeded())


@pytest.mark.parametrize(
    "text", ["dpsgd", "dpsgd(0)", "dpsgd(-1)", "dpsgd(8,clip=0)", "dpsgd(8,delta=1)", "dpsgd(8,groups=0)"]
    + ["groupnorm(8)", "groupnorm(groups=0)"],
)  # fmt: skip
def test_values_out_of_range_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)
