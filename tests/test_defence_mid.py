"""MID: the KL in closed form, the noise where and as long as it should be, and through the store."""

import copy
import dataclasses
import math

import pytest
import torch
import yaml
from conftest import TINY
from torch import nn
from torch.distributions import Normal, kl_divergence
from toys import NETWORKS, SMALL, assert_resumes, same, train_bars

from lib.attacks.access import Access
from lib.data import load_world
from lib.defences import build, restore
from lib.defences.mid import Bottleneck, divergence, gaussian
from lib.errors import UserError
from lib.models import build_classifier
from lib.runtime import frozen
from lib.setups import load_setup
from lib.stages import targets
from lib.training import predict

CPU = torch.device("cpu")
IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(text="mid(0.01)", name="residual"):
    torch.manual_seed(0)
    (defence,) = build(text)
    return defence.build(build_classifier(NETWORKS[name], 3, 16)).eval(), defence


# --- the bottleneck -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 256, 1024])
def test_the_divergence_begins_at_four_and_a_half_nats_a_dimension(k):
    found = divergence(torch.zeros(3, 2 * k))
    sigma = math.log1p(math.exp(-5))
    assert found == pytest.approx([0.5 * k * (sigma**2 - 1 - 2 * math.log(sigma))] * 3)
    assert found[0].item() == pytest.approx(4.503 * k, rel=1e-4)


def test_the_divergence_is_that_of_torch_and_its_gradient_too():
    statistics = (torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) * 3).requires_grad_()
    mu, sigma = gaussian(statistics)
    assert torch.equal(mu, statistics[:, :4]) and (sigma > 0).all()
    expected = kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(statistics), expected)
    grads = [
        torch.autograd.grad(v.sum(), statistics, retain_graph=True)[0]
        for v in (divergence(statistics), expected)
    ]
    torch.testing.assert_close(*grads)


def test_it_is_fp32_and_finite_where_sigma_vanishes():
    coarse = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert divergence(coarse).dtype == torch.float32
    assert torch.equal(divergence(coarse), divergence(coarse.float()))
    far = torch.full((1, 2), -1000.0).requires_grad_()
    found = divergence(far - torch.tensor([[-1000.0, 0.0]]))  # mu = 0
    assert found.item() == pytest.approx(0.5 * (-1 - 2 * math.log(1e-7)))
    assert torch.autograd.grad(found.sum(), far)[0].isfinite().all()


@pytest.mark.parametrize(("size", "k"), [(8, 4), (9, 4), (2, 1)])
def test_half_the_features_come_through(size, k):
    head = Bottleneck(size, 3, sampled=True)
    assert head.latent == k and head.statistics.out_features == 2 * k and head.classify.in_features == k


def test_z_is_drawn_from_the_gaussian_it_says():
    head = Bottleneck(8, 4, sampled=True)
    with torch.no_grad():
        head.classify.weight.copy_(torch.eye(4))
        head.classify.bias.zero_()
    features = torch.randn(1, 8)
    mu, sigma = (part.detach() for part in gaussian(head.statistics(features)))
    for mode in (True, False):
        z = head.train(mode)(features.expand(20000, -1)).detach()
        torch.testing.assert_close(z.mean(0), mu[0], atol=4 * sigma.max().item() / 141, rtol=0)
        torch.testing.assert_close(z.std(0), sigma[0], rtol=0.03, atol=0)


# --- inference ----------------------------------------------------------------------------------------------


def test_sampled_answers_differ_until_they_begin_anew():
    model, _ = network()
    first, second = model(IMAGES), model(IMAGES)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    for anew in (
        model.eval,
        model.restart,
        Access(model, None, fast=False).restart,
        lambda: frozen(model).__enter__(),
    ):
        anew()
        assert torch.equal(model(IMAGES), first) and torch.equal(model(IMAGES), second)
    assert torch.equal(torch.get_rng_state(), before), "the global stream is left alone"


def test_the_mean_is_what_sampled_answers_scatter_about():
    (noisy, _), (still, _) = network(), network("mid(0.01,inference=mean)")
    assert torch.equal(still(IMAGES), still(IMAGES)) and same(noisy.state_dict(), still.state_dict())
    with torch.no_grad():
        answers = torch.stack([noisy(IMAGES) for _ in range(150)])
    torch.testing.assert_close(
        answers.mean(0), still(IMAGES).detach(), atol=5 * answers.std(0).max().item() / 12, rtol=0
    )
    still.train()
    assert not torch.equal(still(IMAGES), still(IMAGES)), "training is always noisy"


def test_features_are_those_before_the_bottleneck():
    model, _ = network("mid(0.01,inference=mean)")
    features, logits = model.both(IMAGES)
    assert torch.equal(features, model.body((IMAGES - 0.5) / 0.5)) and torch.equal(
        model.head(features), logits
    )


# --- training -----------------------------------------------------------------------------------------------


def test_beta_raw_and_as_a_product_are_one_number():
    (_, raw), (_, product) = network("mid(0.5)"), network("mid(2,unit=product)")  # k = 4
    statistics = torch.randn(6, 8)
    assert raw.beta == product.beta == 0.5
    assert torch.equal(raw.penalty(None, None, [statistics]), 0.5 * divergence(statistics).mean())
    assert raw.diagnostics()["beta_k"] == product.diagnostics()["beta_k"] == 2


def test_the_penalty_presses_the_divergence_down_from_where_it_begins():
    recipe = dataclasses.replace(SMALL, steps=24)
    found = [
        train_bars(build(text), recipe).diagnostics[f"{text}.kl"] for text in ("mid(0)", "mid(0.1)", "mid(1)")
    ]
    assert found[0] > found[1] > found[2] > 0
    (defence,) = build("mid(0.1)")
    train_bars([defence], dataclasses.replace(SMALL, steps=1, learning_rate=1e-9))
    assert defence.diagnostics()["kl"] == pytest.approx(4.5 * 4, rel=0.2), "at initialisation"


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, average):
    recipe = dataclasses.replace(SMALL, steps=9, average=average)
    assert_resumes(lambda: build("mid(0.1)"), recipe, tmp_path)


@pytest.mark.parametrize("inference", ["sampled", "mean"])
def test_a_stored_network_answers_alike(tmp_path, monkeypatch, inference):
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    content = copy.deepcopy(TINY) | {"defences": {"mid": {"inference": inference}}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    setup = load_setup(tmp_path / "tiny.yaml")
    trained = targets.target(setup, "mid(0.1)", 0, 1)
    assert trained.meta["overrides"] == {"mid": {"inference": inference}}
    assert trained.model.head.sampled == (inference == "sampled") and not trained.model.training
    photos = load_world(setup).test
    answers = predict(trained.model, photos, device=CPU)[1]
    again = targets.target(setup, "mid(0.1)", 0, 1).model
    assert torch.equal(answers, predict(again, photos, device=CPU)[1])
    mean = {**trained.meta, "overrides": {"mid": {"inference": "mean"}}, "constants": None}
    copied = restore(trained.model.state_dict(), mean)
    assert torch.equal(answers, predict(copied, photos, device=CPU)[1]) == (inference == "mean")


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(
        UserError, match="expected a network with a linear head .*, got Cosine; drop `cosine`"
    ):
        build("mid(0.1)")[0].build(build_classifier({**NETWORKS["residual"], "cosine": 8.0}, 3, 16))
    with pytest.raises(UserError, match="got Bottleneck"):
        model, _ = network()
        build("mid(0.1)")[0].build(model)
    with pytest.raises(UserError, match="got NoneType"):
        build("mid(0.1)")[0].build(nn.Identity())


@pytest.mark.parametrize(
    "text", ["mid", "mid(-0.1)", "mid(true)", "mid(0.1,unit=k)", "mid(0.1,inference=both)"]
)
def test_values_out_of_range_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)
