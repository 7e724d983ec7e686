"""What notebooks 14 to 17 compute, on a world of three digits: stages, comparisons, verdicts, settled constants."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toys import attacked_book

from lib import attacks, results, statistics
from lib.attacks.ppa import PpaBudget
from lib.attacks.referee import Entry, combine
from lib.erasing import ErasingLaw
from lib.errors import UserError
from lib.reports import (
    adaptive_report,
    attack_growth,
    attack_memory,
    attack_report,
    referee_checks,
    referee_report,
)
from lib.reports.workbook import Workbook, open_workbook
from lib.run import settle
from lib.run.plan import plan
from lib.setups import Setup, Study, setup_names
from lib.stages import inversion, knowledge, priors, students, success, targets
from lib.statistics import Interval


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the module: what one test makes the others load."""
    return tmp_path_factory.mktemp("attack-reports")


@pytest.fixture
def book(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workbook:
    return attacked_book(folder, monkeypatch)


def test_every_listed_attack_is_run_on_every_compared_model(book: Workbook) -> None:
    found = book.listed_attacks(book.study.compared)
    assert [(a.attack, a.defence) for a in found[:2]] == [("ppa", "none"), ("ppa", "re(0.1,0.4)")]
    assert len(found) == 8, "the study's first two models"
    white, black = (attack_report.runs(book, white_box=white) for white in (True, False))
    assert {a.attack for a in white} == {"ppa", "lomma_gmi", "kedmi"} and {a.attack for a in black} == {
        "brep"
    }
    with pytest.raises(UserError, match="'attack prior budget'"):
        book.listed_attacks(["ppa eigenfaces"])


def test_a_prior_against_a_target_is_made_for_two_models_only(book: Workbook) -> None:
    study = Study(**{**book.study.__dict__, "compared_defences": ["none", "re(0.1,0.4)", "fe(0.5)"]})
    wider = Workbook(book.setup, study, book.defences, (0,), (0,))
    models = {line.split()[0]: [a.defence for a in wider.listed_attacks([line])] for line in study.compared}
    assert len(models["ppa"]) == 3 and models["kedmi"] == ["none", "re(0.1,0.4)"]
    assert models["lomma_gmi"] == models["ppa"], "students are cheap: they are distilled from every model"


def test_the_referee_has_attack_seeds_of_its_own(book: Workbook) -> None:
    study = Study(**{**book.study.__dict__, "referee_seeds": [0, 1]})
    wider = Workbook(book.setup, study, book.defences, (0,), (0,))
    assert {run.attack_seed for run in referee_report.runs(wider)} == {0, 1}
    study = Study(**{**book.study.__dict__, "referee_defences": ["none", "fe(0.5)"]})
    other = Workbook(book.setup, study, book.defences, (0,), (0,))
    assert {run.defence for run in referee_report.runs(other)} == {"none", "fe(0.5)"}
    assert {run.attack_seed for run in attack_report.runs(wider, white_box=True)} == {0}


def test_priors_differ_by_what_they_are_made_from(book: Workbook) -> None:
    setup = book.setup
    first, second = (targets.target(setup, d, 0).stage for d in ("none", "re(0.1,0.4)"))
    law = ErasingLaw()
    keys = [
        priors.stage(setup, "eigenfaces").key,
        priors.stage(setup, "eigenfaces", law=law).key,
        priors.stage(setup, "eigenfaces", law=ErasingLaw(scale=(0.5, 0.5))).key,
        priors.stage(setup, "inversion_gan", target=first).key,
        priors.stage(setup, "inversion_gan", target=second).key,
    ]
    assert len(set(keys)) == 5
    assert priors.stage(setup, "eigenfaces", target=first).key == keys[0], (
        "a public prior does not know targets"
    )
    with pytest.raises(UserError, match="expected the target"):
        priors.stage(setup, "inversion_gan")
    clean, erased = (priors.public_photos(setup, x) for x in (None, law))
    changed = (clean != erased).any(1).float().mean((1, 2))
    assert 0.05 < changed.mean() < 0.4 and torch.equal(erased, priors.public_photos(setup, law))


def test_students_are_of_their_target_and_their_photos(book: Workbook) -> None:
    setup = book.setup
    trained = targets.target(setup, "none", 0)
    other = targets.target(setup, "re(0.1,0.4)", 0)
    (student,) = students.load(setup, trained)
    assert student.num_classes == trained.model.num_classes and not student.training
    keys = {
        s.key
        for t in (trained, other)
        for law in (None, ErasingLaw())
        for s in students.stages(setup, t.stage, law=law)
    }
    assert len(keys) == 4


def test_the_target_answers_once_for_all_students(book: Workbook, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, asked = targets.target(book.setup, "re(0.1,0.8)", 0), []
    two = dataclasses.replace(book.setup, students=book.setup.students * 2)
    answers = students.answers
    monkeypatch.setattr(students, "answers", lambda *a, **how: (asked.append(how), answers(*a, **how))[1])
    assert len(students.load(two, trained)) == 2
    assert asked == [{"mirrored": False}, {"mirrored": True}]


def test_the_law_is_the_defences_and_res_as_a_control(book: Workbook) -> None:
    assert knowledge.law_of(book.setup, "re(0.1,0.8)").scale == (0.1, 0.8)
    assert knowledge.law_of(book.setup, "none") == knowledge.law_of(book.setup, "re(0.1,0.4)")
    assert knowledge.law_of(book.setup, "fe(0.5)").location == "per_image"
    assert knowledge.believed_law(book.setup, "fe(0.5)").location == "random"
    keys = []
    for defence, name in (("none", "ppa"), ("none", "ppa+eot2"), ("none", "ppa+eot4")):
        attack = book.attack(defence, attack=name, budget="quick")
        keys.append(inversion.reconstruction_stage(attack, attack.target().stage))
    assert len({stage.key for stage in keys}) == 3 or keys[1].params["attack"] != keys[2].params["attack"]
    assert "law" not in keys[0].params and keys[1].params["law"]["scale"] == (0.1, 0.4)


def test_what_a_larger_budget_adds_is_paired_by_person(book: Workbook) -> None:
    trials = attack_growth.runs(book, white_box=True)
    assert {run.defence for run in trials} == {"none"} and {run.budget for run in trials} == {
        "quick",
        "headline",
    }
    book.invert(trials)
    curves = attack_growth.curves(trials)
    attack_growth.save(book, curves, "test")
    grown = results.load_curves("*growth__test", folder=results.output_dir(book.setup.name))
    ends = {name: rows.iloc[-1]["growth"] for name, rows in curves.groupby("attack")}
    assert len(grown) and all(grown["x"] >= attack_growth.SAME)
    for row in grown.itertuples():
        assert row.value == pytest.approx(ends[f"{row.attack}, {row.prior}"].value, abs=1e-6)
    assert set(curves["attack"]) == {"ppa, eigenfaces"} and len(curves) == 2, "one budget makes no curve"
    first, last = curves.iloc[0], curves.iloc[1]
    assert first.passes < last.passes and first.growth is None
    assert last.growth.value == pytest.approx(last.value - first.value)
    assert "ppa, eigenfaces: " in attack_growth.sentence(book, curves, white_box=True)
    assert "under one budget alone: " in attack_growth.sentence(book, curves, white_box=True)
    words = {
        "still grows, +": Interval(0.2, 0.1, 0.3, 3),
        "still grows, by little, +": Interval(0.02, 0.01, 0.03, 3),
        "finds less": Interval(-0.2, -0.3, -0.1, 3),
        "no growth established": Interval(0.1, -0.1, 0.3, 3),
    }
    for word, growth in words.items():
        assert word in attack_growth.sentence(book, curves.assign(growth=[None, growth]), white_box=True)
    weaker = curves.assign(growth=[None, words["finds less"]])
    large = dataclasses.replace(book)
    vars(large)["conclusive"] = True  # whatever its few people
    said = attack_growth.sentence(large, weaker, white_box=True)
    assert said.endswith("so that its rows are a floor: ppa, eigenfaces.")
    assert "floor" not in attack_growth.sentence(large, curves.assign(growth=[None, growth]), white_box=True)
    early = attack_growth.sentence(book, curves.assign(passes=first.passes), white_box=True)
    assert "stops by itself" in early and "grow" not in early


def test_attacks_side_by_side(book: Workbook) -> None:
    found = attack_report.runs(book, white_box=True)
    book.invert(found)
    table = attack_report.comparison(found)
    assert len(table) == 6 and set(table["model"]) == {"NoDef", "RE [.1, .4]"}
    row = table.iloc[0]
    made, (outcome,) = inversion.reconstruct(found[0]), success.measure(found[:1])
    seen = inversion.judge_reconstructions(found[0])
    said = {what: seen[what].logits["main"].argmax(1).view(3, -1).gather(1, made.selected) for what in seen}
    hits, began = (said[what] == made.labels[:, None] for what in ("reconstructions", "prior_samples"))
    by_hand = np.mean([hits[k].double().mean() for k in range(3)])
    assert torch.equal(outcome.hits["main"], hits) and outcome.hits["verifier"].shape == hits.shape
    assert row["main"].value == pytest.approx(by_hand) and row["main"].n == 3
    assert row["gain"].value == pytest.approx(row["main"].value - began.double().mean().item())
    cost = inversion.reconstruct(found[0]).cost
    assert row["passes"] == pytest.approx(cost["target_forward"] + cost["target_backward"])
    defended = table[table["defence"] != "none"].iloc[0]
    assert row["protection"] is None
    assert defended["protection"].difference.value == pytest.approx(
        row["main"].value - defended["main"].value
    )
    attack_report.save(book, table, "white-box")
    saved = results.load_curves("*protection*", folder=results.output_dir("tiny"))
    assert len(saved) == 3 and set(saved["defence"]) == {"re(0.1,0.4)"}
    assert saved["value"][0] == pytest.approx(defended["protection"].difference.value, abs=1e-6)
    read = attack_report.shown(table, {("ppa", "eigenfaces", "headline")})
    assert {"gain over the start", "NoDef minus model"} <= set(read)
    assert set(read.sort_index().loc["ppa", "constants"]) == {"from a grid"} and "by hand" in set(
        read["constants"]
    )
    measured = attack_memory.measure(book, found)
    assert set(measured) == {(run.attack, run.prior, run.budget) for run in found}
    assert all(mb is None or 0 <= mb < 500 for mb in measured.values()), "None: the system does not tell"
    known = {run: 1234.4 if run[0] == "ppa" else mb for run, mb in measured.items()}
    costs = attack_report.costs(table, known).sort_index()
    assert set(costs.loc["ppa", "peak MB"]) == {"1,234"} and set(costs["people at once"]) <= {1, 2, 3}
    assert set(attack_report.costs(table, {})["peak MB"]) == {""}, "where the system does not tell"
    assert {"passes per person", "seconds per person"} <= set(costs)
    sheet = attack_report.sheet(book, found, "none")
    assert len(sheet["reconstructed"]) == 3 and all(len(rows) == 3 for rows in sheet["marks"].values())
    assert "Too small to conclude" in attack_report.what_we_saw(book, table)
    large = dataclasses.replace(book)
    vars(large)["conclusive"] = True  # whatever its few people
    said = attack_report.what_we_saw(large, table)
    assert said.startswith("**On NoDef the main evaluator takes from ") and "In 0 of 3 comparisons" in said
    assert "Holm's p over the 3 comparisons with NoDef is below 0.05; 0 of them are." in said
    sure = Interval(0.2, 0.1, 0.3, 3)
    moved = [one and dataclasses.replace(one, difference=sure, p_value=0.001) for one in table["protection"]]
    said = attack_report.what_we_saw(large, table.assign(protection=moved))
    assert "In 3 of 3 comparisons with NoDef an attack is established to find less" in said
    assert "3 of them are." in said and said.count("less is found by") == 1
    said = attack_report.what_we_saw(large, table)
    assert "- **RE [.1, .4]**" in said and "Against NoDef, same attack and budget" in said
    assert (
        "The judges are furthest apart on" in said
        and "from a grid tried on the throw-away target: none; by hand: " in said
    )
    assert "every attack are from a grid" in attack_report.what_we_saw(
        large, table, set(zip(table["attack"], table["prior"], table["budget"], strict=True))
    )


def test_attacks_are_described_by_their_files(book: Workbook) -> None:
    shown = attack_report.described(book, white_box=True)
    assert list(shown.index) == ["ppa", "lomma_gmi", "kedmi"] and set(shown["sees"]) == {"gradients"}
    assert shown.loc["ppa"].tolist() == [
        "PPA, Plug & Play Attacks",
        "Struppek et al., ICML 2022",
        "gradients",
    ]
    assert attack_report.described(book, white_box=False).loc["brep", "sees"] == "labels"
    for name in attacks.names():
        assert re.search(r"^[^(]+ \([^)]+ (19|20)\d\d\)", attacks.get(name).about), (
            f"{name}: name (paper year)"
        )


def test_a_run_without_the_compared_models_is_refused(
    book: Workbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_workbook("digits", ["fe(0.5)"])
    for listed in (
        lambda some: attack_report.runs(some, white_box=True),
        lambda some: attack_report.runs(some, white_box=False),
        adaptive_report.runs,
    ):
        with pytest.raises(UserError, match=r"on none, re\(0.1,0.4\): expected .* got fe\(0.5\); add it"):
            listed(other)
    empty = dataclasses.replace(book, study=dataclasses.replace(book.study, compared=[], adaptive=[]))
    with pytest.raises(UserError, match="got none; make them with `python -m lib.run batch"):
        attack_report.runs(empty, white_box=True)


def test_a_second_budget_of_an_attack_is_told_from_the_first(book: Workbook) -> None:
    """Other constants: a row and a column of its own."""
    lines = ["ppa eigenfaces headline", "gmi eigenfaces headline", "ppa eigenfaces quick"]
    assert attack_report.main_lines(lines) == lines[:2]
    study = dataclasses.replace(
        book.study, compared=["ppa eigenfaces headline", "ppa eigenfaces quick"], curves=[]
    )
    both = dataclasses.replace(book, study=study)
    found = attack_report.runs(both, white_box=True)
    table = attack_report.comparison(found)
    assert set(attack_report.bars(table)["attack"]) == {"ppa\neigenfaces\nheadline", "ppa\neigenfaces\nquick"}
    assert list(attack_report.sheet(both, found, "none")["reconstructed"]) == ["ppa\neigenfaces\nquick"]
    shown = attack_report.shown(table, {("ppa", "eigenfaces", "quick")}).reset_index()
    assert dict(zip(shown["budget"], shown["constants"], strict=True)) == {
        "headline": "by hand",
        "quick": "from a grid",
    }


def test_settled_constants_have_a_curve_of_their_own(book: Workbook) -> None:
    budgets = copy.deepcopy(book.setup.attacks)
    budgets["ppa"] |= {"settled_short": {**budgets["ppa"]["quick"], "learning_rate": 0.2}}
    budgets["ppa"] |= {"settled": {**budgets["ppa"]["headline"], "learning_rate": 0.2}}
    setup = dataclasses.replace(book.setup, attacks=budgets)
    compared = ["ppa eigenfaces headline", "ppa eigenfaces settled"]
    smaller = ["ppa eigenfaces quick", "ppa eigenfaces settled_short"]
    study = dataclasses.replace(book.study, compared=compared, curves=smaller, referee=compared[:1])
    two = dataclasses.replace(book, setup=setup, study=study)
    found = attack_growth.curves(attack_growth.runs(two, white_box=True))
    assert found["attack"].tolist() == ["ppa, eigenfaces"] * 2 + ["ppa, eigenfaces, settled"] * 2
    assert [run.budget for run in found["run"]] == ["quick", "headline", "settled_short", "settled"]
    assert {run.budget for run in referee_report.curve_runs(two)} == {"quick"}, "of its own constants"


def test_the_plan_has_every_listed_attack(book: Workbook) -> None:
    runs = [
        *attack_growth.runs(book, white_box=True),
        *adaptive_report.runs(book),
        *referee_report.runs(book),
    ]
    for run in runs:
        run.target()  # so that training lengths are chosen: the plan takes the longest before
    planned = {step.stage.key for step in plan(book)}
    for run in runs:
        assert inversion.reconstruction_stage(run, run.target().stage).key in planned, (
            run.attack,
            run.budget,
        )


def test_adaptive_attacks_are_compared_with_the_plain_one(book: Workbook) -> None:
    found = adaptive_report.runs(book)
    book.invert(found)
    whole = adaptive_report.comparison(found)
    assert {"quick", "headline"} == set(whole.loc[whole["attack"] == "ppa", "budget"]), (
        "plain ones of all budgets"
    )
    table = whole[whole["budget"] == "quick"].set_index(["attack", "defence"])
    plain, eot = table.loc[("ppa", "none")], table.loc[("ppa+eot2", "none")]
    assert plain["same_steps"] is None and plain["masks"] == 0 and eot["masks"] == 2
    assert eot["passes"] == 2 * plain["passes"] and adaptive_report.views_counted(table.reset_index())
    alike = adaptive_report.alike(found, "none")
    assert {run.budget for run in alike} == {"quick"} and {run.defence for run in alike} == {"none"}
    assert {"ppa", "ppa+eot2"} <= {run.attack for run in alike} and "ppa+eot3" not in {
        r.attack for r in alike
    }
    few = table.loc[("ppa+eot3", "none")]
    assert few["main"].n == few["same_steps"].difference.n == 2, "the people that both attack"
    (some,) = (run for run in found if run.people and run.defence == "none")
    (every,) = (r for r in found if (r.attack, r.budget, r.defence) == ("ppa", "quick", "none"))
    assert inversion.reconstruct(some).labels.tolist() == [0, 2]
    few_outcome, every_outcome = success.measure([some, every])
    paired = success.compare([few_outcome], [every_outcome]).difference.value
    assert paired == pytest.approx((few_outcome.per_person() - every_outcome.per_person()[[0, 2]]).mean())
    shifted = dataclasses.replace(every, attack="ppa+feature_shift")
    there = len(book.world.public)
    assert inversion.images_before(every) == 0 and inversion.images_before(shifted) == 2 * min(2000, there)
    more = dataclasses.replace(every_outcome, attack=shifted).passes - every_outcome.passes
    assert more == pytest.approx(2 * min(2000, there) / 3), "the means are paid for once, for all people"
    cheaper = table.reset_index().assign(passes=plain["passes"])
    assert not adaptive_report.views_counted(cheaper), "erased views that nobody paid for"
    assert eot["same_steps"].difference.value == pytest.approx(eot["main"].value - plain["main"].value)
    assert table.loc[("ppa+re_prior", "none")]["other"] and not eot["other"]
    on_re = table.loc[("ppa+eot2", "re(0.1,0.4)")]
    assert eot["beyond"] is None, "NoDef is the control"
    gained = on_re["same_steps"].difference.value - eot["same_steps"].difference.value
    assert on_re["beyond"].value == pytest.approx(gained)
    for row in whole[whole["same_passes"].notna()].itertuples():
        (near,) = whole[
            (whole["attack"] == "ppa")
            & (whole["budget"] == row.nearest_budget)
            & (whole["defence"] == row.defence)
        ]["passes"]
        assert max(near, row.passes) <= adaptive_report.NEAR * min(near, row.passes)
    curve = adaptive_report.by_masks(found, budget="quick")
    assert sorted(curve["masks"].unique()) == [0, 2], "no other ingredients, all people"
    shared = adaptive_report.by_masks(found, budget="quick", few=True).set_index(["defence", "masks"])
    assert sorted({masks for _, masks in shared.index}) == [0, 2, 3], "the few people of the costly one"
    assert shared.loc[("none", 0), "value"] == pytest.approx(every_outcome.per_person()[[0, 2]].mean())
    assert adaptive_report.by_masks([every], budget="quick", few=True).empty, "all have the same people"
    assert adaptive_report.by_masks(found, budget="quick", attack="gmi").empty, "another attack is none"
    assert len(adaptive_report.masks_figure(found, budget="quick", y_label="AttAcc", title="K").axes) == 2
    assert len(adaptive_report.equal_passes(whole)) == whole["same_passes"].notna().sum()
    read = adaptive_report.shown(whole, "verifier")
    assert "match rate, verifier" in read and (read["people"] == 2).sum() == (whole["people"] == 2).sum()
    assert list(whole["defence"]) == sorted(whole["defence"]), "model by model"
    tried = table[table["same_steps"].notna()]
    raw = [comparison.p_value for comparison in tried["same_steps"]]
    assert tried["p"].tolist() == pytest.approx(statistics.holm(raw).tolist())
    assert table.loc[table["same_steps"].isna(), "p"].isna().all()
    large = dataclasses.replace(book)
    vars(large)["conclusive"] = True  # whatever its few people
    found = Interval(-0.3, -0.5, -0.1, 3)
    moved = [one and dataclasses.replace(one, difference=found) for one in table["same_steps"]]
    sure = table.reset_index().assign(p=0.01, p_verifier=0.2, same_steps=moved)
    said = adaptive_report.what_we_saw(large, sure)
    assert said.startswith("**No ingredient is shown to undo erasing")
    assert "Established by the verifier: stronger: none; weaker: none." in said
    assert f"over the {len(tried)} comparisons" in said and "ppa+re_prior (" in said
    caption = adaptive_report.caption(book, whole)
    assert "has the weight 1." in caption and "the law of RE [.1, .4]." in caption, (
        "the one erasing model's own"
    )
    wider = whole.assign(defence="re(0.1,0.8)")
    assert "which is not that of RE [.1, .8]" in adaptive_report.caption(book, wider)
    assert f"at most {100 * (adaptive_report.NEAR - 1):.0f} %" in adaptive_report.equal_passes_caption()
    for sign, lead in ((1, "best is"), (-1, "no ingredient exceeds the plain attack; the closest is")):
        found = Interval(sign * 0.05, -0.2, 0.2, 3)
        moved = [one and dataclasses.replace(one, difference=found) for one in sure["same_steps"]]
        said = adaptive_report.what_we_saw(large, sure.assign(same_steps=moved))
        assert said.count(f": {lead} ppa") == 2 and said.count(f"{100 * found.value:+.1f} points") >= 2


def test_the_referee_sees_what_is_stored(book: Workbook, monkeypatch: pytest.MonkeyPatch) -> None:
    found = referee_report.verdicts(book)
    first = referee_report.runs(book)[0]
    alone = {
        referee_report.member(first): Entry.of(inversion.reconstruct(first), first.load_prior(), PpaBudget())
    }
    asked = combine(first.target().model, alone, [0, 1, 2]).confidence
    assert torch.allclose(asked[0], referee_report.confidence(first).amax(1))
    monkeypatch.setattr(referee_report, "plain_confidence", lambda *_, **__: pytest.fail("asked again"))
    again = referee_report.verdicts(book)
    assert again["none"].sentence() == found["none"].sentence()
    assert list(found) == ["none", "re(0.1,0.4)"]
    assert referee_checks.counted_again(book, found)
    off = dataclasses.replace(found["none"], accuracy=Interval(0.123, 0.0, 1.0, 3))
    assert not referee_checks.counted_again(book, found | {"none": off})
    assert referee_checks.notices_a_missing_seed(book)
    with monkeypatch.context() as blind:
        blind.setattr("lib.attacks.referee.flags.SEEDS", 1)
        assert not referee_checks.notices_a_missing_seed(book)
    verdict = found["re(0.1,0.4)"]
    assert len(verdict.members) == 3 and verdict.members["chosen"].sum() == verdict.accuracy.n == 3
    states = {flag.name: flag for flag in verdict.flags}
    assert states["defence diagnostic inactive"].raised is False
    assert 0.1 < states["defence diagnostic inactive"].value < 0.4, "the erased area"
    assert states["evaluator and target disagree on real photos"].raised is not None
    referee_report.save(book, found)
    saved = results.load_curves("*referee*", folder=results.output_dir("digits"))
    numbers = saved[saved["metric"] == "attack_accuracy_top1"]
    assert numbers["value"].tolist() == pytest.approx([v.accuracy.value for v in found.values()], abs=1e-6)
    assert set(saved["attack"]) == {"referee"} and (saved.loc[saved["metric"] == "flags", "value"] >= 1).all()
    grid = referee_report.flag_grid(found)
    assert grid.shape == (len(verdict.flags), 2) and set(grid.to_numpy().ravel()) <= {
        "clear",
        "raised",
        "open",
    }
    assert "not established" in referee_report.what_we_saw(book, found)
    shown = referee_report.members(verdict)
    assert (
        shown["people it is chosen for"].sum() == 3 and shown["AttAcc alone, main"].str.endswith(" %").all()
    )
    assert referee_report.not_judged(book, found) == ""


def test_constants_are_settled_by_the_throw_away_target(
    book: Workbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "LENGTH", 1.0)
    monkeypatch.setattr(inversion, "judge_reconstructions", lambda *_: pytest.fail("an evaluator was asked"))
    assert settle.coverage(book.setup) == "Preset digits: 0 of 2 trials are made; missing: ppa 2."
    table = settle.settle(book.setup, "ppa")
    assert settle.coverage(book.setup) == "Preset digits: 2 of 2 trials are made."
    assert sorted(table["learning_rate"]) == ["0.05", "0.2"] and (table["people"] == 3).all()
    assert table["target_confidence"].is_monotonic_decreasing
    monkeypatch.setattr(settle, "rank", lambda *_, **__: pytest.fail("a trial was repeated"))
    again = settle.settle(book.setup, "ppa")
    assert again["target_confidence"].tolist() == pytest.approx(table["target_confidence"].tolist(), abs=1e-4)
    fewer = copy.deepcopy(book.setup.grids)
    fewer["ppa"]["learning_rate"] = fewer["ppa"]["learning_rate"][:1]
    assert len(settle.settle(dataclasses.replace(book.setup, grids=fewer), "ppa")) == 1
    shown = settle.tried(book.setup)
    assert len(shown) == 2 and not shown["chosen"].any(), "the setup has a third value, and no trial is lost"
    settled = copy.deepcopy(book.setup.attacks)
    settled["ppa"]["quick"]["learning_rate"] = 0.2
    shown = settle.tried(dataclasses.replace(book.setup, attacks=settled)).set_index("constants")
    assert shown["chosen"].to_dict() == {"learning rate 0.05": False, "learning rate 0.2": True}
    with pytest.raises(UserError, match="no grid for 'gmi'"):
        settle.settle(book.setup, "gmi")


def test_trials_of_another_target_prior_or_attack_do_not_count(
    book: Workbook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    monkeypatch.setattr(targets, "target", lambda *_, **__: pytest.fail("something was trained"))
    values = json.dumps({**settle._usual(book.setup, "ppa"), "learning_rate": 0.05}, sort_keys=True)
    row = {"values": values, "target_confidence": 0.5, "made_of": settle._made_of(book.setup, "ppa")}
    path = settle._tables(book.setup, "ppa")[0]
    path.parent.mkdir(parents=True)

    def count(setup: Setup, **changes: str) -> int:
        pd.DataFrame([{**row, **changes}]).to_csv(path, index=False)
        return len(settle.tried(setup))

    assert count(book.setup) == 1 and count(book.setup, made_of="") == 1, (
        "it is of before the column was there"
    )
    recipe = {**book.setup.target.recipe, "learning_rate": 1e-3}
    target = dataclasses.replace(book.setup.target, recipe=recipe)
    others = [{"target": target}, {"priors": {"eigenfaces": {"components": 7}}}]
    assert [count(dataclasses.replace(book.setup, **other)) for other in others] == [0, 0]
    method = dataclasses.replace(attacks.get("ppa"), own_revision=9)
    monkeypatch.setattr(attacks, "get", lambda name: method)
    assert count(book.setup) == 0


def test_every_grid_and_listed_attack_of_the_shipped_setups_is_valid() -> None:
    for name in setup_names():
        shown = open_workbook(name)
        for attack in shown.setup.grids:
            prior, budget, trials = settle.trials(shown.setup, attack)
            own = shown.setup.attacks[attack].get(prior, {}) | shown.setup.budget(attack, budget)
            assert len(trials) > 1 and all(attacks.get(attack).budget(**{**own, **trial}) for trial in trials)
        study = shown.study
        listed = [
            *study.compared,
            *study.adaptive,
            *study.referee,
            *study.curves,
            *study.repeated_attacks,
            study.swept,
        ]
        for attack in shown.listed_attacks(listed):
            method = attacks.get(attack.attack)
            method.budget(**attack.values)
            assert attack.prior in shown.setup.priors | shown.setup.target_priors
            assert method.prior in (None, attack.prior)
