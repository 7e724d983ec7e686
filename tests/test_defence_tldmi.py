"""TL-DMI: what is frozen stays as public pre-training left it, bit for bit, and is what the name says."""

import copy
import dataclasses

import pytest
import torch
import yaml
from conftest import TINY
from torch import nn
from toys import NETWORKS, SMALL, same, train_bars

from lib import store
from lib.data import load_world
from lib.defences import build
from lib.errors import UserError
from lib.models import build_classifier, stages_of
from lib.setups import Setup, load_setup
from lib.stages import starts, targets


def setup_with(folder, defences, network=None) -> Setup:
    content = copy.deepcopy(TINY)
    content["defences"] = defences
    content["target"]["network"] = network or content["target"]["network"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return load_setup(folder / "tiny.yaml")


@pytest.fixture
def setup(tmp_path, monkeypatch) -> Setup:
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    return setup_with(tmp_path, {"tldmi": {"sets": ["public"], "steps": 5}})


def made(kind):
    return [
        row["label"]
        for row in store.listing()
        if (row["kind"], row["place"], row["state"]) == (kind, "cache", "finished")
    ]


# --- what is frozen -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth"), [(n, d) for n, last in (("residual", 3), ("ir", 3), ("densenet", 1)) for d in range(1, last + 1)]
)  # fmt: skip
def test_the_first_stages_and_the_stem_are_frozen_and_nothing_else(name, depth):
    model = build_classifier(NETWORKS[name], 3, 16)
    (defence,) = build(f"tldmi({depth})")
    frozen = defence.freeze(model)
    images = torch.rand(4, 3, 16, 16)
    for parameter in frozen:
        parameter.requires_grad_(False)
    seen = []
    for stage in stages_of(model).stages:
        stage[-1].register_forward_hook(lambda _, __, output: seen.append(output.requires_grad))
    model(images).sum().backward()
    assert seen == [False] * depth + [True] * (len(seen) - depth), (
        "no gradient is computed for what is frozen"
    )
    assert all(p.grad is not None for p in model.parameters() if p not in frozen)
    parts = stages_of(model)
    inside = sum(p.numel() for m in [*parts.stem, *sum(parts.stages[:depth], [])] for p in m.parameters())
    share = inside / sum(p.numel() for p in model.parameters())
    assert defence.diagnostics() == {"frozen": share, "drift": 0} and defence.acted([defence.diagnostics()])
    with torch.no_grad():
        next(iter(frozen)).add_(0.1)
    assert defence.diagnostics()["drift"] == pytest.approx(0.1) and not defence.acted([defence.diagnostics()])


@pytest.mark.parametrize(("bn_frozen", "held"), [("track", False), ("eval", True)])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_frozen_parameters_are_bit_identical_after_training_and_statistics_as_asked(bn_frozen, held, average):
    model = build_classifier(NETWORKS["residual"], 3, 16)
    before = copy.deepcopy(model.state_dict())
    recipe = dataclasses.replace(SMALL, average=average)
    text = f"tldmi(2,bn_frozen={bn_frozen})"
    result = train_bars(build(text), recipe, model=model)
    after = result.model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    first = {n for n in before if n.startswith(("body.stem", "body.stages.0", "body.stages.1"))}
    unchanged = {n for n in before if torch.equal(before[n], after[n])}
    assert first & parameters <= unchanged and not unchanged & (parameters - first)
    statistics = {n for n in first - parameters if "running" in n}
    assert len(statistics) == 2 * 10 and (statistics <= unchanged if held else not statistics & unchanged)
    assert 0 < result.diagnostics[f"{build(text)[0].name}.frozen"] < 1


def test_batch_norms_of_the_other_stages_learn_on():
    (defence,) = build("tldmi(1,bn_frozen=eval)")
    model = build_classifier(NETWORKS["residual"], 3, 16)
    defence.freeze(model)
    model.train()
    assert defence.input(None, None, None) is None, "before any defence moves photos through the network"
    norms = [[m.training for m in s.modules() if isinstance(m, nn.BatchNorm2d)] for s in model.body.stages]
    assert not any(norms[0]) and all(map(all, norms[1:])) and not model.body.stem[1].training


@pytest.mark.parametrize("text", ["groupnorm+tldmi(1)", "tldmi(1)+groupnorm"])
def test_frozen_stages_that_another_defence_changed_are_refused(text):
    model, parts = build_classifier(NETWORKS["residual"], 3, 16), build(text)
    for defence in parts:
        model = defence.build(model)
    with pytest.raises(UserError, match="expected frozen stages as pre-training left them"):
        for defence in parts:
            defence.freeze(model)


@pytest.mark.parametrize(("name", "depth"), [("residual", 4), ("residual", 7), ("densenet", 2)])
def test_a_depth_beyond_the_network_is_refused(name, depth):
    with pytest.raises(
        UserError, match=rf"expected fewer stages than the network's \d, got {depth}; at most"
    ):
        build(f"tldmi({depth})")[0].freeze(build_classifier(NETWORKS[name], 3, 16))


@pytest.mark.parametrize(
    "text",
    ["tldmi", "tldmi(0)", "tldmi(1.5)", "tldmi(true)", "tldmi(1,bn_frozen=off)", "tldmi(1,steps=0)"]
    + ["tldmi(1,sets=public)", "tldmi(1,learning_rate=0)", "tldmi(1,cosine=0)"],
)
def test_values_out_of_range_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)


# --- pre-training -------------------------------------------------------------------------------------------


def test_a_target_starts_from_public_people_and_keeps_their_first_stages(setup):
    trained = targets.target(setup, "tldmi(2)", 0, 1)
    start = starts.pretraining_stage(setup, targets._target_config(setup, trained.stage.params), "target")
    assert trained.stage.upstream[1:] == (start.key,)
    weights, public = trained.model.state_dict(), store.find(start)
    assert public.meta["num_classes"] == len(load_world(setup).public.names) == 5
    body = [n for n, _ in trained.model.named_parameters() if n.startswith("body.")]
    kept = [n for n in body if torch.equal(weights[n], public.tensors[n])]
    assert kept and all(n.startswith(("body.stem", "body.stages.0", "body.stages.1")) for n in kept)
    expected = trained.meta["diagnostics"]["tldmi(2).frozen"]
    count = sum(weights[n].numel() for n in kept) / sum(p.numel() for p in trained.model.parameters())
    assert count == pytest.approx(expected)


def test_depths_and_lengths_share_a_start_and_seeds_do_not(setup):
    starts = [
        targets.target_stage(setup, text, seed, multiple).upstream[1]
        for text, seed, multiple in (
            ("tldmi(1)", 0, 1),
            ("tldmi(2)", 0, 4),
            ("re(0.1,0.4)+tldmi(3,bn_frozen=eval)", 0, 1),
            ("tldmi(1)", 1, 1),
        )
    ]
    assert starts[0] == starts[1] == starts[2] != starts[3]
    assert len(targets.target_stage(setup, "re(0.1,0.4)", 0, 1).upstream) == 1
    for depth in (1, 2):
        targets.target(setup, f"tldmi({depth})", 0, 1)
    assert made("pretraining") == ["digits start of target"] and len(made("target")) == 2


def test_what_pre_training_learns_from_is_part_of_the_key(setup, tmp_path):
    other = setup_with(tmp_path, {"tldmi": {"sets": ["public"], "steps": 6}})
    keys = [targets.target_stage(s, "tldmi(1)", 0, 1).key for s in (setup, other)]
    assert keys[0] != keys[1]
    assert targets.target_stage(setup, "none", 0, 1) == targets.target_stage(other, "none", 0, 1)


def test_pre_training_erases_too_where_it_is_asked_to(setup):
    text = "re(0.3,0.3)+tldmi(1,erased=true)"
    trained = targets.target(setup, text, 0, 1)
    config = targets._target_config(setup, trained.stage.params)
    start = starts.pretraining_stage(setup, config, "target")
    assert trained.stage.upstream[1:] == (start.key,) and start.params["defence"] == "re(0.3,0.3)"
    assert store.find(start).meta["diagnostics"]["re(0.3,0.3).re_erased_area"] == pytest.approx(0.3, abs=0.03)
    plain = targets.target_stage(setup, "re(0.3,0.3)+tldmi(1)", 0, 1)
    assert plain.upstream[1:] != trained.stage.upstream[1:]
    assert plain.upstream == targets.target_stage(setup, "tldmi(1)", 0, 1).upstream
    with pytest.raises(UserError, match="expected an erasing defence beside it"):
        targets.target(setup, "tldmi(1,erased=true)", 0, 1)


def test_the_expected_time_counts_the_pre_training(setup, monkeypatch):
    monkeypatch.setattr(targets, "_seconds_per_step", lambda *_: 1.0)
    monkeypatch.setattr(targets, "_RATES", {})
    times = [
        targets.training_seconds(setup, targets.target_stage(setup, text, 0, 1), setup.target)
        for text in ("none", "tldmi(1)")
    ]
    assert times == [8, 8 / 2 + 5], "half of the passes, then pre-training"


def test_a_refused_network_is_refused_before_the_pre_training(setup):
    with pytest.raises(UserError, match="expected fewer stages than the network's 4, got 4"):
        targets.target(setup, "tldmi(4)", 0, 1)
    assert not made("pretraining")


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ("identities=0", "expected batches of at least 8 photos, got 6"),
        ("identities=16,photos=4", "expected photos of at least 16 people, got 3"),
    ],
)
def test_batches_that_cannot_be_are_refused_before_the_pre_training(setup, batches, message):
    target = dataclasses.replace(setup.target, recipe={**setup.target.recipe, "batch": 6})
    small = dataclasses.replace(setup, target=target)
    with pytest.raises(UserError, match=message):
        targets.target(small, f"tldmi(1)+bido_hsic(0.05,0.5,{batches})", 0, 1)
    assert not made("pretraining")


@pytest.mark.parametrize("sets", [["pretraining", "near_public"], ["train"], ["public", "test"], ["nobody"]])
def test_sets_that_are_absent_or_private_are_refused(tmp_path, monkeypatch, sets):
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    setup = setup_with(tmp_path, {"tldmi": {"sets": sets}})
    with pytest.raises(
        UserError, match=r"named people who are not private \(public, .*\), got '\w+'; set data"
    ):
        targets.target(setup, "tldmi(1)", 0, 1)
    assert not made("pretraining")


def test_a_narrower_network_cannot_start_there(setup):
    with pytest.raises(UserError, match="expected a network of the pre-trained one's widths, got 0.5"):
        targets.target(setup, "small(0.5)+tldmi(1)", 0, 1)
    assert not made("pretraining"), "refused before"


def test_what_makes_its_own_batches_can_start_there(setup):
    assert targets.target(setup, "tldmi(1)+trapmid(0.2)", 0, 1).steps and made("pretraining")


def test_the_setups_that_come_along_have_people_to_learn_from():
    assert load_setup("digits").defences["tldmi"]["sets"] == ["public"]
    assert load_setup("lfw64_funneled").defences["tldmi"]["sets"] == ["pretraining"], (
        "near public is the attacker's"
    )
    assert set(load_setup("lfw64").data.others) >= set(build("tldmi(1)")[0].pretraining["sets"])


def test_a_trained_network_survives_the_store(setup):
    first = targets.target(setup, "re(0.1,0.4)+tldmi(1)", 0, 1).model.state_dict()
    assert same(first, targets.target(setup, "re(0.1,0.4)+tldmi(1)", 0, 1).model.state_dict())
