"""The sweep of strengths: one rule for all, NoDef's frontier, numbers that follow from the stored runs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY
from matplotlib.collections import PathCollection

from lib import results, statistics
from lib.errors import UserError
from lib.plots import strengths as draw
from lib.reports import combination_report, repeated, sweep, tuned
from lib.reports.made import made
from lib.reports.workbook import Workbook
from lib.run.plan import plan
from lib.setups import Study, load_setup
from lib.stages import measures, records, success
from lib.statistics import Interval

STRENGTHS = {
    sweep.WEAKER: ["early(0.5)"],
    "RE": ["re(0.1,0.2)", "re(0.1,0.8)"],
    "NegLS": ["negls(-0.05)"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests of this file: what one has trained the others find."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def book(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Workbook:
    monkeypatch.setenv("MIDRE_CACHE", str(cache))
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    content = copy.deepcopy(TINY)
    content["snapshots"] = [0.5]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    study = Study(
        "digits", ["none"], [0], [0], ["ppa"], "eigenfaces", "headline", strengths=STRENGTHS,
        swept="ppa eigenfaces quick",
    )  # fmt: skip
    return Workbook(load_setup(path), study, ("none",), (0,), (0,))


def frame(validation: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(f, i + (f != "none"), f"{f}{i}", v) for f, vs in validation.items() for i, v in enumerate(vs)]
    return pd.DataFrame(rows, columns=["family", "strength", "defence", "validation"])


def test_the_strongest_within_the_tolerance_is_chosen() -> None:
    table = frame(
        {"none": [0.90], "a": [0.91, 0.88, 0.87], "b": [0.6, 0.885, 0.5], "c": [0.5], sweep.WEAKER: [0.9]}
    )
    chosen = table[sweep._chosen(table)]
    assert list(chosen["defence"]) == ["a1", "b1"], (
        "a loss of exactly two points counts, NoDef's points do not"
    )
    assert not sweep._chosen(frame({"a": [0.9]})).any(), "without NoDef there is no rule"
    ruled = table.assign(chosen=sweep._chosen(table))
    assert sweep.follows_the_rule(ruled)
    for wrong in (
        ["a0"],
        ["a1", "b1", "c0"],
        ["a1", "b1", "none0"],
        ["a2", "b1"],
        ["b1"],
        ["a0", "a1", "b1"],
    ):
        assert not sweep.follows_the_rule(table.assign(chosen=table["defence"].isin(wrong))), wrong


def test_the_page_wants_no_photos_once_its_points_are_there(
    book: Workbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = sweep.measure(book)
    table["chosen"] = table["defence"] == "re(0.1,0.2)"
    monkeypatch.setattr("lib.reports.workbook.load_world", lambda _: pytest.fail("read the photos"))
    again = dataclasses.replace(book)
    assert sweep.points(again, [sweep.attack_on(again, "none")]).chance == pytest.approx(1 / 3)
    assert len(tuned.chosen(again, table)) == 2 and len(sweep.matched(again, table)) == 3


def test_points_are_those_of_the_stored_runs(book: Workbook, monkeypatch: pytest.MonkeyPatch) -> None:
    table = sweep.measure(book)
    assert list(table["defence"]) == ["none", "early(0.5)", "re(0.1,0.2)", "re(0.1,0.8)", "negls(-0.05)"]
    attack = sweep.attack_on(book, "re(0.1,0.8)")
    row = table.set_index("defence").loc["re(0.1,0.8)"]
    assert row["attack"] == success.mean(success.measure([attack]))
    rows, identities = measures.target_rows(book.setup, "re(0.1,0.8)", 0)
    top1 = {r["split"]: r["value"] for r in rows if r["metric"] == "natural_accuracy"}
    best = table[table["front"]]
    assert not any(
        other.natural.value > row_.natural.value and other.attack.value < row_.attack.value
        for row_ in best.itertuples()
        for other in table.itertuples()
    )
    assert (row["validation"], row["natural"].value) == (top1["validation"], top1["test"])
    found = sweep.points(book, [sweep.attack_on(book, "none"), attack])
    assert found.accuracy[0, 1].tolist() == [r["value"] for r in identities]
    assert found.means()[0][1] == pytest.approx(row["natural"].value), "micro, as natural accuracy is"
    partly = table[table["defence"] != "re(0.1,0.2)"].assign(chosen=False)
    assert sweep.unchosen(book, partly) == ""
    further = dataclasses.replace(
        book, study=dataclasses.replace(book.study, repeated=["re(.1,.8)", "re(.1,.8)+rolss"])
    )
    assert (
        sweep.unchosen(further, partly)
        == "Looked at further, but not chosen by the rule so far: RE [.1, .8]."
    )
    unmade = partly[partly["defence"] != "re(0.1,0.8)"]
    assert sweep.unchosen(further, unmade) == "", "what is not made was not looked at"
    saved = results.load_curves("*strengths*", folder=results.output_dir("digits"))
    assert len(saved) == 10 and set(saved["metric"]) == {"natural_accuracy", "attack_accuracy_top1"}
    monkeypatch.setattr(sweep, "made", lambda _, runs: [run for run in runs if run.defence != "re(0.1,0.2)"])
    assert (
        dict(zip(*(sweep.measure(book)[key] for key in ("defence", "strength")), strict=True))["re(0.1,0.8)"]
        == 2
    )


def test_tuned_points_are_paired_with_nodef(book: Workbook) -> None:
    table = sweep.measure(book).assign(chosen=[False, False, False, True, True])
    found = tuned.chosen(book, table).set_index("defence")
    assert list(found.index) == ["none", "re(0.1,0.8)", "negls(-0.05)"]
    at = table.set_index("defence")
    privacy = at.loc["none", "attack"].value - at.loc["re(0.1,0.8)", "attack"].value
    assert found.loc["re(0.1,0.8)", "privacy"].value == pytest.approx(privacy)
    assert found["advantage"].notna().all(), "NoDef's own points are in the sweep"
    assert found["p"].isna().tolist() == found["dominates"].isna().tolist() == [True, False, False]
    runs = [sweep.attack_on(book, name) for name in found.index]
    leaks = [success.measure([run])[0].per_person() for run in runs]
    raw = [statistics.compare_paired(leaks[0], leak, seed=measures.SEED).p_value for leak in leaks[1:]]
    assert found["p"].tolist()[1:] == pytest.approx(statistics.holm(raw).tolist())
    outside = found.reset_index().assign(outside=True)
    assert "less accurate than any NoDef" in tuned.shown(outside).to_string()
    assert "less accurate than any NoDef" in tuned.what_we_saw(book, {"One": outside})
    alone = tuned.chosen(book, table[table["family"] != sweep.WEAKER])
    assert alone["advantage"].isna().all()
    nobody = tuned.chosen(book, table.assign(chosen=False))
    text = tuned.what_we_saw(book, {"One": tuned.chosen(book, table), "Two": nobody})
    assert "**One**\n\n- RE [.1, .8] " in text and "**Two**\n\nNothing to compare yet." in text
    volumes = sweep.matched(book, table)
    assert list(volumes["family"]) == list(STRENGTHS) and "3 points" in volumes
    assert (
        "not reached"
        in sweep.shown_matched(
            volumes.assign(**{"3 points": [Interval(np.nan, np.nan, np.nan, 3)] * 3})
        ).to_string()
    )


LINES = ["ppa eigenfaces quick", "ppa+eot2 eigenfaces quick"]


def with_models(book: Workbook, **changes: object) -> Workbook:
    study = dataclasses.replace(book.study, met_defences=["re(0.1, 0.2)"], **changes)
    return dataclasses.replace(book, study=study)


def test_other_attacks_are_paired_with_the_same_attack_on_nodef(book: Workbook) -> None:
    both = with_models(book, others=LINES)
    found = tuned.others(both)
    assert list(zip(found["by"], found["defence"], strict=True)) == [
        (f"by {line.rpartition(' ')[0]}", name) for line in LINES for name in ("none", "re(0.1,0.2)")
    ]
    for line, (_, rows) in zip(LINES, found.groupby("by", sort=False), strict=True):
        runs = [both.listed_attacks([line], [name])[0] for name in rows["defence"]]
        leaks = [success.mean(success.measure([run])).value for run in runs]
        assert [interval.value for interval in rows["attack"]] == leaks
        assert rows["privacy"].iloc[1].value == pytest.approx(leaks[0] - leaks[1])
        assert rows["privacy"].iloc[0] is None, "NoDef is not compared with itself"
        assert all(run in tuned.attacks(both) for run in runs)
    assert tuned.shown(found).index.names == ["", "defence"]
    saved = results.load_curves("*others*", folder=results.output_dir("digits"))
    wanted = [
        row[column].value
        for row in found.to_dict("records")
        if row["privacy"]
        for column in ("privacy", "privacy_verifier")
    ]
    assert saved["value"].tolist() == pytest.approx(wanted, abs=1e-6)
    raw = [statistics.compare_paired(*pair, seed=measures.SEED).p_value for pair in _pairs(both)]
    assert [p for p in found["p"] if p is not None] == pytest.approx(list(statistics.holm(raw)))
    assert "by ppa+eot2 eigenfaces, " in tuned.what_we_saw(both, {"Others": found})
    assert tuned.others(book).empty and tuned.attacks(book) == []


def test_what_the_rule_chose_meets_further_attacks(book: Workbook) -> None:
    study = dataclasses.replace(book.study, chosen_attacks=LINES)
    more = dataclasses.replace(book, study=study)
    table = sweep.measure(more)
    kept = table.loc[table["chosen"], "defence"].tolist()
    assert kept and sweep.picked(more) == kept, "the same without making anything"
    found = tuned.under(more, table)
    assert found["defence"].tolist() == ["none", *kept] * len(LINES)
    assert {run.defence for run in tuned.attacks(more)} == {"none", *kept}
    assert len(results.load_curves("*chosen*", folder=results.output_dir("digits"))) == 4 * len(kept)
    begun = {**STRENGTHS, "RE": [*STRENGTHS["RE"], "re(0.1,0.9)"]}
    part = dataclasses.replace(more, study=dataclasses.replace(study, strengths=begun))
    assert not [name for name in sweep.picked(part) if name.startswith("re(")], "not made whole"
    assert tuned.under(book, table).empty and tuned.under(more, table.assign(chosen=False)).empty


def _pairs(book: Workbook) -> list[list[np.ndarray]]:
    """Of every run on a defence: NoDef's shares, person by person, and its own."""
    found = [outcome.per_person() for outcome in success.measure(tuned.attacks(book))]
    return [found[i : i + 2] for i in range(0, len(found), 2)]


def test_a_strength_may_be_spelled_in_any_way(book: Workbook) -> None:
    study = dataclasses.replace(book.study, strengths={"RE": ["re(.1, 0.20)", "re(0.1,0.8)"]})
    assert sweep.families(dataclasses.replace(book, study=study)) == {"RE": ["re(0.1,0.2)", "re(0.1,0.8)"]}


def test_models_are_compared_over_training_seeds(book: Workbook) -> None:
    both = dataclasses.replace(
        book,
        study=dataclasses.replace(
            book.study, strengths={}, repeated=["re(0.1,0.2)"], repeated_seeds=[0, 1], repeated_attacks=LINES
        ),
    )
    found = repeated.measure(both)
    runs = repeated.attacks(both)
    assert len(runs) == 8 and {run.training_seed for run in runs} == {0, 1}
    leaks = {
        (run.attack, run.defence, run.training_seed): success.measure([run])[0].per_person() for run in runs
    }
    for method, rows in zip(("ppa", "ppa+eot2"), (found.iloc[:2], found.iloc[2:]), strict=True):
        none, erased = (
            np.stack([leaks[method, name, s] for s in (0, 1)]) for name in ("none", "re(0.1,0.2)")
        )
        assert set(rows["by"]) == {f"by {method} eigenfaces"}
        assert rows["attack"].iloc[1] == statistics.nested_mean(erased, seed=measures.SEED)
        assert rows["seeds"].iloc[1].points.tolist() == pytest.approx(erased.mean(1).tolist())
        paired = statistics.compare_paired(none, erased, seed=measures.SEED)
        assert rows["privacy"].iloc[1] == paired.difference
    assert repeated.shown(found)["AttAcc, each training seed"].str.contains("t: ").all()
    saved = results.load_curves("*repeated*", folder=results.output_dir("digits"))
    each = saved[saved["metric"] == "attack_accuracy_top1"]
    assert each["value"].tolist() == pytest.approx([leak.mean() for leak in _in_rows(leaks)], abs=1e-6)
    joined = saved[saved["metric"] == "privacy_gain"]
    assert len(joined) == 6 and joined["training_seed"].isna().all()
    none, erased = (np.stack([leaks["ppa", name, s] for s in (0, 1)]) for name in ("none", "re(0.1,0.2)"))
    student = statistics.t_interval(none.mean(1) - erased.mean(1))
    assert found["training"].iloc[1] == student and found["training"].iloc[0] is None
    kept = joined[(joined["curve"] == "repeated_trainings") & (joined["attack"] == "ppa")].iloc[0]
    assert [kept["low"], kept["high"]] == pytest.approx([student.low, student.high], abs=1e-6)
    text = tuned.what_we_saw(both, {"Seeds": found, "One": tuned.others(book)})
    assert "**Seeds**\n\n- RE [.1, .2], by ppa eigenfaces, " in text
    assert repeated.measure(book).empty and repeated.attacks(book) == []
    assert "Nothing to compare" in repeated.shown(repeated.measure(book)).data


def test_few_trainings_that_scatter_establish_nothing(book: Workbook) -> None:
    """Two trainings that took 4 and 14 points, of sixty people: sure of the people, not of a third training."""
    rng = np.random.default_rng(0)
    none, model = np.full((2, 60), 0.9), 0.9 - np.array([[0.04], [0.14]]) - 0.02 * rng.random((2, 60))
    taken = statistics.compare_paired(none, model, seed=0)
    row = {
        **dict.fromkeys(tuned.COLUMNS),
        "defence": "re(0.1,0.4)",
        "privacy": taken.difference,
        "p": taken.p_value,
        "training": statistics.t_interval((none - model).mean(1)),
    }
    assert taken.difference.low > 0 and taken.p_value < 0.05
    assert "in these 2 trainings, which is too few" in tuned._lines(pd.DataFrame([row]))
    alike = row | {"training": statistics.t_interval([0.098, 0.1, 0.102])}
    assert "leaks less than NoDef (" in tuned._lines(pd.DataFrame([alike]))
    worse = alike | {"advantage": statistics.Interval(-0.05, -0.08, -0.01, 60), "outside": False}
    said = tuned._lines(pd.DataFrame([worse]))
    assert (
        "by the interval alone it is worse than a weaker NoDef of its accuracy" in said and "Holm's p" in said
    )
    better = worse | {"advantage": statistics.Interval(0.05, 0.01, 0.08, 60)}
    said = tuned._answer(pd.DataFrame([better, worse | {"defence": "rolss"}]))
    assert "less than NoDef: RE [.1, .4], RoLSS; of them" in said and said.endswith(
        "accuracy: RE [.1, .4].**"
    )


def _in_rows(leaks: dict[tuple[str, str, int], np.ndarray]) -> list[np.ndarray]:
    """As they are saved: by attack, then model, then seed."""
    return [leaks[key] for key in sorted(leaks, key=lambda key: (key[0] != "ppa", key[1] != "none", key[2]))]


def test_lengths_are_compared_at_the_same_attack(book: Workbook) -> None:
    both = with_models(book, lengths=[0.5, 1], lengths_attack=LINES[0])
    found = tuned.lengths(both)
    assert list(found["by"]) == ["4 steps, by ppa quick"] * 2 + ["8 steps, by ppa quick"] * 2
    runs = tuned.attacks(both)
    assert [records.answers_of(run).steps for run in runs] == [4, 4, 8, 8]
    short, erased, long, longer = (success.mean(success.measure([run])).value for run in runs)
    assert [interval.value for interval in found["attack"]] == [short, erased, long, longer]
    added = [None if interval is None else interval.value for interval in found["longer"]]
    assert found["moved"].tolist()[0] == "" and found["moved"].tolist()[1].startswith("re erased area 0.")
    assert added == [None, pytest.approx((long - longer) - (short - erased)), None, None]
    saved = results.load_curves("*lengths*", folder=results.output_dir("digits"))
    assert saved.loc[saved["metric"] == "interaction", "value"].tolist() == [added[1]]
    assert "the longest training" in tuned.what_we_saw(both, {"Lengths": found})
    assert tuned.lengths(book).empty


def test_what_the_rule_chose_stands_in_the_place_of_what_a_study_lists_of_a_family(
    book: Workbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    strengths = {
        "RE": ["re(0.1,0.2)", "re(0.1,0.4)", "re(0.1,0.8)"],
        "NegLS": ["negls(-0.05)", "negls(-0.2)"],
    }
    further = with_models(
        book, strengths=strengths, repeated=["re(.1,.4)", "re(.1,.8)", "re(.1,.4)+negls(-.05)"]
    )
    listed = further.study.repeated
    same = ["re(0.1,0.4)", "re(0.1,0.8)", "re(0.1,0.4)+negls(-0.05)"]
    for picked, expected in (
        ([], same),  # no family is made whole
        (["re(0.1,0.4)", "negls(-0.05)"], same),
        (["re(0.1,0.2)"], ["re(0.1,0.2)", "re(0.1,0.8)", "re(0.1,0.2)+negls(-0.05)"]),
        (["re(0.1,0.8)", "negls(-0.2)"], ["re(0.1,0.8)", "re(0.1,0.8)+negls(-0.2)"]),
    ):
        monkeypatch.setattr(sweep, "picked", lambda _, picked=picked: picked)
        assert sweep.tuned_in(further, listed) == expected
    names = {run.defence for run in repeated.attacks(with_models(
        further, repeated_seeds=[0, 1], repeated_attacks=[further.study.swept]
    ))}  # fmt: skip
    assert names == {"none", "re(0.1,0.8)", "re(0.1,0.8)+negls(-0.2)"}


def test_a_partial_page_shows_what_is_made_and_says_what_is_not(
    book: Workbook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lib.reports.made.in_kernel", lambda: True)
    more = with_models(
        book, others=LINES, lengths=[1, 3], lengths_attack=LINES[0], repeated=["negls(-0.05)"],
        repeated_seeds=[0, 1], combined=["re(0.1,0.2)+negls(-0.05)"],
        strengths={**STRENGTHS, "LS": ["ls(0.1)"], "RE": ["re(0.1,0.2)", "re(0.1,0.3)"]},
    )  # fmt: skip
    sweep.measure(book)
    part = dataclasses.replace(more, partial=True)
    assert sweep.families(part) == {**STRENGTHS, "RE": ["re(0.1,0.2)"]}
    assert list(sweep.families(more)) == [*STRENGTHS, "LS"], "whoever may train makes all"
    assert "ppa eigenfaces quick on RE [.1, .3], LS .1." in capsys.readouterr().out
    sweep.families(part)
    assert not capsys.readouterr().out, "said once"
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path))  # where nothing is made
    assert sweep.families(part) == {} and tuned.others(part).empty and tuned.lengths(part).empty
    assert repeated.measure(part).empty and combination_report.pairs(part) == {}
    assert "Not made yet: ppa+eot2 eigenfaces quick on NoDef, RE [.1, .2]." in capsys.readouterr().out
    runs = book.listed_attacks([LINES[0]], ["none", "re(0.1,0.2)", "negls(-0.05)"], seeds=[0, 1])
    assert made(part, [run for run in runs if run.attack_seed or run.defence != "negls(-0.05)"]) == []
    said = capsys.readouterr().out
    assert f"Not made yet: {LINES[0]}, attack seeds 0 and 1 on NoDef, RE [.1, .2]; " in said
    assert f"; {LINES[0]}, attack seed 1 on NegLS -.05." in said


def test_the_plan_knows_every_point(book: Workbook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path))
    more = with_models(
        book,
        others=LINES,
        lengths=[3],
        lengths_attack=LINES[0],
        repeated=["negls(-0.05)"],
        repeated_seeds=[0, 1],
    )
    labels = " ".join(step.stage.label for step in plan(more))
    assert all(f"target {name} " in labels for names in STRENGTHS.values() for name in names)
    assert "target negls(-0.05) x1 seed 1" in labels
    assert "ppa+eot2 eigenfaces quick" in labels and "target re(0.1,0.2) x3 " in labels


def test_nothing_to_sweep_is_an_error(book: Workbook) -> None:
    empty = dataclasses.replace(book, study=dataclasses.replace(book.study, strengths={}))
    assert sweep.attacks(empty) == []
    with pytest.raises(UserError, match="expected `strengths`"):
        sweep.measure(empty)


def test_the_figure_joins_a_family_from_nodef_on() -> None:
    rows = [("none", 0, False, 0.9, 0.8), ("RE", 2, True, 0.88, 0.5), ("RE", 1, False, 0.9, 0.7)]
    table = pd.DataFrame(rows, columns=["family", "strength", "chosen", "natural", "attack"])
    table["defence"] = ["none", "re(0.1,0.8)", "re(0.1,0.4)"]
    table["front"] = [False, True, False]
    for side in ("natural", "attack"):
        table[f"{side}_low"], table[f"{side}_high"] = table[side] - 0.1, table[side] + 0.05
    ax = draw(table)
    (joined,) = [line.get_xdata().tolist() for line in ax.lines if len(line.get_xdata()) == 3]
    assert joined == [0.9, 0.9, 0.88], "by strength, from NoDef"
    (ring,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert ring.get_offsets()[0].tolist() == [0.88, 0.5]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["NoDef", "RE"]
