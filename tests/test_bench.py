"""The benchmark compares like with like: both pipelines end with the same result, each measure does what its name
says. How fast they are is no test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch

from lib.errors import UserError
from lib.store import ZOO
from tests.bench import __main__ as bench
from tests.bench import compare, memory, ours, published
from tests.bench.clock import PHASES, Clock
from tests.bench.measures import Outcome
from tests.bench.networks import synthesise_nchw
from tests.bench.published import MEASURES, Ways
from tests.bench.world import World, budget_for, small_world

PEOPLE, PHOTOS, CANDIDATES, KEEP = 3, 5, 6, 4
TINY = {"pool": 24, "candidates": CANDIDATES, "keep": KEEP, "steps": 3, "views": 2, "fast": False}
# Without crops, and with every candidate kept, only the mirrored views are left to chance, and they decide nothing.
EXACT = {**TINY, "keep": CANDIDATES, "crop_scale": (1, 1), "view_scale": (1, 1), "view_ratio": (1, 1)}
PUBLISHED = Ways()


@pytest.fixture(scope="module")
def world() -> World:
    return small_world(PEOPLE, PHOTOS)


@pytest.fixture(scope="module")
def theirs(world: World) -> Outcome:
    return run(world, EXACT)


def run(world: World, constants: dict, ways: Ways = PUBLISHED) -> Outcome:
    return published.run(world, budget_for(world, **constants), seed=0, ways=ways, clock=Clock())


def test_both_pipelines_reach_the_same_result(world: World, theirs: Outcome) -> None:
    mine = ours.run(world, budget_for(world, **EXACT), seed=0, clock=Clock())
    torch.testing.assert_close(theirs.initial, mine.initial, atol=1e-3, rtol=1e-3)  # ours are rounded to fp16
    moved = (theirs.latents - theirs.initial).abs().mean()
    assert moved > 0.02
    # Adam(.1, .1) steps by signs, so where a gradient is nearly 0 rounding may turn a step round
    assert (theirs.latents - mine.latents).abs().mean() < 0.05 * moved
    assert theirs.measures.keys() == mine.measures.keys()
    for name, value in theirs.measures.items():
        assert value == pytest.approx(mine.measures[name], rel=0.02, abs=0.05), name


@pytest.mark.parametrize("count", range(1, len(MEASURES) + 1))
def test_no_measure_changes_the_result(world: World, theirs: Outcome, count: int) -> None:
    faster = run(world, EXACT, Ways(**dict.fromkeys(MEASURES[:count], True)))
    torch.testing.assert_close(theirs.initial, faster.initial)
    moved = (theirs.latents - theirs.initial).abs().mean()
    assert (theirs.latents - faster.latents).abs().mean() < 0.05 * moved
    for name, value in theirs.measures.items():
        assert value == pytest.approx(faster.measures[name], rel=0.02, abs=0.05), name


@pytest.mark.parametrize("fused", [True, False])
def test_the_published_generator_makes_the_priors_images(world: World, fused: bool) -> None:
    prior = world.prior
    w = prior.sample(3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    theirs, mine = synthesise_nchw(prior.generator, w, fused=fused), prior.synthesise(w)
    torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-4)
    weight = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((images * weight).sum(), w)[0] for images in (theirs, mine)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_gather_gradients_until_they_are_frozen(world: World, frozen: bool) -> None:
    weights = (world.target.head.weight, world.prior.generator.blocks[1].conv1.weight)
    seen: list[int] = []
    handles = []
    for number, weight in enumerate(weights):
        weight.requires_grad_(True)
        handles.append(weight.register_hook(lambda gradient, number=number: seen.append(number)))
    run(world, TINY, Ways(frozen=frozen))
    for handle in handles:
        handle.remove()
    batches = -(-PEOPLE * CANDIDATES // published.BATCH)
    assert sorted(seen) == ([] if frozen else [0] * batches * 3 + [1] * batches * 3)
    assert all(weight.requires_grad and weight.grad is None for weight in weights)


def test_judges_and_generator_work_again_for_each_measure_until_told_to_keep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"images": 0, "evaluator": 0}

    def counted(generator, w, *, fused):
        counts["images"] += len(w)
        return synthesise_nchw(generator, w, fused=fused)

    monkeypatch.setattr(published, "synthesise_nchw", counted)
    handle = world.evaluator.body.register_forward_hook(
        lambda module, inputs, output: counts.update(evaluator=counts["evaluator"] + len(output))
    )
    made, kept, photos = PEOPLE * CANDIDATES, PEOPLE * KEEP, PEOPLE * PHOTOS
    attack = 24 + 3 * made + made
    for ways, images, evaluator in (
        # accuracy of all; then accuracy, Fréchet, PRDC and two distances of the kept ones
        (Ways(), attack + made + 5 * kept, made + 4 * kept + 3 * photos),
        (Ways(rendered_once=True), attack, made + 4 * kept + 3 * photos),
        (Ways(rendered_once=True, features_once=True), attack, made + photos),
    ):
        counts.update(images=0, evaluator=0)
        run(world, TINY, ways)
        assert (counts["images"], counts["evaluator"]) == (images, evaluator)
    handle.remove()


def test_every_phase_is_timed_and_scaled_to_the_full_budget(world: World) -> None:
    budget = budget_for(world, **TINY)
    line = compare.compare(world, budget, rounds=1, ablation=False)
    assert [member.name for member in line] == ["published", "ours", "ours, bf16 target"]
    assert all(seconds > 0 for member in line for seconds in member.clocks[0].wall.values())
    scales = compare.scales(world, dataclasses.replace(budget, steps=25, candidates=8, views=50))
    assert scales == {
        "search": pytest.approx(2000 / 530 / 8),
        "optimise": 4.0,
        "select": 4.0,
        "judge": 2.0,
        "references": 6.0,
    }
    for member, seconds in zip(line, (4.0, 2.0, 1.0), strict=True):
        member.clocks[0].wall = member.clocks[0].processor = dict.fromkeys(PHASES, seconds)
    table = compare.summary(line, world, budget)
    assert table["seconds"].tolist() == pytest.approx([20 / PEOPLE, 10 / PEOPLE, 5 / PEOPLE])
    for ratio in ("ratio", "cpu_ratio", "full_ratio"):
        assert table[ratio].tolist() == pytest.approx([1.0, 2.0, 4.0])
    assert table["step"].tolist() == pytest.approx([1.0, 2.0, 2.0])


def test_the_benchmark_prints_and_saves_its_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench, "shipped_world", small_world)
    monkeypatch.setattr(bench, "TIMED", {**TINY, "steps": 1, "views": 1})
    monkeypatch.setattr(bench, "PEOPLE", (2, 3))
    monkeypatch.setattr(bench, "peak_megabytes", memory.attack)
    path = tmp_path / "new" / "bench.csv"
    assert bench.main(["--rounds", "1", "--people", "2", "--save", str(path)]) == 0
    rows = pd.read_csv(path)
    assert rows.columns.tolist() == ["part", "name", "quantity", "value"]
    speed = rows[rows["part"] == "speed"]
    assert speed["name"].nunique() == len(MEASURES) + 3 and speed["value"].notna().all()
    peaks = rows[rows["quantity"] == "peak_megabytes"]
    assert peaks["name"].tolist() == [f"{name}, {n} people" for name in memory.BUDGETS for n in (2, 3)]
    assert (peaks["value"] > 0).all()
    printed = capsys.readouterr().out
    assert "+ frozen networks" in printed and "Peak memory" in printed


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--people", "63"], ["--threads", "0"]])
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="bench: expected"):
        bench.main(arguments)


@pytest.mark.skipif(not ZOO.exists(), reason="the zoo was removed")
def test_the_benchmark_needs_no_data() -> None:
    """A clean clone has the zoo and nothing else; this test has an empty cache."""
    found = bench.shipped_world(2, 4)
    assert found.target.num_classes == 62 and len(found.photos) == 8 and found.labels == [0, 1]
