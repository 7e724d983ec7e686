"""The schema refuses what readers could misread; sentences and README numbers follow the tables."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lib.errors import UserError
from lib.results import (
    COLUMNS,
    PUBLISHED,
    advantage_sentence,
    caption,
    difference_sentence,
    load_curves,
    load_identities,
    load_tables,
    results_dir,
    run_dir,
    save_curves,
    save_identities,
    save_table,
    sentence,
    summarise,
)
from lib.results.readme import PAGES, numbers_outside_markers, refresh
from lib.runtime import ROOT
from lib.statistics import Interval

ROW = {
    "setup": "lfw64",
    "defence": "none",
    "training_steps": 1000,
    "prior": "eigenfaces",
    "attack": "ppa",
    "budget": "quick",
    "training_seed": 0,
    "attack_seed": 1,
    "headline": 1,
    "metric": "attack_accuracy_top1",
    "evaluator": "main",
    "split": "test",
    "value": 0.9,
    "low": 0.85,
    "high": 0.95,
    "n": 62,
}
TARGET = {
    "prior": "",
    "attack": "",
    "budget": "",
    "attack_seed": None,
    "evaluator": "",
    "metric": "natural_accuracy",
}


def row(**changes):
    return {**ROW, **changes}


def erased(**changes):
    return row(defence="re(0.1,0.4)", value=0.5, low=0.4, high=0.6, **changes)


def test_table_survives_a_round_trip_with_its_types(tmp_path):
    target = row(**TARGET)
    path = save_table([ROW, target], "run_1")
    assert path == results_dir() / "tables" / "run_1.csv"
    loaded = load_tables("run_*")
    assert tuple(loaded.columns) == COLUMNS
    assert loaded["value"].dtype == np.float64 and loaded["n"].dtype == "Int64"
    assert loaded.loc[0].to_dict() == ROW
    assert loaded.loc[1, "attack"] == "" and loaded.loc[1, "attack_seed"] is pd.NA
    assert sorted(p.name for p in path.parent.iterdir()) == ["run_1.csv"], "files written aside must not stay"


def test_without_results_dir_committed_results_are_read_but_not_written(monkeypatch, tmp_path):
    from lib.results import output_dir

    monkeypatch.delenv("RESULTS_DIR")
    assert results_dir() == PUBLISHED
    assert output_dir("digits") == run_dir("digits") == PUBLISHED / "runs" / "digits"
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    assert results_dir() == output_dir("digits") == tmp_path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"colour": "red"}, "unknown \\['colour'\\]"),
        ({"metric": "AttAcc"}, "metric: expected snake_case"),
        ({"evaluator": "Main net"}, "evaluator: expected snake_case"),
        ({"attack": "ppa.eot4"}, "attack: expected snake_case"),
        ({"value": 90.0}, "value: expected a fraction"),
        ({"low": -0.1}, "low: expected a fraction"),
        ({"low": 0.97, "high": 0.95}, "low <= high"),
        ({"value": float("nan")}, "value: expected a finite number"),
        ({"metric": "kid", "value": float("inf")}, "value: expected a finite number"),
        ({"value": "high"}, "value: expected a number"),
        ({"n": 0}, "n: expected an integer, at least 1"),
        ({"n": 1.5}, "n: expected an integer"),
        ({"n": None}, "n: expected a value"),
        ({"setup": ""}, "setup: expected a value"),
        ({"headline": 2}, "headline: expected an integer"),
        ({"training_seed": -1}, "training_seed: expected an integer"),
        ({"budget": ""}, "budget: expected a budget beside an attack"),
        ({"attack_seed": None}, "attack_seed: expected a seed beside an attack"),
        ({"attack": ""}, "attack_seed: expected empty without an attack"),
        ({"defence": "re(0.10, .4)"}, "defence: expected a name as"),
        ({"defence": "re(0.1"}, "defence"),
        ({"defence": ""}, "defence: expected a defence beside"),
        ({"setup": "two\nlines"}, "setup: expected one line"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(changes, expected):
    with pytest.raises(UserError, match=expected):
        save_table([row(**changes)], "bad")
    assert not results_dir().exists()


def test_missing_column_duplicates_mixed_setups_and_bad_names_are_refused():
    incomplete = dict(ROW)
    del incomplete["split"]
    with pytest.raises(UserError, match="missing \\['split'\\]"):
        save_table([incomplete], "bad")
    with pytest.raises(UserError, match="duplicated row"):
        save_table([ROW, row(value=0.91)], "bad")
    with pytest.raises(UserError, match="one setup"):
        save_table([ROW, row(setup="digits")], "bad")
    for name in ("../escape", "a/b", "", "table.csv"):
        with pytest.raises(UserError, match="plain file name"):
            save_table([ROW], name)
    with pytest.raises(UserError, match="at least one row"):
        save_table([], "bad")


def test_nan_only_where_it_is_announced():
    nan = float("nan")
    undefined = row(metric="scaled_leakage", value=nan, low=nan, high=nan)
    save_table([undefined], "undefined", allow_missing={"scaled_leakage"})
    assert np.isnan(load_tables("undefined")["value"][0])
    with pytest.raises(UserError, match="finite"):
        save_table([undefined, row(value=nan)], "bad", allow_missing={"scaled_leakage"})


def test_a_failed_write_leaves_the_earlier_table(monkeypatch):
    path = save_table([ROW], "run")
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_table([row(value=0.86)], "run")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["run.csv"]


def test_reading_a_foreign_file_says_which_and_why():
    path = save_table([ROW], "run")
    path.write_text("setup,value\nlfw64,1\n")
    with pytest.raises(UserError, match="run.csv: expected the columns setup,defence"):
        load_tables()


def test_empty_folder_gives_an_empty_table_with_columns(tmp_path):
    assert tuple(load_tables(folder=tmp_path).columns) == COLUMNS
    assert load_tables(folder=tmp_path).empty


def test_curves_and_identities():
    common = {k: v for k, v in ROW.items() if k not in ("headline", "low", "high", "split")}
    save_identities([{**common, "identity": k, "value": k % 2, "n": 8} for k in range(4)], "run")
    assert load_identities()["identity"].tolist() == ["0", "1", "2", "3"]
    point = {k: v for k, v in ROW.items() if k != "headline"} | {"curve": "attack_budget", "x_name": "steps"}
    save_curves([{**point, "x": x, "value": 0.9} for x in (10, 20)], "run")
    assert load_curves()["x"].tolist() == [10.0, 20.0]
    with pytest.raises(UserError, match="x: expected a value|x: expected a finite"):
        save_curves([{**point, "x": None}], "bad")


def test_summary_joins_seeds_and_never_narrows_an_interval():
    table = pd.DataFrame(
        [ROW, row(training_seed=1, value=0.8, low=0.7, high=0.9, n=60), row(headline=0, budget="big")]
    )
    summary = summarise(table)
    assert len(summary) == 1
    only = summary.iloc[0]
    assert (only.value, only.low, only.high) == pytest.approx((0.85, 0.7, 0.95))
    assert (only.n, only.runs) == (60, 2)


def test_sentence_follows_the_numbers():
    options = {"metric": "attack_accuracy_top1", "defence": "re(0.1,0.4)"}
    apart = pd.DataFrame([ROW, erased()])
    assert sentence(apart, **options).endswith("re(0.1,0.4) is lower.")
    for fact in ("lfw64", "90.0 % [85.0, 95.0]", "50.0 % [40.0, 60.0]", "n = 62"):
        assert fact in sentence(apart, **options)
    overlapping = pd.DataFrame([ROW, {**erased(), "high": 0.86}])
    assert "no difference established" in sentence(overlapping, **options)
    assert sentence(apart.assign(setup="digits"), **options).endswith("too small to conclude.")
    assert sentence(apart.assign(n=5), **options).endswith("too small to conclude.")
    with pytest.raises(UserError, match="expected one result for .*defence=fe"):
        sentence(apart, metric="attack_accuracy_top1", defence="fe(0.5)")


def test_difference_and_advantage_need_an_interval_that_excludes_zero():
    def difference(*bounds, n=62, setup="lfw64"):
        return difference_sentence(
            Interval(*bounds, n), metric="attack_accuracy_top1", defence="re(0.1,0.4)", setup=setup
        )

    assert difference(-0.3, -0.4, -0.2).endswith("-30 points [-40, -20]: lower.")
    assert difference(0.1, -0.1, 0.3).endswith("no difference established.")
    assert difference(-0.3, -0.4, -0.2, setup="digits").endswith("too small to conclude.")

    def advantage(*bounds, n=62, **more):
        return advantage_sentence(
            Interval(*bounds, n), detectable=0.12, defence="re(0.1,0.4)", setup="lfw64", **more
        )

    assert advantage(0.2, 0.1, 0.3).endswith("re(0.1,0.4) leaks less.")
    assert "not established; a difference of 12.0 points" in advantage(0.05, -0.1, 0.2)
    assert advantage(-0.2, -0.3, -0.1).endswith("worse than stopping early.")
    assert advantage(0.2, 0.1, 0.3, extrapolated=True).endswith("no verdict.")
    assert advantage(float("nan"), float("nan"), float("nan")).endswith("undefined, no verdict.")
    assert advantage(0.2, 0.1, 0.3, n=5).endswith("too small to conclude.")


def test_caption_names_preset_defences_and_n():
    text = caption(pd.DataFrame([ROW, erased()]), metric="attack_accuracy_top1")
    for part in ("Preset lfw64", "none (ppa, eigenfaces) 90.0 %", "re(0.1,0.4)", "n = 62"):
        assert part in text
    assert caption(pd.DataFrame([row(setup="digits")]), metric="attack_accuracy_top1").endswith(
        "Too small to conclude."
    )
    with pytest.raises(UserError, match="expected headline rows"):
        caption(pd.DataFrame([ROW]), metric="kid")


def test_command_prints_all_tables_as_one_csv(tmp_path):
    save_table([ROW], "a", folder=tmp_path)
    save_table([erased()], "b", folder=tmp_path)
    command = [sys.executable, "-m", "lib.results"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    printed = pd.read_csv(io.StringIO(done.stdout))
    assert tuple(printed.columns) == COLUMNS
    assert printed["defence"].tolist() == ["none", "re(0.1,0.4)"]
    absent = subprocess.run(
        [*command, str(tmp_path / "x")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert absent.returncode == 2
    assert absent.stderr.startswith("error: expected a results folder") and absent.stderr.count("\n") == 1


NUMBER = "setup=lfw64 defence=none metric=attack_accuracy_top1 evaluator=main"


def test_readme_markers_are_filled_from_tables_and_notice_change(tmp_path):
    save_table([ROW, row(**TARGET), erased(), {**erased(), **TARGET, "value": 0.55}], "run", folder=tmp_path)
    text = (
        f"It leaks <!-- number: {NUMBER} -->?<!-- /number -->, "
        f"n = <!-- number: {NUMBER} show=n --><!-- /number -->.\n"
        "<!-- table: setup=lfw64 metrics=natural_accuracy,attack_accuracy_top1 "
        "evaluator=main attack=ppa show=value -->\n<!-- /table -->\n"
    )
    filled = refresh(text, folder=tmp_path)
    assert "90.0 % [85.0, 95.0]" in filled and "n = <!-- number: " in filled and "-->62<!--" in filled
    assert "| `re(0.1,0.4)` | 55.0 % | 50.0 % |" in filled
    assert refresh(filled, folder=tmp_path) == filled
    save_table([row(value=0.88), row(**TARGET), erased(), {**erased(), **TARGET}], "run", folder=tmp_path)
    assert "88.0 % [85.0, 95.0]" in refresh(filled, folder=tmp_path) != filled
    assert numbers_outside_markers(filled + " typed 91.2 %") == ["91.2 %"]


def test_readme_tables_compare_judges_and_differences(tmp_path):
    judges = (
        {**ROW, "value": 0.5 + 0.1 * i, "evaluator": name} for i, name in enumerate(("main", "panel_1"))
    )
    save_table([*judges, {**erased(), "evaluator": "panel_1"}], "run", folder=tmp_path)
    query = "metrics=attack_accuracy_top1@main,attack_accuracy_top1@panel_1 show=value"
    filled = refresh(f"<!-- table: {query} --><!-- /table -->", folder=tmp_path)
    assert "| defence | AttAcc, main | AttAcc, panel 1 |" in filled
    assert "| `none` | 50.0 % | 60.0 % |" in filled and "| `re(0.1,0.4)` | – |" in filled
    judge = {**ROW, **TARGET, "defence": "", "training_steps": None, "training_seed": None}
    for name in ("verifier", "verifier_dlib"):
        match = {"metric": "verifier_match", "evaluator": name, "value": 0.6}
        save_table([{**ROW, **match}], name, folder=tmp_path)
        save_table([{**judge, **match, "split": "test"}], f"{name}__ceiling", folder=tmp_path)
    query = "attack=ppa split=test metrics=verifier_match@verifier,verifier_match@verifier_dlib show=value"
    filled = refresh(f"<!-- table: {query} --><!-- /table -->", folder=tmp_path)
    assert "| defence | verifier match rate | verifier match rate, dlib |" in filled
    assert "| `none` | 60.0 % | 60.0 % |" in filled and filled.count("60.0") == 2
    change = {**ROW, "metric": "advantage", "value": -0.021, "low": -0.05, "high": 0.01}
    place = {"curve": "comparison", "x_name": "none", "x": 0.0}
    rows = [{**change, "defence": name, **place} for name in ("none", "re(0.1,0.4)")]
    save_curves([{k: v for k, v in row.items() if k != "headline"} for row in rows], "run", folder=tmp_path)
    query = "from=curves curve=comparison metrics=advantage@main show=points without=none"
    filled = refresh(f"<!-- table: {query} --><!-- /table -->", folder=tmp_path)
    assert "| `re(0.1,0.4)` | -2.1 [-5.0, +1.0] |" in filled and "`none`" not in filled


def test_readme_tables_of_attacks_have_models_in_columns(tmp_path):
    weak = {"attack": "brep", "value": 0.3, "low": 0.2, "high": 0.4}
    other = {**ROW, "attack_seed": 2, "value": 0.8, "low": 0.7}
    save_table([ROW, other, {**ROW, **weak}, erased()], "run", folder=tmp_path)
    query = (
        "setup=lfw64 headline=any metrics=attack_accuracy_top1@main models=none;re(0.1,0.4) "
        f"attacks=ppa/{ROW['prior']}/{ROW['budget']};brep/{ROW['prior']}/quick"
    )
    filled = refresh(f"<!-- table: {query} --><!-- /table -->", folder=tmp_path)
    assert "| attack | prior | AttAcc, main, `none` | AttAcc, main, `re(0.1,0.4)` |" in filled
    assert f"| `ppa` | {ROW['prior']} | 85.0 % [70.0, 95.0] | 50.0 %" in filled, "attack seeds are joined"
    assert "| `brep` |" in filled and filled.rstrip("<!-/ table>\n").endswith("| – |")
    save_table([{**ROW, "budget": "longer"}], "longer", folder=tmp_path)
    both = query.replace(f";brep/{ROW['prior']}/quick", f";ppa/{ROW['prior']}/longer")
    filled = refresh(f"<!-- table: {both} --><!-- /table -->", folder=tmp_path)
    assert f"| `ppa`, {ROW['budget']} |" in filled and "| `ppa`, longer |" in filled
    with pytest.raises(UserError, match="expected results of gmi"):
        refresh(f"<!-- table: {query.replace('brep', 'gmi')} --><!-- /table -->", folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<!-- number: {NUMBER} -->", "unclosed"),
        ("<!-- number: colour=red --><!-- /number -->", "expected column=value"),
        (f"<!-- number: {NUMBER} budget=absent --><!-- /number -->", "expected one result"),
        (f"<!-- number: {NUMBER} show=all --><!-- /number -->", "expected show="),
        ("<!-- table: setup=lfw64 --><!-- /table -->", "expected metrics="),
        ("<!-- table: metrics=kid attacks=ppa --><!-- /table -->", "expected attacks=attack/prior/budget"),
    ],
)
def test_bad_readme_markers_are_errors(tmp_path, text, expected):
    save_table([ROW], "run", folder=tmp_path)
    with pytest.raises(UserError, match=expected):
        refresh(text, folder=tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_readme_numbers_are_fresh_and_none_is_typed_by_hand(page):
    text = page.read_text(encoding="utf-8")
    assert refresh(text) == text, "stale; run python -m lib.results.readme"
    assert numbers_outside_markers(text) == [], "put these between <!-- number: ... --> markers"


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("Values with 95 % intervals, 95% confidence, a 90 %-interval or 95 %\nintervals", []),
        ("it leaks 91.2 %, 7% less, 3\u202f% of people", ["91.2 %", "7%", "3\u202f%"]),
        ("[85.3 %, 94.0 %] of 62 people at 64 px, `re(0.1,0.4)`", ["85.3 %", "94.0 %"]),
    ],
)
def test_percentages_typed_by_hand_are_found(text, typed):
    assert numbers_outside_markers(text) == typed


def test_committed_results_fit_the_schema():
    from lib.results.schema import FORMATS, check

    for kind, load in (("tables", load_tables), ("curves", load_curves), ("identities", load_identities)):
        loaded = load(folder=PUBLISHED)
        files = list((PUBLISHED / FORMATS[kind].folder).glob("*.csv"))
        assert bool(files) != loaded.empty
        if files:
            numbers = loaded[[column for column in ("value", "low", "high") if column in loaded]]
            undefined = set(
                loaded.loc[numbers.isna().any(axis=1), "metric"]
            )  # a training loss has no interval
            check(loaded, kind, allow_missing=undefined)
            assert not any(map(_must_be_defined, undefined))


def _must_be_defined(metric: str) -> bool:
    return metric in (
        "natural_accuracy",
        "attack_accuracy_top1",
        "attack_accuracy_top5",
        "evaluator_accuracy",
    )


def test_a_count_of_flags_says_whether_a_number_is_established():
    from lib.results.readme import _shown

    for flags, said in ((0.0, "established"), (2.0, "not established")):
        row = pd.Series({"value": flags, "low": flags, "high": flags, "metric": "flags", "n": 11, "runs": 1})
        assert _shown(row, "verdict") == said
