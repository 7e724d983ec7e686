"""PGD in closed form: how far it goes, where it starts, what it leaves alone."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CLASSES, NETWORKS, SIZE, ToyPrior, ToyTarget, same

from lib.defences import build
from lib.defences._pgd import ball, held_statistics, perturbed
from lib.models import build_classifier

COUNT = 12
IMAGES = torch.rand(COUNT, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % CLASSES


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Two classes told apart by one fixed direction."""

    num_classes = 2

    def __init__(self, size=SIZE):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(3, size, size, generator=seeded(1)))
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        return torch.stack([torch.zeros(len(images)), (images * self.direction).sum((1, 2, 3))], 1)


@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_network_it_goes_to_the_corner_of_the_ball(targeted):
    model, labels = Linear(), torch.zeros(COUNT, dtype=torch.int64)
    moved = perturbed(
        model, IMAGES, labels, eps=0.03, step=0.01, steps=6, targeted=targeted, generator=seeded()
    )
    towards = (
        -model.direction.sign() if targeted else model.direction.sign()
    )  # class 0 falls with the direction
    torch.testing.assert_close(moved, (IMAGES + 0.03 * towards).clamp(0, 1), atol=2e-7, rtol=0)
    assert model.passes == 6


def test_one_step_from_the_photo_is_fgsm():
    model = ToyTarget(ToyPrior()).eval()
    x = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), LABELS), x)
    moved = perturbed(model, IMAGES, LABELS, eps=0.05, step=0.05, steps=1)
    torch.testing.assert_close(moved, (IMAGES + 0.05 * gradient.sign()).clamp(0, 1), atol=2e-7, rtol=0)
    assert torch.equal(perturbed(model, IMAGES, LABELS, eps=0.0, step=0.1, steps=3), IMAGES)


@pytest.mark.parametrize("eps", [1e-6, 2.5e-4, 1 / 255, 0.1, 1.0])
def test_no_pixel_leaves_the_ball_or_the_range_not_even_by_a_rounding(eps):
    values = torch.cat(
        [torch.tensor([0.0, 1.0, 1e-8, eps, 1 - 1e-7]), torch.rand(100_000 - 5, generator=seeded())]
    )
    low, high = ball(values, eps)
    for bound in (low, high):
        assert bound.min() >= 0 and bound.max() <= 1
        assert (bound - values).abs().max().item() <= eps and (
            bound.double() - values.double()
        ).abs().max() <= eps
    assert (high - low).max().item() > (1.8 if eps < 0.5 else 0.9) * eps
    images = values[:96_000].reshape(-1, 3, SIZE, SIZE)
    labels = torch.zeros(len(images), dtype=torch.int64)
    moved = perturbed(Linear(), images, labels, eps=eps, step=eps / 5, steps=5, generator=seeded())
    assert (moved - images).abs().max().item() <= eps
    assert moved.min() >= 0 and moved.max() <= 1 and moved.dtype == torch.float32


def test_the_start_is_uniform_in_the_ball_and_drawn_from_the_generator():
    grey = torch.full((400, 3, SIZE, SIZE), 0.5)
    labels = torch.zeros(400, dtype=torch.int64)
    options = {"eps": 0.2, "step": 0.1, "steps": 0}
    before = torch.get_rng_state()
    start = perturbed(Linear(), grey, labels, generator=seeded(), **options) - 0.5
    assert start.abs().max() <= 0.2 and abs(start.mean().item()) < 2e-3
    assert start.std().item() == pytest.approx(0.4 / math.sqrt(12), rel=0.01)
    assert torch.equal(start, perturbed(Linear(), grey, labels, generator=seeded(), **options) - 0.5)
    assert not torch.equal(start, perturbed(Linear(), grey, labels, generator=seeded(1), **options) - 0.5)
    assert torch.equal(perturbed(Linear(), grey, labels, **options), grey)
    assert torch.equal(before, torch.get_rng_state())


def test_the_network_is_left_as_it_was():
    model = ToyTarget(ToyPrior()).eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        moved = perturbed(model, IMAGES, LABELS, eps=0.1, step=0.05, steps=3)
    assert not moved.requires_grad and same(before, model.state_dict()) and not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_it_is_crafted_in_fp32_inside_autocast():
    model = ToyTarget(ToyPrior()).eval()
    options = {"eps": 2.5e-4, "step": 5e-5, "steps": 5, "targeted": True}
    plain = perturbed(model, IMAGES, LABELS, generator=seeded(), **options)
    with torch.autocast("cpu", torch.bfloat16):
        inside = perturbed(model, IMAGES, LABELS, generator=seeded(), **options)
    assert torch.equal(plain, inside) and not torch.equal(inside, IMAGES)
    assert not torch.equal(inside.bfloat16().float(), inside), "bf16 could not hold it"


def test_targets_are_reached_from_where_noise_of_the_same_size_does_not_get():
    model = ToyTarget(ToyPrior()).eval()
    targets = (LABELS + 1) % CLASSES
    eps, said = 0.1, []
    noise = perturbed(model, IMAGES, targets, eps=eps, step=0, steps=0, generator=seeded())
    moved = perturbed(
        model,
        IMAGES,
        targets,
        eps=eps,
        step=eps / 5,
        steps=10,
        targeted=True,
        generator=seeded(),
        seen=said.append,
    )
    away = perturbed(model, IMAGES, targets, eps=eps, step=eps / 5, steps=10, generator=seeded())

    def probability(images):
        return model(images).softmax(1).gather(1, targets[:, None])[:, 0].detach()

    assert (probability(moved) > probability(noise) + 0.1).all()
    assert (probability(away) < probability(noise)).all()
    chosen = [logits.softmax(1).gather(1, targets[:, None]).mean().item() for logits in said]
    assert len(said) == 10 and chosen[0] == pytest.approx(probability(noise).mean().item(), rel=1e-5)
    assert chosen == sorted(chosen), "and closer with every pass"


@pytest.mark.parametrize("labels", [LABELS, F.one_hot(LABELS, CLASSES).float()])
def test_labels_may_be_numbers_or_probabilities(labels):
    model = ToyTarget(ToyPrior()).eval()
    expected = perturbed(model, IMAGES, LABELS, eps=0.1, step=0.05, steps=3)
    torch.testing.assert_close(perturbed(model, IMAGES, labels, eps=0.1, step=0.05, steps=3), expected)


def test_where_the_view_hides_the_photo_only_the_random_start_remains():
    (erasing,) = build("re(0.3,0.3,value=black)")
    view = erasing.input(IMAGES, torch.arange(COUNT), seeded())
    inside = view.mask[:, None].expand_as(IMAGES)
    options = {"eps": 0.1, "step": 0.02, "view": view}
    start = perturbed(Linear(), IMAGES, LABELS % 2, steps=0, generator=seeded(), **options)
    moved = perturbed(Linear(), IMAGES, LABELS % 2, steps=5, generator=seeded(), **options)
    assert torch.equal(moved[inside], start[inside])
    assert (moved != start)[~inside].float().mean() > 0.9 and not view(moved)[inside].any()
    untouched = perturbed(Linear(), IMAGES, LABELS % 2, steps=5, **options)
    assert torch.equal(untouched[inside], IMAGES[inside])


def test_held_statistics_are_used_and_not_collected():
    model = build_classifier(NETWORKS["residual"], 3, 16).train()
    model.body.stages[0].eval()
    images, before = torch.rand(6, 3, 16, 16, generator=seeded()), copy.deepcopy(model.state_dict())
    with held_statistics(model):
        held = model(images)
    assert same(before, model.state_dict())
    assert torch.equal(held, model(images)) and not same(before, model.state_dict())
    after = model.state_dict()
    collected = {name for name in before if not torch.equal(before[name], after[name])}
    assert collected and not [name for name in collected if name.startswith("body.stages.0.")]
