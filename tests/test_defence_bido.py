"""BiDO: its measures in closed form and at full precision, balanced batches, taps, and that it does what it weighs."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from toys import NETWORKS, SMALL, assert_resumes, bars, train_bars

from lib.defences import build
from lib.defences._dependence import (
    centred,
    coco,
    gaussian_kernel,
    hsic,
    label_kernel,
    normalised,
)
from lib.errors import UserError
from lib.models import build_classifier, stages_of
from lib.runtime import full_precision
from lib.training import Defence, Recipe

BALANCED = "identities=3,photos=4"
EPS = 1e-5
MEASURES = ["bido_hsic", "bido_coco"]


def vectors(count=24, size=40, seed=0, dtype=torch.float64):
    """Faces, as far as a kernel can tell: nearly alike."""
    stream = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, size, generator=stream, dtype=torch.float64)
    return (shared + 0.7 * torch.randn(count, size, generator=stream, dtype=torch.float64)).to(dtype)


# --- the measures -------------------------------------------------------------------------------------------


def test_the_gaussian_kernel_is_its_definition():
    u = vectors()
    expected = torch.exp(-torch.cdist(u, u).square() / (2 * 5**2 * 40))
    torch.testing.assert_close(gaussian_kernel(u), expected)
    torch.testing.assert_close(gaussian_kernel(u.view(24, 2, 4, 5)), expected)
    torch.testing.assert_close(gaussian_kernel(u, 2.0), expected ** (25 / 4))
    assert expected[~torch.eye(24, dtype=bool)].min() > 0.96, "where centring takes away almost everything"


def test_the_gradient_of_the_gaussian_kernel_is_that_of_its_definition():
    u = vectors().view(24, 2, 4, 5)
    weights = torch.randn(24, 24, generator=torch.Generator().manual_seed(3), dtype=u.dtype)  # not symmetric
    found, expected = (x.clone().requires_grad_() for x in (u, u))
    (weights * gaussian_kernel(found.contiguous(memory_format=torch.channels_last))).sum().backward()
    gaps = expected.flatten(1)[:, None] - expected.flatten(1)
    (weights * torch.exp(-gaps.square().sum(2) / (2 * 5**2 * 40))).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_centring_is_multiplication_with_h_on_both_sides():
    k = gaussian_kernel(vectors())
    h = torch.eye(24, dtype=k.dtype) - 1 / 24
    torch.testing.assert_close(centred(k), h @ k @ h)


def one_sided(first, second, epsilon=EPS):
    """The reference's form: R = K H (K H + eps m I)^-1."""
    m = len(first)
    eye = torch.eye(m, dtype=first.dtype)
    r = [
        (k @ (eye - 1 / m)) @ torch.linalg.inv(k @ (eye - 1 / m) + epsilon * m * eye) for k in (first, second)
    ]
    return torch.trace(r[0] @ r[1])


@pytest.mark.parametrize("second", ["photos", "labels"])
def test_the_symmetric_form_is_the_one_sided_one(second):
    x = vectors()
    other = (
        label_kernel(torch.arange(24) % 6).double() if second == "labels" else gaussian_kernel(x[:, :9] ** 2)
    )
    expected = one_sided(gaussian_kernel(x), other)
    assert 1 < expected < 23
    torch.testing.assert_close(
        hsic(normalised(gaussian_kernel(x), EPS), normalised(other, EPS)), expected, rtol=1e-9, atol=0
    )
    single = hsic(normalised(gaussian_kernel(x.float()), EPS), normalised(other.float(), EPS))
    assert single.item() == pytest.approx(expected.item(), rel=3e-3), "fp32 is enough"


def test_a_normalised_kernel_is_symmetric_with_eigenvalues_from_nothing_to_one():
    r = normalised(gaussian_kernel(vectors()), EPS)
    torch.testing.assert_close(r, r.T)
    eigenvalues = torch.linalg.eigvalsh(r)
    assert eigenvalues.min() > -1e-9 and eigenvalues.max() < 1


@pytest.mark.parametrize("people", [1, 2, 6, 24])
def test_dependence_on_labels_is_at_most_the_number_of_people_less_one(people):
    labels = torch.arange(24) % people
    features = F.one_hot(labels, people).double() * 20 + 0.1 * vectors(size=people)
    found = hsic(
        normalised(gaussian_kernel(features), EPS), normalised(label_kernel(labels).double(), EPS)
    ).item()
    assert found <= people - 1 + 1e-9
    assert found >= 0.9 * (people - 1), "features that tell people apart come near it"


def test_coco_is_its_definition_and_has_a_gradient_where_nothing_depends():
    k, y = gaussian_kernel(vectors()), label_kernel(torch.arange(24) % 6).double()
    h = torch.eye(24, dtype=k.dtype) - 1 / 24
    expected = torch.linalg.norm(h @ k @ h @ h @ y @ h).sqrt() / 24
    torch.testing.assert_close(coco(centred(k), centred(y)), expected, rtol=1e-6, atol=0)
    still = torch.ones(8, 5).requires_grad_()
    found = coco(centred(gaussian_kernel(still)), centred(label_kernel(torch.arange(8) % 2)))
    assert found.item() == pytest.approx(1e-6 / 8) and torch.autograd.grad(found, still)[0].isfinite().all()


def test_label_kernels_are_one_hot_products_and_take_mixed_labels():
    labels = torch.tensor([0, 2, 2, 1])
    y = F.one_hot(labels, 3).float()
    assert torch.equal(label_kernel(labels), y @ y.T) and torch.equal(label_kernel(y), y @ y.T)


@pytest.mark.parametrize("name", MEASURES)
def test_autocast_and_coarse_products_do_not_reach_the_kernels(name):
    (defence,) = build(f"{name}(0.05,0.5)")
    images, labels = vectors(size=48, dtype=torch.float32).view(24, 3, 4, 4), torch.arange(24) % 6
    taps = [vectors(seed=1, dtype=torch.float32).requires_grad_()]
    expected = defence.penalty(images, labels, taps)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = defence.penalty(images, labels, taps)
            coarse = (taps[0] @ taps[0].T).dtype
        assert torch.get_float32_matmul_precision() == "medium", "given back"
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert coarse == torch.bfloat16 and torch.equal(found, expected) and found.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "compared", "measure"),
    [("bido_hsic", partial(normalised, epsilon=EPS), hsic), ("bido_coco", centred, coco)],
)
def test_the_penalty_is_the_weighted_sum_over_taps(name, compared, measure):
    (defence,) = build(f"{name}(0.3,2)")
    images, labels = vectors(size=48).float().view(24, 3, 4, 4), torch.arange(24) % 6
    taps = [vectors(seed=seed).float().requires_grad_() for seed in (1, 2)]
    x, y = compared(gaussian_kernel(images)), compared(label_kernel(labels))
    z = [compared(gaussian_kernel(tap)) for tap in taps]
    to_image, to_label = [measure(x, k) for k in z], [measure(k, y) for k in z]
    frozen = vectors(seed=3).float()
    torch.testing.assert_close(
        defence.penalty(images, labels, [taps[0], frozen, taps[1]]), 0.3 * sum(to_image) - 2 * sum(to_label)
    )
    x_z, z_y = sum(to_image).item() / 2, sum(to_label).item() / 2
    assert defence.diagnostics() == pytest.approx({"x_z": x_z, "z_y": z_y, "penalty": 0.3 * x_z - 2 * z_y})


def test_it_acted_if_the_penalty_fell_and_the_features_did_not_collapse():
    (defence,) = build("bido_hsic(0.05,0.5)")
    first = {"x_z": 30.0, "z_y": 3.8, "penalty": -0.4}
    for last, acted in (
        ({"x_z": 20.0, "z_y": 3.9, "penalty": -0.95}, True),
        ({"x_z": 5.0, "z_y": 0.2, "penalty": 0.15}, False),  # nothing depends on anything
        ({"x_z": 1.0, "z_y": 1.0, "penalty": -0.45}, False),
        ({"x_z": 33.0, "z_y": 3.9, "penalty": -0.3}, False),
    ):
        assert defence.acted([first, last]) is acted, last
    without = [{"x_z": 30.0, "z_y": 3.8}, {"x_z": 20.0, "z_y": 3.9}]
    assert defence.acted(without), "a record of before the penalty was kept"


# --- balanced batches ---------------------------------------------------------------------------------------


class Watch(Defence):
    def __init__(self):
        self.labels = []

    def penalty(self, images, labels, taps):
        self.labels.append(labels.tolist())
        return 0.0


def test_the_recipe_and_bido_ask_for_balanced_batches():
    recipes = [dataclasses.replace(SMALL, identities=2), SMALL, SMALL]
    texts = ["none", "bido_hsic(0.05,0.5,identities=2,photos=6)", "bido_hsic(0.05,0.5,identities=0)"]
    seen = []
    for text, recipe in zip(texts, recipes, strict=True):
        watch = Watch()
        train_bars([*build(text), watch], recipe)
        seen.append(watch.labels)
    assert seen[0] == seen[1] and [len(set(labels)) for labels in seen[0]] == [2] * 4
    assert all(sorted(labels.count(k) for k in set(labels)) == [6, 6] for labels in seen[0])
    assert seen[2] != seen[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bido_hsic(0.05,0.5)", "expected photos for balanced batches of 64 .16 people., got 36 photos"),
        ("bido_hsic(0.05,0.5,identities=4,photos=3)", "expected photos of at least 4 people, got 3"),
        (
            "bido_coco(1,50,identities=0)",
            r"bido_coco\(1,50,identities=0\): expected batches of at least 8 photos, got 6",
        ),
        ("bido_hsic(0.05,0.5,identities=3,layers=nowhere)", "expected layers of the network .*got 'nowhere'"),
    ],
)
def test_what_the_data_or_the_network_cannot_give_is_refused_before_training(text, message):
    with pytest.raises(UserError, match=message):
        train_bars(
            build(text), dataclasses.replace(SMALL, batch=6), callback=lambda row: pytest.fail("trained")
        )


def test_two_of_them_must_agree_on_the_batches():
    train_bars(
        build("bido_hsic(0.05,0.5,identities=3,photos=4)+bido_coco(1,50,identities=3,photos=4)"), SMALL
    )
    with pytest.raises(UserError, match="expected the batches of 12 photos of 3 people .* got 2 people of 6"):
        train_bars(
            build("bido_hsic(0.05,0.5,identities=3,photos=4)+bido_coco(1,50,identities=2,photos=6)"), SMALL
        )


def test_no_layers_would_be_no_defence():
    with pytest.raises(UserError, match="expected names of layers or stages, got none"):
        build("bido_hsic(0.05,0.5)", {"bido_hsic": {"layers": []}})


@pytest.mark.parametrize(
    "options",
    [
        "",
        "0.05",
        "-0.1,0.5",
        "0.05,-0.5",
        "0.05,true",
        "0.05,0.5,identities=1",
        "0.05,0.5,identities=2,photos=3",
    ]
    + ["0.05,0.5,photos=0", "0.05,0.5,sigma=0", "0.05,0.5,identities=2.5"],
)
@pytest.mark.parametrize("name", MEASURES)
def test_values_out_of_range_are_one_clear_error(name, options):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(f"{name}({options})")


# --- taps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "ir", "densenet"])
def test_taps_are_the_outputs_of_the_stages_and_the_penultimate_features(name):
    model = build_classifier(NETWORKS[name], 3, 16)
    taps = build("bido_hsic(0.05,0.5)")[0].taps(model)
    assert taps == [*(stage[-1] for stage in stages_of(model).stages), model.body]


def test_layers_are_taken_by_name():
    model = build_classifier(NETWORKS["residual"], 3, 16)
    (defence,) = build("bido_hsic(0.05,0.5)", {"bido_hsic": {"layers": ["body.stages.1", "body"]}})
    assert defence.taps(model) == [model.body.stages[1], model.body]
    assert build("bido_hsic(0.05,0.5,layers=head)")[0].taps(model) == [model.head]


def test_the_photo_is_what_the_network_sees():
    model = build_classifier(NETWORKS["residual"], 3, 4)
    (defence,) = build("bido_coco(1,0)")
    images, labels = vectors(size=48).float().view(24, 3, 4, 4), torch.arange(24) % 6
    tap = vectors(seed=1).float().requires_grad_()
    defence.taps(model)
    normalised_images = (images - model.mean) / model.std
    expected = coco(centred(gaussian_kernel(normalised_images)), centred(gaussian_kernel(tap)))
    torch.testing.assert_close(defence.penalty(images, labels, [tap]), expected)


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "lx", "ly"), [("bido_hsic", 1, 2), ("bido_coco", 20, 50)])
def test_each_weight_moves_its_dependence_its_way(name, lx, ly):
    def trained(lx, ly):
        text = f"{name}({lx},{ly},{BALANCED})"
        found = train_bars(build(text), dataclasses.replace(SMALL, steps=24)).diagnostics
        return [found[f"{build(text)[0].name}.{key}"] for key in ("x_z", "z_y")]

    plain, apart, together = trained(0, 0), trained(0, ly), trained(lx, 0)
    assert all(math.isfinite(value) and value > 0 for value in plain)
    assert together[0] < plain[0]
    bound = (
        2 if name == "bido_hsic" else math.inf
    )  # people in a batch less one: there nothing is left to move
    assert apart[1] > plain[1] or min(apart[1], plain[1]) > 0.99 * bound


@pytest.mark.parametrize("name", MEASURES)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, name):
    text = f"{name}(0.05,0.5,{BALANCED})"
    recipe = dataclasses.replace(SMALL, steps=9)
    assert_resumes(lambda: build(text), recipe, tmp_path)


def test_a_trained_network_keeps_no_hook():
    result = train_bars(build(f"bido_hsic(0.05,0.5,{BALANCED})"))
    assert not any(module._forward_hooks for module in result.model.modules())


def test_plan_leaves_the_rest_of_the_recipe():
    recipe = Recipe(steps=10, batch=32, learning_rate=0.5)
    planned = build("bido_hsic(0.05,0.5)")[0].plan(recipe)
    assert planned == dataclasses.replace(recipe, batch=64, identities=16)
    assert bars().labels.unique().tolist() == [0, 1, 2]
