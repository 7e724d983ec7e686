"""Nothing long starts unasked: what is expected, refused and announced, and what the batch runner says."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import TINY
from yaml import safe_dump

from lib import store
from lib.reports.workbook import Workbook, open_workbook
from lib.run import notebooks
from lib.setups import load_setup
from lib.stages import inversion, progress, targets
from lib.store import Missing, Stage


@pytest.fixture
def book(tmp_path, monkeypatch) -> Workbook:
    monkeypatch.delenv("MIDRE_TRAIN", raising=False)
    monkeypatch.delenv("MIDRE_PROGRESS", raising=False)
    (tmp_path / "tiny.yaml").write_text(safe_dump(TINY))
    return open_workbook(str(tmp_path / "tiny.yaml"), ["none"], [0], [0])


def stage(name: str) -> Stage:
    return Stage("target", f"a {name} target", {"setup": "tiny", "name": name})


def never() -> float:
    pytest.fail("estimated")


def test_what_is_there_and_what_the_runner_makes_is_not_estimated(book, monkeypatch):
    store.put(stage("made"), {"w": torch.zeros(1)}, {})
    assert progress.expected(stage("made"), never) == 0
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    assert progress.expected(stage("other"), lambda: 7200) == 7200
    monkeypatch.setenv("MIDRE_PROGRESS", "somewhere")
    assert progress.expected(stage("other"), never) == 0


def test_short_stages_must_not_add_up_to_hours(book, monkeypatch):
    for number in range(10):
        assert progress.expected(stage(str(number)), lambda: 59) == 59
    assert progress.expected(stage("long"), lambda: 7200) == 7200, "the store refuses it"
    with pytest.raises(Missing, match="a last target is not there yet, .* about 10 min; .*SETUP=tiny"):
        progress.expected(stage("last"), lambda: 59)
    assert progress.expected(stage("short"), lambda: 2) == 2
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    assert progress.expected(stage("last"), lambda: 59) == 59


def test_a_notebook_says_what_starts_and_how_long_it_takes(book, monkeypatch, capsys):
    progress.expected(stage("first"), lambda: 40)
    assert capsys.readouterr().out == "", "not outside of a notebook"
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    for name, seconds in (("quick", 1), ("slow", 40), ("refused", 7200)):
        progress.expected(stage(name), lambda: seconds)  # noqa: B023 (called at once)
    assert capsys.readouterr().out == "a slow target is not there yet: making it takes about 40 s\n"


def test_a_long_attack_does_not_start_unasked(book, monkeypatch):
    monkeypatch.setattr(inversion, "attack_seconds", lambda *_: 7200.0)
    attack = book.attack("none")
    attack.target()
    with pytest.raises(Missing, match=r"attack seed 0 is not there yet and takes about 2\.0 h"):
        inversion.reconstruct(attack)
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    made = inversion.reconstruct(attack)
    monkeypatch.delenv("MIDRE_TRAIN")
    monkeypatch.setattr(inversion, "attack_seconds", lambda *_: never())
    assert torch.equal(inversion.reconstruct(attack).latents, made.latents)


def test_estimating_an_attack_leaves_the_network_and_the_result_alone(book):
    attack = book.attack("none")
    model = attack.target().model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert 0 < inversion.attack_seconds(attack, model) < 60
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_the_runner_may_train(write_notebook, tmp_path, monkeypatch):
    monkeypatch.delenv("MIDRE_TRAIN", raising=False)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    write_notebook(
        "01_x", "setup: str = 'digits'  # world", "import os\nprint(os.environ.get('MIDRE_TRAIN'))"
    )
    copy = notebooks.run_notebook("01", {}, tmp_path / "01.ipynb")
    assert nbformat.read(copy, as_version=4).cells[-1].outputs[0].text.strip() == "1"


# --- how many people ----------------------------------------------------------------------------------


def test_people_are_counted_else_named_else_guessed(book, monkeypatch):
    assert inversion.people_of(load_setup("digits")) == 5, "the setup's classes"
    assert inversion.people_of(load_setup("folder")) == inversion.GUESSED_PEOPLE == 62
    assert inversion.people_of(book.setup) == 3
    made = SimpleNamespace(meta={"counts": {"train": [40, 9]}})
    monkeypatch.setattr(inversion.store, "find", lambda stage: made if stage.kind == "data" else None)
    assert inversion.people_of(load_setup("folder")) == 9, "the photos decide"


def test_an_attack_is_estimated_on_as_many_classes_as_there_are_people(book, monkeypatch):
    built, build = [], targets.build_classifier
    monkeypatch.setattr(inversion, "_PROBES", {})
    monkeypatch.setattr(
        inversion,
        "build_classifier",
        lambda spec, people, size: built.append(people) or build(spec, people, size),
    )
    few = inversion.attack_seconds(book.attack("none"))
    assert built == [3] and few > 0
    one = dataclasses.replace(book.attack("none"), people=1)
    assert inversion.attack_seconds(one) == pytest.approx(few / 3) and built == [3], (
        "one probe for all attacks"
    )
