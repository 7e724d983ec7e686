"""Networks made fast for attacks: the same answers and gradients, fewer operations, or left alone."""

import copy
import operator

import pytest
import torch
from torch import nn
from toys import SPECS, ToyPrior, ToyTarget

from lib.defences import build
from lib.models import build_classifier, folded


def trained(spec, classes=5, size=32):
    """A network whose running moments are not those it began with."""
    torch.manual_seed(0)
    model = build_classifier(spec, classes, size).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, size, size))
    return model.eval()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
def test_folding_keeps_logits_features_and_gradients(spec):
    model = trained(spec)
    short = folded(model)
    assert short is not model and not any(p.requires_grad for p in short.parameters())
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (model, short)]
    assert norms[1] < norms[0]
    found = []
    for network in (model, short):
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        features, logits = network.both(images)
        (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), images)
        found.append((features, logits, gradient))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_folding_leaves_the_network_as_it_is():
    model = trained(SPECS[0]).train()
    before = copy.deepcopy(model.state_dict())
    short = folded(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in short.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_only_a_skip_scale_of_one_is_dropped(scale):
    model = trained(SPECS[0])
    for block in model.body.modules():
        if hasattr(block, "skip_scale"):
            block.skip_scale.fill_(scale)
    short = folded(model)
    products = [node for node in short.body.graph.nodes if node.target in (operator.mul, torch.mul, "mul")]
    assert bool(products) == (scale != 1.0)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(short(images), model(images), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_folded_is_left_alone():
    hooked, drawing, branching = (trained(SPECS[0]) for _ in range(3))
    hooked.body.stem.register_forward_hook(lambda *_: None)
    (mid,) = build("mid(1)")
    drawing = mid.build(drawing)

    class Branch(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else self.inner(-x)

    branching.body = Branch(branching.body)
    toy = ToyTarget(ToyPrior())
    for network in (hooked, drawing, branching, toy):
        assert folded(network) is network
