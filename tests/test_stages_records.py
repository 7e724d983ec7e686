"""Records: what tables say of a run outlives its networks and images, exactly, and is small."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import attacked_book

from lib import store
from lib.errors import UserError
from lib.reports import attack_report, referee_report
from lib.reports.workbook import Workbook
from lib.run import batch, publish
from lib.run import plan as planning
from lib.run.__main__ import main
from lib.stages import inversion, measures, records, success, targets
from lib.stages.inversion import Attack
from lib.store import Stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture
def book(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workbook:
    return attacked_book(folder, monkeypatch)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Committed results of this test's own."""
    monkeypatch.setattr(store, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path)
    monkeypatch.setattr(publish, "run_dir", lambda _: Path(os.environ["RESULTS_DIR"]))
    return tmp_path


def forget(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Another machine: an empty cache, and nothing may be made in it."""
    monkeypatch.setenv("MIDRE_CACHE", str(place / "elsewhere"))
    for room, name in (
        (targets, "train_classifier"),
        (inversion, "reconstruct"),
        (inversion, "judge_reconstructions"),
    ):
        monkeypatch.setattr(room, name, lambda *_, **__: pytest.fail("made anew"))


def test_every_table_is_made_of_records_alone(book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch):
    runs = [*attack_report.runs(book, white_box=True), *referee_report.runs(book)]
    before = (
        success.measure(runs),
        [measures.attack_rows(run) for run in runs],
        referee_report.verdicts(book),
        [records.answers_of(run) for run in runs],
    )
    written = batch.copy_records(book.setup.name)
    assert {path.name.split("-")[0] for path in written} == set(batch.RECORDS) - {"evasion", "backdoor"}
    assert batch.copy_records(book.setup.name) == [], "kept once"
    for role in ("main", "panel_1"):  # the referee also asks what the judges say of photos
        stage = inversion.photos_stage(book.setup, targets.judge_stage(book.setup, role), role)
        for source in (stage, targets.judge_stage(book.setup, role)):
            for path in store.cache_dir().glob(f"{source.stem}.*"):
                shutil.copy2(path, store.RECORDS)
    forget(monkeypatch, shelf)
    for old, new in zip(before[0], success.measure(runs), strict=True):
        assert all(torch.equal(old.hits[judge], new.hits[judge]) for judge in old.hits)
        assert all(torch.equal(old.before[judge], new.before[judge]) for judge in old.before)
        assert old.cost == new.cost and torch.equal(old.faces, new.faces) and len(old.faces) == 3
    assert json.dumps(before[1]) == json.dumps([measures.attack_rows(run) for run in runs])
    assert {m: v.sentence() for m, v in before[2].items()} == {
        m: v.sentence() for m, v in referee_report.verdicts(book).items()
    }
    for old, run in zip(before[3], runs, strict=True):
        new = records.answers_of(run)
        assert old.steps == new.steps and torch.equal(old.right["test"], new.right["test"])


def test_the_faces_kept_look_like_what_was_made(book: Workbook):
    run = book.attack("none", budget="quick")
    (outcome,) = success.measure([run])
    made = inversion.reconstruct(run)
    images = inversion.pictures(run, [0, 1, 2], made.selected[:, :1])[:, 0]
    assert outcome.faces.shape == images.shape and (outcome.faces - images).abs().mean() < 0.05
    (few,) = success.measure([book.attack("none", budget="quick", people=2)])
    assert len(few.faces) == 0 and few.people.tolist() == [0, 2], "a sheet would lack a person"


def test_a_plan_counts_a_recorded_attack_as_there(
    book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    run, missing = (
        book.attack("none", attack="ppa+eot2", budget="quick", attack_seed=seed) for seed in (0, 5)
    )
    success.measure([run])
    batch.copy_records(book.setup.name)
    monkeypatch.setenv("MIDRE_CACHE", str(shelf / "elsewhere"))
    monkeypatch.setattr(planning, "recorded", lambda _: [run, missing])
    there = {
        step.stage.params.get("seed"): step.there
        for step in planning.plan(book)
        if "eot2" in step.stage.label
    }
    assert there == {0: True, 5: False}


def test_keeping_a_study_makes_nothing(book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch):
    run, missing = book.attack("none", budget="quick"), book.attack("none", budget="quick", attack_seed=7)
    inversion.reconstruct(run)
    monkeypatch.setattr(batch, "recorded", lambda _: [run, missing])
    first, again = batch.keep(book), batch.keep(book)
    assert again == [], "what is kept stays as it is"
    written = first
    assert success.is_there(run) and not success.is_there(missing)
    assert any(path.parent.name == "records" and path.name.startswith("outcome") for path in written)


def lean_study(book: Workbook) -> Workbook:
    study = dataclasses.replace(book.study, referee=[], evaded=[], backdoored=[])
    return dataclasses.replace(book, study=study)


def test_a_batch_makes_what_is_missing_and_goes_on_after_a_failure(
    book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = [book.attack(d, budget="quick", attack_seed=9) for d in ("none", "re(0.1,0.4)")]
    broken = book.attack(
        "none", attack="kedmi", prior="eigenfaces", attack_seed=9
    )  # it needs a prior with a critic
    monkeypatch.setattr(batch, "recorded", lambda _: [runs[0], broken, runs[1]])
    lean = lean_study(book)
    targets.headline(book.setup, "none")
    units = batch.missing(lean)
    assert list(units) == [run.target_stage().stem for run in runs], "a model a unit"
    assert [len(unit) for unit in units.values()] == [4, 2]
    assert [len(unit) for unit in batch.missing(lean, "re(0.1,0.4)").values()] == [2]
    said: list[str] = []
    failures = batch.make(lean, show=said.append)
    assert said[0] == "6 records of 2 models to make" and len(said) == 7
    assert len(failures) == 2 and all("kedmi" in line and "critic" in line for line in failures)
    assert all(store.exists(success.stage(run)) for run in runs)
    assert len(list(store.RECORDS.glob("outcome-*.json"))) >= 2, "kept"
    assert list(batch.missing(lean)) == [runs[0].target_stage().stem], "only what failed is left"


def test_a_unit_is_made_alone_and_its_records_are_kept(
    book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    runs = [book.attack(d, budget="quick", attack_seed=7) for d in ("none", "re(0.1,0.4)")]
    monkeypatch.setattr(batch, "recorded", lambda _: runs)
    lean = lean_study(book)
    monkeypatch.setattr("lib.reports.workbook.open_workbook", lambda _: lean)
    targets.headline(book.setup, "none")
    name = runs[0].target_stage().stem
    assert main(["batch", "toy", "--unit", name]) == 0
    assert success.is_there(runs[0]) and not success.is_there(runs[1])
    assert (store.RECORDS / f"{success.stage(runs[0]).stem}.json").exists()
    assert "attack seed 7, outcome: " in capsys.readouterr().out
    assert main(["batch", "toy", "--unit", name]) == 0 and capsys.readouterr().out == "", "made before"
    monkeypatch.setitem(batch.KINDS, "outcome", (batch.KINDS["outcome"][0], lambda _: 1 / 0))
    assert main(["batch", "toy", "--unit", runs[1].target_stage().stem]) == 1
    assert "failed, ZeroDivisionError" in capsys.readouterr().out


def test_training_lengths_are_chosen_first_and_for_what_matches_alone(
    book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = [book.attack(d, budget="quick") for d in ("none", "early(0.5)", "re(0.1,0.4)")]
    monkeypatch.setenv("MIDRE_CACHE", str(shelf / "elsewhere"))
    monkeypatch.setattr(batch, "recorded", lambda _: runs)
    lean = lean_study(book)
    made: list[list[batch.Task]] = []
    with monkeypatch.context() as patched:
        patched.setattr(targets, "target", lambda *_, **__: pytest.fail("trained while it was planned"))
        chosen = batch.lengths(lean)
        assert list(chosen.values()) == [[("selection", runs[0])]], "the others' is the same, or there is one"
        assert [attack for ((_, attack), _) in batch.missing(lean).values()] == runs[2:]
        assert batch.lengths(lean, "re(0.1,0.4)") == {} and len(batch.lengths(lean, "none x2")) == 1
        patched.setattr(batch, "_make", lambda _, unit, __: made.append(unit) or [])
        patched.setattr(batch, "keep", lambda _: None)
        assert batch.make(lean, show=lambda _: None) == []
    assert [[kind for kind, _ in unit] for unit in made] == [["selection"], ["outcome", "measured"]]
    said: list[str] = []
    assert batch.make_unit(lean, next(iter(chosen)), show=said.append) == []
    assert "training length of none" in said[0] and runs[0].is_sized


@pytest.fixture
def snakemake(tmp_path: Path):
    """Snakemake in a copy of the project, with a cache and results of its own."""
    for name in ("lib", "notebooks"):
        shutil.copytree(store.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(store.ROOT / name, tmp_path)
    hidden = {"PYTHONPATH", "RESULTS_DIR", "MIDRE_DATA"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}

    def run(*arguments: str, match: str) -> str:
        command = [sys.executable, "-m", "snakemake", *arguments]
        done = subprocess.run(
            [*command, "--config", "setup=digits", f"match={match}"],
            cwd=tmp_path,
            env={**environment, "MIDRE_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_snakemake_lists_what_is_missing(snakemake):
    said = snakemake("-n", "--quiet", "host", match="ppa eigenfaces quick")
    assert "checkpoint lengths" in said and "digits training length of re(0.1,0.4)" in said
    assert "digits target re(0.1,0.4) x1 seed 0: 2 records" in said


@pytest.mark.slow
def test_snakemake_makes_a_study_once(snakemake, tmp_path: Path):
    match = "re(0.1,0.4) x1 seed 0 ppa eigenfaces quick"
    snakemake("--cores", "2", match=match)
    kept = [path.name for path in (tmp_path / "results" / "records").glob("*.json")]
    assert any(name.startswith("outcome") for name in kept) and any(n.startswith("selection") for n in kept)
    assert list((tmp_path / "results" / "tables").glob("digits__*ppa*.csv")), "and its tables"
    assert "unit" not in snakemake("-n", "--quiet", "host", match=match), "nothing is left"


def test_keeping_attacks_nobody_for_a_record_that_is_missing(
    book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    run = book.attack("none", budget="quick", attack_seed=8)
    success.measure([run])
    monkeypatch.setattr(batch, "tasks", lambda _: [("outcome", run), ("measured", run)])
    monkeypatch.setattr(batch, "recorded", lambda _: [run])
    for path in store.cache_dir().glob(f"{inversion.reconstruction_stage(run, run.target_stage()).stem}.*"):
        path.unlink()
    monkeypatch.setattr(inversion, "reconstruct", lambda *_: pytest.fail("attacked anew"))
    batch.keep(book)
    assert not store.exists(measures.measured_stage(run)), "its images are gone"


def attacked_again(run: Attack) -> None:
    """What another machine makes of the same attack: images that differ a little."""
    source = records.source(run)
    found = store.find(source)
    store.put(source, found.tensors | {"latents": found.tensors["latents"] + 0.05}, found.meta)


def test_records_of_an_attack_are_of_the_same_images(
    book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    run = book.attack("none", budget="quick", attack_seed=9)
    (first,) = success.measure([run])
    assert first.of == store.content(records.source(run)) is not None
    batch.copy_records(book.setup.name)
    attacked_again(run)
    assert batch._make(book, [("refereed", run)], print) == []
    (again,) = success.measure([run])
    assert again.of == store.content(records.source(run)) != first.of, "made anew"
    assert store.find(referee_report.stage(run)).meta["of"] == again.of
    monkeypatch.setenv("MIDRE_CACHE", str(shelf / "elsewhere"))
    (kept,) = success.measure([run])
    assert kept.of == again.of, "without the images what is kept counts"


def test_the_referee_refuses_records_of_two_runs(
    book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = referee_report.runs(book)
    referee_report.verdicts(book)
    stage = success.stage(runs[0])
    path = store.cache_dir() / f"{stage.stem}.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"meta": before["meta"] | {"of": "another"}}))
    try:
        assert referee_report.verdicts(book), "its images are there: made anew"
        path.write_text(json.dumps(before | {"meta": before["meta"] | {"of": "another"}}))
        monkeypatch.setattr(store, "content", lambda _: None)
        with pytest.raises(UserError, match="two runs of it; remove both files"):
            referee_report.verdicts(book)
    finally:
        path.write_text(json.dumps(before))


def test_rows_are_packed_exactly():
    rows = [{"value": 0.1 + 0.2, "n": 3, "low": math.nan, "metric": "kid", "seed": None}]
    (again,) = records.unpack(records.pack(rows))
    assert again["value"] == 0.1 + 0.2 and math.isnan(again["low"]) and again["seed"] is None


def test_a_damaged_record_is_refused(book: Workbook, shelf: Path, monkeypatch: pytest.MonkeyPatch):
    run = book.attack("none", budget="quick")
    success.measure([run])
    batch.copy_records(book.setup.name)
    monkeypatch.setenv("MIDRE_CACHE", str(shelf / "elsewhere"))
    path = store.RECORDS / f"{success.stage(run).stem}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="damaged"):
        success.measure([run])


def test_committed_records_are_whole_and_small():
    folder = store.ROOT / "results" / "records"
    for path in folder.glob("*.json"):
        document = json.loads(path.read_text())
        stage = Stage(*(document["stage"][k] for k in ("kind",)), document["label"], document["stage"]["params"],
                      tuple(document["stage"]["upstream"]), document["stage"]["version"])  # fmt: skip
        assert stage.stem == path.stem and stage.kind in batch.RECORDS
        assert store.find(stage) is not None, "its hash is checked"
    assert sum(path.stat().st_size for path in folder.glob("*")) < 60e6, "records are kilobytes each"
