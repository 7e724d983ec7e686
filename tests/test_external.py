"""Somebody's own classifier with the photos it was trained on: judged and attacked, nothing to train or compare."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

from lib import results
from lib.errors import UserError
from lib.models import external
from lib.reports import ablations, evaluation_report, outside, tradeoff_report, training_report
from lib.reports.workbook import Workbook, open_workbook
from lib.run import notebooks
from lib.run.plan import plan
from lib.setups import load_setup
from lib.stages import inversion, success, targets

PEOPLE = ("Anna", "Ben", "Carl")
STRANGERS = ("Dora", "Emil", "Finn", "Gus")
FACTORY = """
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
"""


def colours(people: tuple[str, ...]) -> np.ndarray:
    """A colour a person, so that a linear network can tell people apart."""
    return np.random.default_rng(0).integers(40, 216, (len(people), 3))


def write_photos(folder: Path, people: tuple[str, ...], each: int) -> None:
    noise = np.random.default_rng(1)
    for name, colour in zip(people, colours(people), strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(colour + noise.integers(-30, 31, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def write_weights(path: Path, order: list[str]) -> None:
    """A network that answers with the person of the nearest colour; class k is ``order[k]``."""
    means = torch.tensor(colours(PEOPLE)[[PEOPLE.index(name) for name in order]] / 127.5 - 1)
    weight = means[:, :, None].expand(-1, -1, 256).flatten(1)
    bias = -0.5 * weight.square().sum(1)
    save_file({"1.weight": weight.float().contiguous(), "1.bias": bias.float()}, path)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """``world(class_names=..., people=...)`` writes photos, weights and a setup; returns the setup's path."""
    (tmp_path / "own_network.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_photos(tmp_path / "public", STRANGERS, 12)

    def write(class_names: list[str] | None = None, people: tuple[str, ...] = PEOPLE, **network) -> str:
        write_photos(tmp_path / "private", people, 6)
        write_weights(tmp_path / "w.safetensors", class_names or sorted(PEOPLE))
        given = {
            "kind": "external",
            "factory": "own_network:network",
            "weights": str(tmp_path / "w.safetensors"),
        }
        if class_names:
            given["class_names"] = class_names
        data = {
            "private": {"source": "folder", "path": str(tmp_path / "private"), "min_images": 6},
            "public": {"source": "folder", "path": str(tmp_path / "public")},
            "test": 0.4,
            "public_held_out": 0.1,
            "verifier_share": 0.4,
        }
        target = {**TINY["target"], "network": {**given, **network}}
        setup = {**TINY, "name": "own", "data": data, "target": target}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(setup))
        return str(tmp_path / "own.yaml")

    return write


def open_own(path: str) -> Workbook:
    return open_workbook(path)


def test_there_is_nothing_to_train(world):
    book = open_own(world())
    assert book.defences == ("none",) and book.frontier_names == ["none"] and not book.frontier_attacks()
    assert targets.headline(book.setup, "none") == 1 and book.exposure_controls() == []
    stage = targets.target_stage(book.setup, "none", 0, 1)
    assert targets.training_seconds(book.setup, stage, book.setup.target) == 0
    with pytest.raises(UserError, match=r"own: the target is a given network, .* ask for none"):
        targets.target(book.setup, "early(0.5)", 0)
    for defences, seeds in ((["none", "re(.1,.4)"], []), ([], [0, 1])):
        with pytest.raises(UserError, match="own: the target is a given network, .* leave both empty"):
            open_workbook(str(Path(book.setup.data.private.path).parent / "own.yaml"), defences, seeds)


def test_the_plan_has_judges_and_attacks_but_no_training(world):
    steps = plan(open_own(world()))
    kinds = [step.stage.kind for step in steps]
    assert set(kinds) == {"data", "evaluator", "verifier", "prior", "reconstructions"}


def test_it_is_measured_and_notebook_06_can_be_read(world, monkeypatch):
    monkeypatch.setattr(outside, "applies", lambda setup: False)  # colours are no faces
    book = open_own(world())
    table = evaluation_report.measured(book)
    assert {"attack_accuracy_top1", "verifier_match", "target_confidence"} <= set(table["metric"])
    saved = results.load_tables("own__*", folder=results.output_dir("own"))
    natural = saved[(saved["metric"] == "natural_accuracy") & (saved["split"] == "test")]
    assert natural["value"].tolist() == [1.0] and natural["training_steps"].tolist() == [0]
    assert len(evaluation_report.judges(book)) == 5
    assert "3 people attacked in each of 1 models" in evaluation_report.scope(book, table)
    evaluation_report.attack_figure(book, table)
    assert len(evaluation_report.distances(book, table)) == 3
    for judge in ("main", "verifier"):
        tradeoff_report.tradeoff_figure(book, judge)
    comparisons = tradeoff_report.comparisons(book)
    assert set(comparisons["defence"]) == {"none"}
    tradeoff_report.comparison_table(comparisons)
    for page in (
        tradeoff_report.hypervolumes(book),
        tradeoff_report.matched(book),
        tradeoff_report.advantage_figure(book, comparisons),
    ):
        assert "nothing to train" in page.data
    assert "nothing to train" in tradeoff_report.verdicts(book, comparisons)
    assert training_report.headline_was_tried(book, training_report.training_lengths(book))
    assert "False" not in evaluation_report.checks(book, table, comparisons)
    assert all(step.there for step in plan(book) if "headline" in step.stage.label)


def test_the_ablations_say_that_there_is_nothing_to_train(world):
    book = open_own(world())
    with pytest.raises(UserError, match="own: the target is a given network, so there is nothing to train"):
        ablations.with_defences(book, (), ablations.PARTIAL)


def test_a_batch_leaves_out_the_notebooks_that_compare(world, monkeypatch):
    chosen = {}
    monkeypatch.setattr(
        notebooks, "run_notebooks", lambda names, *_, **options: chosen.update(names=names, **options)
    )
    notebooks.run_setup(world())
    assert [name[:2] for name in chosen["names"]] == [f"0{number}" for number in range(1, 7)]
    assert chosen["results"].name == "own", "as the setup is called, not its file"


# --- whose class is whose -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [None, ["Carl", "Anna", "Ben"]], ids=["sorted", "named"])
def test_classes_are_numbered_like_the_people(world, order):
    book = open_own(world(order))
    trained = book.attack("none").target()
    seen = inversion.judge_photos(book.setup, trained, "target")["test"]
    assert torch.equal(seen.logits["target"].argmax(1), seen.labels), "photo and class are of the same person"
    assert trained.meta["names"] == trained.model.class_names == book.world.train.names == list(PEOPLE)
    assert book.attack("none").target().model is trained.model, "numbered once"
    made = inversion.reconstruct(book.attack("none"))
    images = inversion.pictures(book.attack("none"), range(len(made.labels)), made.selected).flatten(0, 1)
    own = targets.given_network(book.setup)(images).softmax(1)
    names = order or list(PEOPLE)
    assert torch.allclose(
        trained.model(images).softmax(1), own[:, [names.index(name) for name in PEOPLE]], atol=1e-6
    )


def test_another_order_is_another_target(world, tmp_path):
    setup = load_setup(world(["Carl", "Anna", "Ben"]))
    first = targets.target_stage(setup, "none", 0, 1).key
    setup.target.network["class_names"] = ["Anna", "Ben", "Carl"]
    assert targets.target_stage(setup, "none", 0, 1).key != first


def test_other_code_of_the_factory_is_another_target_and_another_run(world, tmp_path, monkeypatch):
    setup, source = load_setup(path := world()), notebooks.notebook_path("03")

    def keys() -> tuple[str, str]:
        monkeypatch.delitem(sys.modules, "own_network", raising=False)  # as in another process
        external._source_digest.cache_clear()
        return targets.target_stage(setup, "none", 0, 1).key, notebooks._run_key(source, {"setup": path}, {})

    first = keys()
    assert keys() == first
    (tmp_path / "own_network.py").write_text(FACTORY.replace("nn.Flatten()", "nn.ReLU(), nn.Flatten()"))
    assert not set(keys()) & set(first)
    setup.target.network["factory"] = "nowhere.at_all:network"
    with pytest.raises(
        UserError, match="'nowhere.at_all:network': .* no such module .* target.network.factory"
    ):
        keys()


@pytest.mark.parametrize(
    ("names", "people", "word"),
    [
        (["Anna", "Ben", "Karl"], PEOPLE, "class_names: .* got none for Carl; spell them like the folders"),
        (["Anna", "Ben", "Carl"], PEOPLE[:2], r"data\.private: .* found none .* of Carl; add them"),
        (None, PEOPLE[:2], r"data\.private: expected photos of the 3 people .* found 2"),
    ],
    ids=["another spelling", "no photos", "no names"],
)
def test_people_and_classes_that_differ_are_named(world, names, people, word):
    path = world(None, people)
    content = yaml.safe_load(Path(path).read_text())
    if names:
        content["target"]["network"]["class_names"] = names
    Path(path).write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=word) as error:
        targets.target(load_setup(path), "none", 0)
    assert "\n" not in str(error.value)


def test_what_is_made_of_it_is_recognised_in_the_store(world):
    book = open_own(world())
    attack = book.attack("none")
    assert not success.is_there(attack)
    inversion.reconstruct(attack)
    assert success.is_there(attack)
    frame = pd.DataFrame(inversion.reconstruct(attack).history)
    assert len(frame) == 2
