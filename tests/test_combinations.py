"""Pairs of defences and their parts: the interaction against closed forms, and the report against stored runs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY

from lib import results, statistics
from lib.errors import UserError
from lib.reports import combination_report as report
from lib.reports import sweep
from lib.reports.workbook import Workbook
from lib.run.plan import plan
from lib.setups import Study, load_setup
from lib.stages import measures
from lib.statistics import interaction

PAIR = "re(0.1,0.4)+negls(-0.05)"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbook:
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(TINY)))
    study = Study(
        "digits", ["none"], [0], [0], ["ppa"], "eigenfaces", "headline", combined=[PAIR],
        swept="ppa eigenfaces quick",
    )  # fmt: skip
    return Workbook(load_setup(path), study, ("none",), (0,), (0,))


def people(*, count: int = 400) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.3, 0.6, count)


def test_effects_that_add_up_have_no_interaction() -> None:
    base = people()
    found = interaction(base - 0.3, base - 0.1, base - 0.2, base, seed=0)
    assert found.value == pytest.approx(0, abs=1e-12) and found.low == pytest.approx(found.high, abs=1e-12)


def test_interaction_is_pair_minus_parts_plus_neither() -> None:
    rng = np.random.default_rng(1)
    both, first, second, neither = rng.uniform(size=(4, 300))
    found = interaction(both, first, second, neither, seed=0)
    per_person = both - first - second + neither
    assert found.value == pytest.approx(per_person.mean())
    error = per_person.std(ddof=1) / np.sqrt(300)
    assert found.standard_error() == pytest.approx(error, rel=0.1), (
        "paired: people are redrawn for all four at once"
    )


def test_interaction_counts_photos_where_asked() -> None:
    both, photos = np.array([1.0, 0.0]), [3, 1]
    found = interaction(both, np.zeros(2), np.zeros(2), np.zeros(2), seed=0, photos=photos)
    assert found.value == pytest.approx(3 / 4)


def test_training_seeds_are_redrawn_for_each_model() -> None:
    base = people(count=50)
    wavering = np.stack([base - 0.2, base + 0.2])  # the same on average, but not twice
    found = interaction(wavering, base, base, base, seed=0)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((-0.2, 0.2)), (
        "a quarter of the redraws has one seed twice"
    )


def test_models_that_agree_on_everybody_are_bounded_not_certain() -> None:
    found = interaction(*np.ones((4, 30)), seed=0)
    assert found.value == 0 and found.high == -found.low == 2 * statistics.zero_event_bound(30)


def test_the_four_cover_the_same_people() -> None:
    with pytest.raises(UserError, match="same identities in all four, got 3, 3, 2, 3"):
        interaction(np.ones(3), np.ones(3), np.ones(2), np.ones(3), seed=0)


def test_the_report_is_of_the_stored_runs(book: Workbook) -> None:
    table, found = report.measure(book), report.interactions(book)
    assert list(table["defence"]) == ["none", "re(0.1,0.4)", "negls(-0.05)", PAIR]
    assert report.adds_up(table, found) and report.made_of_parts(table)
    equal = table.assign(steps=16)  # which of two lengths is chosen may differ from machine to machine
    assert report.other_lengths(equal) == [] and "trained equally long" in report.caption(book, equal)
    longer = equal.assign(steps=equal["steps"].where(equal["role"] != "first", 99))
    assert report.other_lengths(longer) == ["RE [.1, .4] (99 steps)"]
    assert "Not trained equally long: RE [.1, .4] (99 steps)." in report.caption(book, longer)
    assert not report.made_of_parts(table.assign(defence=table["defence"].to_list()[::-1]))
    assert not report.adds_up(table, found.assign(main=table["main"].iloc[0]))
    points = sweep.points(book, [sweep.attack_on(book, name) for name in table["defence"]], "verifier")
    none, first, second, both = points.attack[0].mean(1)
    assert found["verifier"].iloc[0].value == pytest.approx(both - first - second + none)
    none, first, second, both = sweep.points(
        book, [sweep.attack_on(book, d) for d in table["defence"]]
    ).attack[0]
    shown = report.shown_interactions(found)
    assert not shown.isna().any().any() and len(shown) == len(found)
    assert found["p"].iloc[0] == statistics.sign_flip_p_value(
        both - first - second + none, seed=measures.SEED
    )
    saved = results.load_curves("*combinations", folder=results.output_dir("digits"))
    assert dict(zip(saved["evaluator"], saved["value"], strict=True)) == pytest.approx(
        {judge: found[judge].iloc[0].value for judge in report.JUDGES}, abs=1e-6
    )
    assert any(PAIR in step.stage.label and " ppa " in step.stage.label for step in plan(book))


def test_the_words_follow_the_numbers(book: Workbook) -> None:
    interval = statistics.Interval
    sure, unsure = interval(-0.2, -0.3, -0.1, 60), interval(0.02, -0.1, 0.2, 60)
    row = {"pair": PAIR, "main": sure, "main over first": interval(0.3, 0.2, 0.4, 60)}
    row |= {"p": 0.001, "p over parts": 0.001}
    strong = report.what_we_saw(
        book, pd.DataFrame([row | {"main over second": interval(0.1, 0.05, 0.2, 60)}])
    )
    assert "more than the sum" in strong and "takes more from the attack than either alone" in strong
    weak = report.what_we_saw(book, pd.DataFrame([row | {"main": unsure, "main over second": unsure}]))
    assert "not established to differ from their sum" in weak and "not established to take more" in weak
    many = report.what_we_saw(
        book,
        pd.DataFrame([row | {"main over second": row["main over first"], "p": 0.2, "p over parts": 0.06}]),
    )
    assert "not established to differ from their sum" in many and "not established to take more" in many
    large = dataclasses.replace(book)
    vars(large)["conclusive"] = True  # whatever its few people
    two = [row | {"main over second": over} for over in (row["main over first"], unsure)]
    said = report.what_we_saw(large, pd.DataFrame(two))
    assert "either part alone: 1 of 2; to take another amount than the sum of both: 2.**" in said


def test_only_pairs_are_combined(book: Workbook) -> None:
    study = dataclasses.replace(book.study, combined=["re(0.1,0.4)"])
    with pytest.raises(UserError, match="expected pairs"):
        report.measure(dataclasses.replace(book, study=study))
