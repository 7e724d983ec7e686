"""Setup and study files: everything shipped loads; unknown keys, wrong types and names are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lib.defences import build, canonical
from lib.errors import UserError
from lib.reports.workbook import open_workbook
from lib.results.schema import PUBLISHED
from lib.run import settle
from lib.run.notebooks import study_notebooks
from lib.setups import load_setup, load_study, name_of, setup_names
from lib.setups.schema import FOLDER
from lib.stages.whole import check_setup


@pytest.mark.parametrize("name", setup_names())
def test_shipped_setups_are_whole(name):
    setup = load_setup(name)
    assert setup.name == name
    check_setup(setup)


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "studies").glob("*.yaml")))
def test_shipped_studies_name_what_exists(name):
    study, setup = load_study(name), load_setup(load_study(name).setup)
    for defence in study.defences:
        assert canonical(defence) == defence
        build(defence, setup.defences)
    assert study.prior in setup.priors
    for attack in study.attacks:
        setup.budget(attack, study.budget)


def test_the_four_worlds_are_there():
    assert set(setup_names()) >= {"digits", "lfw64", "lfw64_funneled", "folder"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"image_size": "large"}, "expected int"),
        ({"data": {"private": {"source": "digits", "colour": 1}, "public": {"source": "digits"}}}, "colour"),
        ({"snapshots": 0.5}, "snapshots"),
        ({"conclusive": 1}, "expected bool"),
    ],
)
def test_a_changed_setup_is_refused_with_the_key(tmp_path, change, word):
    content = yaml.safe_load((FOLDER / "digits.yaml").read_text()) | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=word) as error:
        load_setup(path)
    assert "\n" not in str(error.value)


MAIN = {"network": {"kind": "ir"}, "recipe": {"steps": 8}}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"evaluators.main.recipe.stepz": 3}, r"digits\.evaluators\.main\.recipe: unknown key 'stepz'"),
        ({"target.recipe.learning_rate": "2e-3"}, r"digits\.target\.recipe\.learning_rate: expected float"),
        ({"target.recipe": {"batch": 64}}, r"digits\.target\.recipe: key 'steps' is missing"),
        ({"verifier.recipe.batch": -4}, "batch >= 1"),
        ({"verifier.network.kind": "resnet"}, "'resnet' is unknown"),
        ({"verifier.network.feature_size": -4}, "correct the setup's network"),
        ({"evaluators.main.pretrained": {"cosine": 16.0}}, "pretrained: expected sets.* add sets"),
        ({"evaluators.main.defence": "ree(0.1)"}, "'ree': expected one of"),
        ({"evaluators": {"first": MAIN}}, r"digits\.evaluators: expected main, got first"),
        ({"priors.eigenfaces": {"component": 3}}, r"priors\.eigenfaces: unknown key 'component'"),
        ({"priors.pixels": {}}, "expected some of eigenfaces, .* got 'pixels'"),
        ({"attacks.pppa": {"headline": {}}}, "got 'pppa'"),
        ({"attacks.ppa.headline.steps": 0}, "budget steps"),
        ({"students": [{"network": {"kind": "nothing"}}]}, "'nothing' is unknown"),
        ({"robustness.evasion.colour": 1}, "unknown key 'colour'"),
        ({"false_accept_rate": 5.0}, r"false_accept_rate: expected a number in \(0,1\), got 5"),
        ({"data.test": 1.5}, "test=1.5"),
        ({"image_size": 0}, "image_size: expected at least 8"),
        ({"multiples": {}}, "multiples: expected a defence"),
        ({"multiples.none": [0]}, "multiples: expected training lengths above 0"),
        ({"snapshots": [1.5]}, "snapshots"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_fail_hours_later_is_refused_when_the_setup_is_opened(tmp_path, changes, word):
    content = yaml.safe_load((FOLDER / "digits.yaml").read_text())
    for place, value in changes.items():
        *above, key = place.split(".")
        part = content
        for name in above:
            part = part.setdefault(name, {})
        part[key] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=word) as error:
        open_workbook(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(error.value)


def test_missing_keys_unknown_names_and_broken_files(tmp_path):
    content = yaml.safe_load((FOLDER / "digits.yaml").read_text())
    del content["verifier"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="'verifier' is missing"):
        load_setup(path)
    with pytest.raises(UserError, match="expected one of"):
        load_setup("nonesuch")
    path.write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_setup(path)
    path.write_text("- a list")
    with pytest.raises(UserError, match="mapping"):
        load_setup(path)


def test_a_setup_without_a_study_runs_on_the_usual_one():
    assert load_study("mine") == replace(load_study("folder"), setup="mine")
    assert load_study("digits").setup == "digits"


@pytest.mark.parametrize(
    "name", ["../elsewhere", "a/b", ".hidden", "", "two words", "müller", "_mine", "-mine", "mine\n"]
)
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    content = yaml.safe_load((FOLDER / "digits.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**content, "name": name}))
    with pytest.raises(UserError, match=r"mine\.yaml\.name: expected a-z, A-Z, 0-9"):
        load_setup(tmp_path / "mine.yaml")


def test_the_name_of_a_file_is_what_it_says_in_it(tmp_path):
    content = yaml.safe_load((FOLDER / "digits.yaml").read_text())
    (tmp_path / "file.yaml").write_text(yaml.safe_dump({**content, "name": "mine"}))
    assert name_of(str(tmp_path / "file.yaml")) == "mine" and name_of("lfw64") == "lfw64"


def test_a_given_network_has_one_length_and_no_frontier(tmp_path):
    content = yaml.safe_load((FOLDER / "folder.yaml").read_text())
    content["target"]["network"] = {"kind": "external", "factory": "a:b", "weights": "w"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    setup = load_setup(tmp_path / "mine.yaml")
    assert setup.is_external and setup.multiples == {"none": [1.0]} and setup.snapshots == []


def test_unknown_budget_and_attack():
    setup = load_setup("digits")
    with pytest.raises(UserError, match="no budget"):
        setup.budget("ppa", "huge")
    with pytest.raises(UserError, match="no attack"):
        setup.budget("magic", "quick")


@pytest.mark.parametrize("path", sorted((PUBLISHED / "settled").glob("*.csv")), ids=lambda path: path.stem)
def test_an_attack_has_the_constants_that_its_throw_away_target_chose(path: Path) -> None:
    name, _, attack = path.stem.partition("__")
    trials = settle.tried(load_setup(name))
    rows = trials[trials["attack"] == attack]
    assert len(rows) >= 2 and rows["chosen"].tolist() == [True] + [False] * (len(rows) - 1)


def test_every_grid_of_the_study_on_faces_was_tried_whole() -> None:
    setup = load_setup("lfw64")
    assert setup.grids and {attack for attack, *_ in settle.settled(setup)} == set(setup.grids)


@pytest.mark.parametrize("name", setup_names())
def test_every_shipped_study_has_something_for_every_notebook(name):
    assert {n[:2] for n in study_notebooks(name)} == {f"{n:02d}" for n in range(1, 18)}


def test_notebooks_without_a_list_are_left_out(monkeypatch):
    bare = replace(load_study("digits"), adaptive=[], strengths={})
    monkeypatch.setattr("lib.run.notebooks.load_study", lambda _: bare)
    left = {name[:2] for name in study_notebooks("digits")}
    assert not left & {"11", "16"} and {"09", "10", "17"} <= left


@pytest.mark.parametrize("name", setup_names())
def test_every_listed_defence_can_be_built_and_is_spelled_as_in_tables(name):
    setup, study = load_setup(name), load_study(name)
    swept = [text for defences in study.strengths.values() for text in defences]
    for text in [*study.defences, *study.pages, *study.met_defences, *study.repeated, *swept]:
        build(text, setup.defences)
        assert canonical(text, setup.defences) == text
    assert len(swept) == len(set(swept))
