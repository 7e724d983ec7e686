"""Networks: normalisation inside, features and logits in one pass, weights loaded strictly and never executed."""

import hashlib
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toys import SPECS

from lib.errors import UserError
from lib.models import build_classifier, classifier_from, load_external, load_weights
from lib.models.external import external_config
from lib.models.ir import PReLU
from lib.runtime import frozen


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
def test_features_are_what_the_head_sees(spec):
    model = build_classifier(spec, 5, 32).eval()
    images = torch.rand(3, 3, 32, 32)
    features, logits = model.both(images)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(model.head(features), logits)
    torch.testing.assert_close(model(images), logits)
    torch.testing.assert_close(model.features(images), features)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
def test_a_stored_network_is_rebuilt_with_the_same_logits(spec):
    model = build_classifier(spec, 4, 32, width=1.0).eval()
    meta = {"spec": model.spec, "num_classes": 4, "image_size": 32}
    again = classifier_from(model.state_dict(), meta)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), again(images))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
def test_no_strided_pointwise_convolution_of_few_channels(spec):
    # Its weight gradient writes outside its memory on CPUs without AVX-512.
    layers = [m for m in build_classifier(spec, 4, 32).modules() if isinstance(m, nn.Conv2d)]
    assert layers
    for layer in layers:
        assert layer.in_channels >= 8 or layer.kernel_size != (1, 1) or layer.stride == (1, 1), layer


@pytest.mark.parametrize("shape", [(5, 6, 4, 4), (5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prelu_is_torchs(shape, dtype):
    draws = torch.Generator().manual_seed(0)
    layer = PReLU(6)
    layer.weight.data = torch.randn(6, generator=draws)
    x = torch.randn(shape, generator=draws).to(dtype)
    x[0, 0] = 0
    found = []
    for function in (layer, lambda x: nn.functional.prelu(x, layer.weight.to(dtype))):
        given = x.clone().requires_grad_()
        value = function(given)
        value.square().sum().backward()
        found.append((value, given.grad, layer.weight.grad))
        layer.weight.grad = None
    (value, *gradients), (expected, *wanted) = found
    assert torch.equal(value, expected)
    close = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(gradients, wanted, **close)


def test_width_is_remembered_by_the_spec():
    model = build_classifier(SPECS[0], 4, 32, width=0.5)
    again = classifier_from(model.state_dict(), {"spec": model.spec, "num_classes": 4, "image_size": 32})
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    assert model.head.in_features == 4


def test_a_network_of_one_width_takes_no_other():
    with pytest.raises(UserError, match="one width; drop small"):
        build_classifier(SPECS[2], 4, 32, width=0.5)


def test_the_target_has_a_normalised_feature_vector():
    model = build_classifier({"kind": "residual"}, 62, 64).eval()
    stages = model.body.stages
    # Untrained stages answer almost a constant, which the normalisation's epsilon would show in; scale them up.
    stages.register_forward_hook(lambda _, __, output: output * 1e3)
    features = model.features(torch.rand(4, 3, 64, 64))
    torch.testing.assert_close(features.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    length = torch.full((4,), features.shape[1] ** 0.5)
    torch.testing.assert_close(features.norm(dim=1), length, rtol=1e-3, atol=0)
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 3e6


def test_normalisation_is_inside():
    model = build_classifier(SPECS[0], 3, 32).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.features(images), model.body((images - 0.5) / 0.5))


def test_skip_scale_one_is_the_plain_network_and_zero_cuts_the_skip():
    model = build_classifier(SPECS[0], 3, 32).eval()
    images = torch.rand(2, 3, 32, 32)
    before = model(images)
    for module in model.modules():
        if hasattr(module, "skip_scale"):
            module.skip_scale.fill_(0.0)
    assert not torch.allclose(model(images), before)


@pytest.mark.parametrize("size", [16, 25, 30, 31])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
def test_networks_are_built_for_any_size(spec, size):
    assert build_classifier(spec, 3, size)(torch.rand(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"kind": "resnet"}, "unknown"),
        ({"kind": "residual", "width": [4]}, "width"),
        ({"kind": "torchvision", "name": "nonesuch"}, "nonesuch"),
    ],
)
def test_bad_specs_are_refused(spec, word):
    with pytest.raises(UserError, match=word):
        build_classifier(spec, 3, 32)


def test_weights_of_another_network_or_class_count_are_refused():
    model = build_classifier(SPECS[0], 3, 32)
    with pytest.raises(UserError, match="another architecture"):
        load_weights(model, build_classifier(SPECS[1], 3, 32).state_dict())
    with pytest.raises(UserError, match="number of classes"):
        load_weights(model, build_classifier(SPECS[0], 4, 32).state_dict())


def test_frozen_restores_modes_and_gradients():
    model = build_classifier(SPECS[0], 3, 32).train()
    model.head.bias.requires_grad_(False)
    with frozen(model):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert model.training and model.head.weight.requires_grad and not model.head.bias.requires_grad


# --- a user's own classifier ---------------------------------------------------------------------------


def tiny_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


class Returning(nn.Module):
    """A tiny network with something wrong: it returns ``answer`` of its layers' logits, or has an idle layer."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.layers, self.idle, self.answer = tiny_network(), nn.Linear(1, 1), answer

    def forward(self, images):
        return self.answer(self.layers(images))


def pair_network() -> nn.Module:
    return Returning(lambda logits: (logits, logits))


def map_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.Identity())


def idle_network() -> nn.Module:
    return Returning(lambda logits: logits)


MADE = {made.__name__: made for made in (pair_network, map_network, idle_network)}
FACTORY = f"{__name__}:tiny_network"


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_external_classifier_is_loaded_and_described(tmp_path, importable, suffix):
    network = tiny_network()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({f"_orig_mod.{name}": t for name, t in network.state_dict().items()}, path)
    else:
        save_file(network.state_dict(), path)
    model = load_external(factory=FACTORY, weights=path, image_size=16, class_names=["a", "b", "c"])
    images = torch.rand(2, 3, 16, 16)
    features, logits = model.both(images)
    torch.testing.assert_close(logits, network((images - 0.5) / 0.5))
    torch.testing.assert_close(network[4](features), logits)
    shown = model.detected()
    assert shown["classes"] == 3 and shown["feature layer"] == "4" and shown["feature size"] == 4


def test_a_feature_layer_that_is_not_linear_gives_its_output(tmp_path, importable):
    path = tmp_path / "w.safetensors"
    save_file(tiny_network().state_dict(), path)
    model = load_external(factory=FACTORY, weights=path, image_size=16, feature_layer="2")
    assert model.features(torch.rand(2, 3, 16, 16)).shape == (2, 4)
    with pytest.raises(UserError, match="feature_layer"):
        load_external(factory=FACTORY, weights=path, image_size=16, feature_layer="nowhere")


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_pickle_offered_as_checkpoint_is_never_executed(tmp_path, monkeypatch, importable):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"weight": Bomb()}))
    torch.save({"weight": Bomb()}, tmp_path / "bomb2.pt")
    for name in ("bomb.pt", "bomb2.pt"):
        with pytest.raises(UserError, match="not executed"):
            load_external(factory=FACTORY, weights=tmp_path / name, image_size=16)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"factory": "nowhere:nothing"}, "factory"),
        ({"factory": "builtins:dict"}, "Module"),
        ({"weights": "absent.pt"}, "absent.pt"),
        ({"factory": ":"}, "factory"),
        ({"class_names": ["one"]}, "1 class names given, the network has 3 classes"),
        ({"class_names": ["a", "b", "a"]}, r"class_names: expected each name once, got a again"),
        ({"class_names": [1, 2, 3]}, r"target\.network\.class_names\[0\]: expected str, got 1"),
        ({"weights": None}, "key 'weights' is missing"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"mean": [0.5]}, r"target\.network\.mean: expected three numbers, a channel each, got \[0\.5\]"),
        ({"mean": 0.5}, r"target\.network\.mean: expected list, got 0\.5"),
        ({"mean": ["a", 0, 0]}, r"target\.network\.mean\[0\]: expected float, got 'a'"),
        ({"mean": [float("nan")] * 3}, r"target\.network\.mean: expected three numbers"),
        ({"std": [1, 0, 1]}, r"target\.network\.std: expected numbers above 0"),
        ({"image_size": 2}, "does not take images 3 x 2 x 2 .* set image_size"),
        ({"factory": f"{__name__}:pair_network"}, "returns tuple, expected logits"),
        (
            {"factory": f"{__name__}:map_network", "feature_layer": "1"},
            r"returns shape \(2, 3, 14, 14\), expected logits",
        ),
        (
            {"factory": f"{__name__}:idle_network", "feature_layer": "idle"},
            "feature_layer 'idle' is never used",
        ),
    ],
)
def test_bad_external_input_is_one_clear_error(tmp_path, importable, options, word):
    path = tmp_path / "w.safetensors"
    factory = options.get("factory", FACTORY)
    save_file(MADE.get(factory.partition(":")[2], tiny_network)().state_dict(), path)
    given = {"factory": FACTORY, "weights": path, "image_size": 16, **options}
    with pytest.raises(UserError, match=word) as error:
        load_external(**{key: value for key, value in given.items() if value is not None})
    assert "\n" not in str(error.value)


def test_weights_in_the_home_folder_are_found(tmp_path, importable, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(tiny_network().state_dict(), tmp_path / "w.safetensors")
    options = {"factory": FACTORY, "weights": "~/w.safetensors"}
    assert load_external(image_size=16, **options).num_classes == 3
    assert (
        external_config(options).digests()["weights_sha256"]
        == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    )


def test_classes_are_put_into_the_order_of_the_people(tmp_path, importable):
    path = tmp_path / "w.safetensors"
    save_file(tiny_network().state_dict(), path)
    model = load_external(factory=FACTORY, weights=path, image_size=16, class_names=["c", "a", "b"])
    images = torch.rand(2, 3, 16, 16)
    before = model(images)
    for _ in range(2):  # a second time changes nothing
        model.number_like(["a", "b", "c"])
        assert torch.equal(model(images), before[:, [1, 2, 0]]) and model.class_names == ["a", "b", "c"]
    with pytest.raises(UserError, match="got none for d, e, f, g, h and 1 more"):
        model.number_like(["a", "b", "c", *"defghi"])
