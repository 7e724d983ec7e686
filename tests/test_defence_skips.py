"""RoLSS, SSF and TTS: what the last stage computes without its skips, and that storing a network keeps it so."""

import copy
import dataclasses

import pytest
import torch
import yaml
from conftest import TINY
from torch import nn
from torch.nn import functional as F
from toys import NETWORKS, SMALL, assert_resumes, same, train_bars

from lib.data import load_world
from lib.defences import build, restore
from lib.defences._skips import KeptChannels
from lib.errors import UserError
from lib.models import build_classifier, stages_of
from lib.setups import load_setup
from lib.stages import targets
from lib.training import predict, train_classifier

CPU = torch.device("cpu")
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WITH_SKIPS = ["residual", "ir", "densenet", "resnet"]


def network(name, text=None):
    if name == "vgg":  # 130 M parameters: without numbers
        with torch.device("meta"):
            return build_classifier(NETWORKS[name], 3, 32)
    torch.manual_seed(0)
    model = build_classifier(NETWORKS[name], 3, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that matter
            nn.init.normal_(module.running_mean, std=0.3)
            if module.affine:
                nn.init.normal_(module.bias, std=0.3)
    return build(text)[0].build(model) if text else model


# --- what is a stage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "channels"),
    [
        ("residual", [16, 8, 4, 2], [4, 4, 8, 8]),
        ("ir", [16, 8, 4, 2], [4, 4, 8, 8]),
        ("densenet", [8, 4], [20, 28]),
        ("resnet", [8, 4, 2, 1], [64, 128, 256, 512]),
        ("vgg", [16, 8, 4, 2, 1], [64, 128, 256, 512, 512]),
    ],
)
def test_stages_end_where_the_resolution_falls_next(name, sizes, channels):
    model, seen = network(name).eval(), []
    parts = stages_of(model)
    for stage in parts.stages:
        stage[-1].register_forward_hook(lambda _, __, output: seen.append(output.shape))
    model(IMAGES.to(next(model.parameters()).device))
    assert [tuple(shape[1:]) for shape in seen] == [(c, s, s) for c, s in zip(channels, sizes, strict=True)]
    inside = [id(p) for stage in [parts.stem, *parts.stages] for module in stage for p in module.parameters()]
    assert len(inside) == len(set(inside)), "no parameter in two stages"


def test_a_network_without_known_stages_is_refused():
    with pytest.raises(UserError, match="expected one whose stages are known"):
        stages_of(build_classifier({"kind": "torchvision", "name": "mobilenet_v3_small"}, 3, 32))
    with pytest.raises(UserError, match="expected one whose stages are known"):
        stages_of(nn.Linear(2, 2))


# --- skips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "ir", "resnet"])
@pytest.mark.parametrize(("cut", "blocks"), [(0.2, 1), (1.0, None)])
def test_the_released_networks_cut_skips_before_the_last_stage_too(name, cut, blocks):
    """Of two blocks one, as in the released ResNet-18."""
    cuts = network(name, f"ssf(1,cut={cut})").eval()
    before = stages_of(cuts).stages[-2]
    scales = [[b for n, b in block.named_buffers() if n.endswith("skip_scale")] for block in before]
    scales = [float(found[0]) if found else 1.0 for found in scales]
    count = len(before) if blocks is None else blocks
    assert scales == [1.0] * (len(before) - count) + [0.0] * count
    assert not torch.equal(network(name).eval()(IMAGES), cuts(IMAGES))
    stored = {"spec": cuts.spec, "num_classes": 3, "image_size": 32, "defence": f"ssf(1,cut={cut})"}
    again = restore(cuts.state_dict(), stored)
    assert torch.equal(again.eval()(IMAGES), cuts(IMAGES))


def test_a_dense_network_has_no_such_blocks():
    with pytest.raises(UserError, match="cut=0.2: expected a residual network .*got DenseNet"):
        network("densenet", "rolss(cut=0.2)")


@pytest.mark.parametrize("name", WITH_SKIPS)
@pytest.mark.parametrize("training", [True, False])
def test_k_one_is_the_stock_network_bit_for_bit(name, training):
    stock, scaled = network(name).train(training), network(name, "ssf(1)").train(training)
    assert torch.equal(stock(IMAGES), scaled(IMAGES))


def test_other_norms_and_cut_skips_come_in_any_order():
    torch.manual_seed(0)
    for text in ("groupnorm+rolss", "rolss+groupnorm"):
        model = build_classifier(NETWORKS["densenet"], 3, 32)
        for defence in build(text):
            model = defence.build(model)
        assert model(IMAGES).isfinite().all()


@pytest.mark.parametrize("name", WITH_SKIPS)
def test_rolss_is_ssf_zero_and_not_the_stock_network(name):
    cut = network(name, "rolss").eval()(IMAGES)
    assert torch.equal(cut, network(name, "ssf(0)").eval()(IMAGES))
    assert not torch.allclose(cut, network(name).eval()(IMAGES), atol=1e-3)


@pytest.mark.parametrize("name", ["residual", "ir", "resnet"])
@pytest.mark.parametrize("k", [0.0, 0.2])
def test_every_block_of_the_last_stage_and_no_other_has_a_scaled_skip(name, k):
    model, stock = network(name, f"ssf({k})").eval(), network(name).eval()
    for depth, (blocks, plain) in enumerate(
        zip(stages_of(model).stages, stages_of(stock).stages, strict=True), 1
    ):
        for block, whole in zip(blocks, plain, strict=True):
            x = torch.randn(2, next(whole.parameters()).shape[-3 if name != "ir" else 0], 8, 8)
            if name == "ir":
                near = x[:, :, :: whole.stride, :: whole.stride]
                main, skip, after = whole.residual(x), whole.shortcut(near), lambda y: y
            else:
                inner = [whole.conv1, whole.norm1 if name == "residual" else whole.bn1, torch.relu]
                inner += [whole.conv2, whole.norm2 if name == "residual" else whole.bn2]
                main, after = x, torch.relu
                for layer in inner:
                    main = layer(main)
                shortcut = whole.shortcut if name == "residual" else whole.downsample
                skip = shortcut(x) if shortcut is not None else x
            expected = after(main + (k if depth == 4 else 1) * skip)
            torch.testing.assert_close(block(x), expected)


def test_a_dense_block_keeps_the_first_channels_of_older_maps():
    """The same as narrower layers that were never given the others."""
    model = network("densenet", "ssf(0.5)").eval()
    body, block = model.body, model.body.features.denseblock2  # maps of 10, then 6, 6 and 6 channels
    stock = network("densenet").eval().body.features
    x = torch.randn(2, 10, 4, 4)
    maps, used = [x], [torch.arange(10)]
    for layer in stock.denseblock2.values():
        offsets = torch.tensor([0, 10, 16, 22][: len(maps)])
        channels = torch.cat([o + u for o, u in zip(offsets, used, strict=True)])
        seen = torch.cat([m[:, u] for m, u in zip(maps, used, strict=True)], 1)
        y = F.batch_norm(
            seen,
            *(getattr(layer.norm1, n)[channels] for n in ("running_mean", "running_var", "weight", "bias")),
        )
        y = F.conv2d(F.relu(y), layer.conv1.weight[:, channels])
        maps.append(layer.conv2(F.relu(layer.norm2(y))))
        used[-1] = used[-1][: round(0.5 * len(used[-1]))]
        used.append(torch.arange(6))
    found = block(x)
    torch.testing.assert_close(found, torch.cat(maps, 1))
    behind = F.relu(body.features.norm5(found))
    kept = torch.cat([o + u for o, u in zip([0, 10, 16, 22], used, strict=True)])
    torch.testing.assert_close(behind[:, kept], F.relu(stock.norm5(found))[:, kept])
    others = torch.ones(28, dtype=bool)
    others[kept] = False
    assert len(kept) == 5 + 3 + 3 + 6 and not behind[:, others].any()


def test_published_dense_scale_keeps_a_hundredth_of_the_block_input_and_nothing_of_the_layers():
    kept = KeptChannels(nn.Identity(), [1024, 32, 32, 32])
    kept.skip_scale.fill_(0.01)
    shown = kept(torch.ones(1, 1120, 1, 1)).flatten()
    assert shown[:1024].sum() == 10 and shown[1024:1088].sum() == 0 and shown[1088:].sum() == 32


@pytest.mark.parametrize("text", ["rolss", "ssf(0.2)", "tts"])
def test_a_network_without_skips_is_refused(text):
    with pytest.raises(UserError, match="has no skip connections"):
        build(text)[0].build(network("vgg"))


def test_two_defences_on_the_same_skips_are_refused():
    with pytest.raises(UserError, match=r"tts: expected skips .* got those of ssf\(0.2\)"):
        train_bars(build("ssf(0.2)+tts"))


@pytest.mark.parametrize(
    "text", ["ssf", "ssf(-0.1)", "ssf(1.1)", "ssf(true)", "rolss(0)", "tts(0.5)", "tts(warm=1)"]
)
def test_strengths_out_of_range_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "scale"), [("rolss", 0.0), ("ssf(0.25)", 0.25), ("tts", 0.0)])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_scale_in_force_is_reported_and_in_the_trained_network(text, scale, average):
    recipe = dataclasses.replace(SMALL, steps=6, average=average)
    result = train_bars(build(text), recipe)
    assert result.diagnostics == {f"{text}.skip_scale": scale}
    stages = stages_of(result.model).stages
    assert [float(block.skip_scale) for stage in stages for block in stage] == [1.0] * 6 + [scale] * 2


def test_tts_switches_after_its_share_of_the_epochs():
    (defence,) = build("tts")
    defence.build(network("residual"))

    def scales(epochs):
        found = []
        for epoch in range(epochs):
            defence.phase(epoch, epochs)
            found.append(defence.diagnostics()["skip_scale"])
        return found

    assert scales(100) == [1.0] * 5 + [0.0] * 95
    assert scales(12) == [1.0] + [0.0] * 11 and scales(40) == [1.0] * 2 + [0.0] * 38


@pytest.mark.parametrize("kill_after", [1, 3])
def test_tts_resumes_on_either_side_of_its_switch(tmp_path, kill_after):
    text, recipe = "tts(warm=0.5)", dataclasses.replace(SMALL, steps=12)
    whole = assert_resumes(lambda: build(text), recipe, tmp_path, after=kill_after)
    assert whole.diagnostics == {f"{text}.skip_scale": 0.0}


# --- storing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_SKIPS)
def test_restore_builds_the_defence_in_before_it_loads(name):
    model = network(name, "ssf(0.3)").eval()
    meta = {"spec": model.spec, "num_classes": 3, "image_size": 32}
    again = restore(model.state_dict(), {**meta, "defence": "ssf(0.3)"})
    assert torch.equal(model(IMAGES), again(IMAGES)) and not again.training
    if name == "residual":  # it always has the buffer
        assert torch.equal(model(IMAGES), restore(model.state_dict(), meta)(IMAGES))
    else:
        with pytest.raises(UserError, match="another architecture"):
            restore(model.state_dict(), meta)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("residual", "tts(warm=0.5)+re(0.1,0.4)"),
        ("ir", "ssf(0.3)"),
        ("densenet", "tts"),
        ("ir", "none"),
    ],
)
def test_a_stored_defended_target_is_rebuilt_with_equal_logits(tmp_path, monkeypatch, name, text):
    """Through the door that every later stage uses: the store, its metadata, the target of a setup."""
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    content = copy.deepcopy(TINY)
    content["target"]["network"] = NETWORKS[name]
    content["target"]["recipe"]["steps"] = 16  # three epochs
    content["defences"] = {"tts": {"warm": 0.4}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    setup = load_setup(tmp_path / "tiny.yaml")
    stored = targets.target(setup, text, 0, 1).model
    photos = load_world(setup).train
    trained = train_classifier(
        lambda _: build_classifier(NETWORKS[name], 3, 16),
        photos,
        recipe=targets.recipe_of(setup.target, "tiny"),
        defences=build(text, setup.defences),
        seed=0,
        validation=None,
        device=CPU,
    ).model
    assert torch.equal(predict(stored, photos, device=CPU)[1], predict(trained, photos, device=CPU)[1])
    assert type(stored) is type(trained) and same(stored.state_dict(), trained.state_dict())
    plain = build_classifier(NETWORKS[name], 3, 16).state_dict().keys()
    wrapped = name != "residual" and text != "none"
    assert (stored.state_dict().keys() != plain) == wrapped, "what plain loading would refuse"
