"""The stages wired together on a toy world: keys, headline, controls, rows, reports, plans and refusals."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY
from IPython.display import Markdown
from safetensors.torch import save_file

from lib import results, statistics, store
from lib.defences import build
from lib.errors import UserError
from lib.models import build_classifier
from lib.reports import (
    ablations,
    budget,
    evaluation_report,
    feature_report,
    inversion_report,
    tradeoff_report,
)
from lib.reports.advantages import advantages
from lib.reports.feature_words import answers
from lib.reports.tables import pivot, points, readable
from lib.reports.workbook import Workbook, open_workbook, slug
from lib.results.schema import check
from lib.run import notebooks, publish
from lib.run.plan import plan
from lib.setups import load_setup
from lib.setups.schema import FOLDER
from lib.stages import inversion, measures, success, targets
from lib.stages.inversion import Attack
from lib.statistics import Interval
from lib.training import train_classifier

DEFENCES = ["none", "re(.1,.4)"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with the toy world's setup, and the store and results that the tests of this module share."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture
def book(toy, monkeypatch) -> Workbook:
    monkeypatch.setenv("MIDRE_CACHE", str(toy / "cache"))
    monkeypatch.setenv("RESULTS_DIR", str(toy / "results"))
    return open_workbook(str(toy / "tiny.yaml"), DEFENCES, [0], [0])


@pytest.fixture(scope="module")
def memory() -> dict:
    """What is measured once for all tests of this module; its files lie in the toy folder."""
    return {}


@pytest.fixture
def measured(book, memory) -> pd.DataFrame:
    if "table" not in memory:
        memory["table"] = evaluation_report.measured(book)
    return memory["table"]


@pytest.fixture
def space(book, measured, memory) -> feature_report.FeatureReport:
    if "space" not in memory:
        memory["space"] = feature_report.feature_report(book)
    return memory["space"]


# --- opening ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("nowhere",), "unknown setup 'nowhere': expected one of .*digits"),
        (("digits", ["rex(0.1)"]), "defence 'rex': expected one of"),
        (("digits", ["re(0.4,0.1)"]), "low <= high"),
        (("digits", [], [-1]), "seeds: expected whole numbers of at least 0, got -1"),
        (("digits", [], [0], [1.5]), "seeds: expected whole numbers of at least 0, got 1.5"),
        (("digits", [], [True]), "seeds: .*got True"),
    ],
)
def test_what_cannot_be_opened_is_refused_at_once(arguments, word):
    with pytest.raises(UserError, match=word):
        open_workbook(*arguments)


def test_unknown_key_and_wrong_type_in_a_setup_are_refused(tmp_path):
    for change, word in (
        ({"colour": 1}, "unknown key 'colour'"),
        ({"image_size": "16"}, "image_size: expected int"),
    ):
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump({**TINY, **change}))
        with pytest.raises(UserError, match=word):
            open_workbook(str(path))


def test_a_renamed_copy_of_a_setup_runs_on_the_usual_study(tmp_path, monkeypatch):
    copy = tmp_path / "faces of mine.yaml"
    copy.write_text((FOLDER / "folder.yaml").read_text().replace("name: folder", "name: mine"))
    own, usual = open_workbook(str(copy)), open_workbook("folder")
    assert own.setup.name == own.study.setup == "mine" and own.defences == usual.defences
    assert replace(own.study, setup="folder") == usual.study
    seen = {}
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *_, results, **__: seen.update(folder=results))
    notebooks.run_setup(str(copy), names=["01"])
    assert seen["folder"] == results.run_dir("mine"), "where its tables and figures are, too"
    with pytest.raises(UserError, match="expected complete runs in results/runs/mine, missing"):
        publish.publish(str(copy))


def test_results_of_a_renamed_setup_carry_its_name(tmp_path):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**TINY, "name": "mine"}))
    mine = open_workbook(str(tmp_path / "x.yaml"), ["none"], [0], [0])
    table = mine.invert([mine.attack("none"), mine.attack("none", budget="quick")])
    assert set(table["setup"]) == {"mine"} and table.groupby("budget")["headline"].first().to_dict() == {
        "headline": 1,
        "quick": 0,
    }


def test_empty_parameters_mean_the_study_and_names_become_canonical(book):
    assert open_workbook("digits").defences[:2] == ("none", "re(0.1,0.4)")
    assert book.defences == ("none", "re(0.1,0.4)") and book.study.setup == "digits"
    assert slug("re(0.5,0.5,location=toroidal)") == "re-0.5-0.5-location-toroidal"


def test_given_defences_are_looked_at_in_every_list_and_no_others():
    """One's own defence is in no study; notebooks 10 to 13 are to have it all the same."""
    whole = open_workbook("digits").study
    assert open_workbook("digits", ["none"]).study == whole
    given = ["negls(-.05)", "ssf(0.37)", "re(.1,.4)+rolss"]
    found = open_workbook("digits", ["none", *given]).study
    names = ["negls(-0.05)", "ssf(0.37)", "re(0.1,0.4)+rolss"]
    assert found.pages == found.evaded == found.backdoored == names
    assert found.combined == ["re(0.1,0.4)+rolss"] and found.repeated == []
    assert found.strengths == {
        "NoDef, weaker": whole.strengths["NoDef, weaker"],
        "NegLS": ["negls(-0.05)"],
        "given": ["ssf(0.37)", "re(0.1,0.4)+rolss"],
    }
    assert found.compared == whole.compared


# --- keys and choices ---------------------------------------------------------------------------------


def test_stage_keys_follow_what_determines_them(book):
    again = open_workbook("digits").setup
    assert (
        targets.target_stage(book.setup, "re(.1, .40)", 0, 1).key
        == targets.target_stage(book.setup, "re(0.1,0.4)", 0, 1.0).key
    )
    keys = {
        targets.target_stage(setup, defence, seed, multiple).key
        for setup in (book.setup, again)
        for defence in ("none", "re(0.1,0.4)")
        for seed in (0, 1)
        for multiple in (1, 2)
    }
    assert len(keys) == 16
    base = book.attack("none")
    made = inversion.reconstruction_stage(base, targets.target_stage(book.setup, "none", 0, 1))
    for change in ({"attack_seed": 1}, {"budget": "quick"}):
        other = inversion.reconstruction_stage(
            replace(base, **change), targets.target_stage(book.setup, "none", 0, 1)
        )
        assert other.key != made.key
    assert base.values["learning_rate"] == 0.1 and base.values["candidates"] == 6, (
        "the prior's constants, then the budget's"
    )


def test_overridden_constants_are_in_the_keys_where_they_apply(book):
    plain = book.setup
    evaluators = {**plain.evaluators, "panel_1": replace(plain.evaluators["panel_1"], defence="re(0.1,0.4)")}
    plain = replace(plain, evaluators=evaluators)
    black = replace(plain, defences={"re": {"value": "black"}, "fe": {}})

    def changed(make) -> bool:
        return make(plain).key != make(black).key

    assert changed(lambda setup: targets.target_stage(setup, "re(.1,.4)", 0, 1))
    assert changed(lambda setup: targets.judge_stage(setup, "panel_1")), "its training erases"
    for defence in ("none", "fe(0.5)", "fewer(0.5)"):
        assert not changed(lambda setup: targets.target_stage(setup, defence, 0, 1)), defence  # noqa: B023
    assert not changed(lambda setup: targets.judge_stage(setup, "main"))
    feint = replace(plain, defences={"fe": {"value": "mean"}})
    assert (
        targets.target_stage(feint, "fewer(0.5)", 0, 1).key
        == targets.target_stage(plain, "fewer(0.5)", 0, 1).key
    )


def test_an_explicit_constant_survives_the_setups_override(book, toy):
    path = toy / "black.yaml"
    path.write_text(yaml.safe_dump({**TINY, "defences": {"re": {"value": "black"}}}))
    black = open_workbook(str(path), ["none", "re(.1,.4,value=black)", "re(.1,.4,value=grey)"], [0], [0])
    names = ("none", "re(0.1,0.4)", "re(0.1,0.4,value=grey)")
    assert black.defences == ablations.with_defences(black, black.defences, ()).defences == names
    for name, value in zip(names[1:], ("black", "grey"), strict=True):
        assert (
            black.attack(name).defence
            == targets.target_stage(black.setup, name, 0, 1).params["defence"]
            == name
        )
        (made,) = build(name, black.setup.defences)
        assert made.law.value == value and made.name == name
    assert targets.multiples_of(black.setup, "re(.1,.4,value=black)") == [1], "the setup's own list"


@pytest.mark.parametrize(
    ("scores", "chosen"), [([0.5, 0.8], 2), ([0.8, 0.5], 1), ([0.8, 0.8], 1)], ids=["better", "worse", "tie"]
)
def test_the_headline_length_is_best_by_validation_ties_to_the_shorter(
    book, monkeypatch, tmp_path, scores, chosen
):
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path))

    def fake(setup, defence, seed, multiple):
        assert seed == 0, "the choice is made on training seed 0"
        return targets.Trained(None, None, {"validation_accuracy": scores[[1, 2].index(multiple)]})

    monkeypatch.setattr(targets, "target", fake)
    assert targets.headline(book.setup, "none") == chosen
    assert targets.headline(book.setup, "early(0.5)") == chosen, "controls share NoDef's length"
    assert targets.headline(book.setup, "fewer(0.5)+re(0.5,0.5)") == 1, "a composition is no control"
    assert targets.is_point("early(0.5)") and not targets.is_point("early(0.5)+re(0.5,0.5)")
    assert targets.headline(book.setup, "re(0.5,0.5)") == 1, "defences without a list share the last one's"


def test_early_is_a_point_of_the_nodef_run(book):
    early = targets.target(book.setup, "early(0.5)", 0, 1)
    assert store.exists(targets.target_stage(book.setup, "none", 0, 1)), (
        "the run that leaves its points is trained"
    )
    photos = book.world.train
    alone = train_classifier(
        lambda recipe: build_classifier(book.setup.target.network, 3, 16, width=recipe.width),
        photos,
        recipe=targets.recipe_of(book.setup.target, "tiny"),
        defences=build("early(0.5)"),
        seed=0,
        device=torch.device("cpu"),
    )
    assert early.steps == 4
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, early.model.state_dict()[name]), name


def test_a_killed_training_goes_on_from_its_checkpoint_and_ends_alike(book, monkeypatch, tmp_path):
    whole = targets.target(book.setup, "none", 0, 2).model.state_dict()
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path))
    monkeypatch.setattr(store, "Checkpoint", functools.partial(store.Checkpoint, every=0))
    seen = []

    def killed(label, done, total):
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(targets, "report", killed)
    with pytest.raises(KeyboardInterrupt):
        targets.target(book.setup, "none", 0, 2)
    assert not store.exists(targets.target_stage(book.setup, "none", 0, 2))
    first = len(seen)
    resumed = targets.target(book.setup, "none", 0, 2).model.state_dict()
    assert seen[first] > seen[0], "it does not start again"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# --- rows ---------------------------------------------------------------------------------------------


def test_tables_follow_the_schema_one_row_per_run_and_metric(book, measured):
    saved = results.load_tables("digits__*", folder=results.output_dir("digits"))
    assert tuple(saved.columns) == results.COLUMNS
    check(saved, "tables", allow_missing={"scaled_leakage"})
    keys = [name for name in results.COLUMNS if name not in ("value", "low", "high", "n", "headline")]
    assert not saved.duplicated(keys).any()
    assert {"natural_accuracy", "attack_accuracy_top1", "verifier_match", "kid", "target_probability"} <= set(
        saved.metric
    )
    assert (measured.headline == 1).all() and set(measured.defence) == {"none", "re(0.1,0.4)"}
    assert set(saved[saved.attack == ""].prior) == {""}


def test_only_the_studys_budget_prior_and_attack_are_headline(book, measured):
    quick = book.invert([book.attack("none", budget="quick")])
    half = book.invert([book.attack("none", multiple=0.5 * targets.headline(book.setup, "none"))])
    assert (quick.headline == 0).all() and (half.headline == 0).all()
    points = book.points(["none"])
    assert points.attack.shape == (1, 1, 3), "weaker budgets and shorter trainings are not mixed in"
    own = measured[
        (measured.metric == "attack_accuracy_top1")
        & (measured.defence == "none")
        & (measured.evaluator == "main")
    ]
    assert points.means()[1][0] == pytest.approx(own["value"].iloc[0], abs=1e-5)


def test_per_identity_values_average_to_the_tables_rows(book, measured):
    saved = results.load_identities("digits__*", folder=results.output_dir("digits"))
    chosen = (
        (saved.metric == "verifier_match") & (saved.budget == "headline") & (saved.defence == "re(0.1,0.4)")
    )
    row = measured[(measured.metric == "verifier_match") & (measured.defence == "re(0.1,0.4)")]
    assert saved[chosen]["value"].mean() == pytest.approx(row["value"].iloc[0], abs=1e-5)
    assert sorted(saved[chosen]["identity"].astype(int)) == [0, 1, 2]


def test_judging_is_of_the_kept_candidates(book, measured):
    attack = book.attack("none")
    made, seen = inversion.reconstruct(attack), inversion.judge_reconstructions(attack)["reconstructions"]
    kept = measures.kept_index(made.selected, 6)
    assert seen.labels[kept].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    images = inversion.pictures(attack, range(len(made.labels)), made.selected).flatten(0, 1)
    _, logits = attack.target().model.both(images)
    assert torch.allclose(logits, seen.logits["target"][kept], atol=0.02), "logits are stored as fp16"


# --- reports ------------------------------------------------------------------------------------------


def test_advantages_compare_nodef_with_itself_as_nothing(book, measured):
    frame = advantages(book)
    own = frame[frame.defence == "none"].iloc[0]
    assert own.utility_difference.value == 0 and own.privacy_gain.value == 0
    assert not own.paper_ratio.defined and own.verdict.outcome == "not established"
    assert book.frontier_names == ["early(0.5)", "none"]
    other = frame[frame.defence == "re(0.1,0.4)"].iloc[0]
    assert other.privacy_gain.value == pytest.approx(own.attack_accuracy.value - other.attack_accuracy.value)


def test_people_are_in_the_order_of_their_numbers(book):
    """They meet counts of photos in that order; sorted as text, person 10 would get the photos of person 2."""
    rows = [
        {"metric": "natural_accuracy", "evaluator": "", "defence": "none", "training_seed": 0}
        | {"identity": str(person), "value": person / 20}
        for person in range(12)
    ]
    found = book.per_identity(pd.DataFrame(rows), "natural_accuracy", "", "none")
    assert found.tolist() == [[person / 20 for person in range(12)]]


def test_the_trade_off_has_the_natural_accuracy_of_the_tables(book, measured):
    table = results.load_tables(f"{book.setup.name}__*", folder=results.output_dir(book.setup.name))
    frame, shown = advantages(book).set_index("defence"), tradeoff_report.tradeoff_frame(book)
    outside = advantages(book).assign(extrapolated=True, P_dominates=0.0)
    assert set(tradeoff_report.comparison_table(outside)["by this judge alone"]) == {
        "none: less accurate than any NoDef"
    }
    for defence in book.defences:
        rows = table[(table["metric"] == "natural_accuracy") & (table["defence"] == defence)]
        value = rows[(rows["split"] == "test") & (rows["headline"] == 1)]["value"].mean()
        assert frame.loc[defence, "natural_accuracy"].value == pytest.approx(value, abs=1e-4)
        assert shown.set_index("defence").loc[defence, "natural"] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(("asked", "seeds"), [([], {3, 1}), ([1], {1}), ([0], {3})])
def test_the_frontier_is_of_the_runs_that_the_study_names(book, asked, seeds):
    two = replace(book, training_seeds=(3, 1), study=replace(book.study, frontier_seeds=asked))
    assert {attack.training_seed for attack in two.frontier_attacks()} == seeds == set(two.frontier_seeds)


def test_evaluation_pages_agree_with_each_other(book, measured):
    comparisons = tradeoff_report.comparisons(book)
    assert len(comparisons) == 2 * len(tradeoff_report.JUDGES)
    text = tradeoff_report.verdicts(book, comparisons)
    assert text.count("too small to conclude") == 1 and "RE [.1, .4]" in text
    saved = results.load_curves("digits__comparisons", folder=results.output_dir("digits"))
    assert len(saved) == 3 * len(comparisons) and set(saved.metric) == {
        "utility_difference",
        "privacy_gain",
        "advantage",
    }
    table = tradeoff_report.comparison_table(comparisons)
    itself = ["utility difference", "privacy gain", "P(dominates NoDef)", "the paper's ratio"]
    assert set(table.loc["none", itself]) == {""} and "" not in set(table.loc["re(0.1,0.4)", itself])
    assert "points" in table.loc["none", "advantage"], "how well the frontier fits"
    judges = evaluation_report.judges(book)
    assert {"evaluator accuracy", "verifier match rate"} <= set(
        judges["metric"]
    ) and "panel 1" in judges.index
    checks = evaluation_report.checks(book, measured, comparisons)
    assert "False" not in checks and "comparisons: (6, 3)" in checks
    frame = tradeoff_report.tradeoff_frame(book)
    assert list(frame.defence) == ["none", "re(0.1,0.4)", "early(0.5)"]
    frontier = tradeoff_report.frontier_frame(book, at=5)
    assert (frontier.attack.diff().dropna() >= -1e-12).all(), "merely training less cannot leak more"
    assert ((frontier.low <= frontier.attack + 1e-9) & (frontier.attack <= frontier.high + 1e-9)).all()


def test_families_sweep_plain_re_only(book):
    wide = replace(book, defences=("none", "re(0.1,0.4)", "re(0.5,0.5,location=toroidal)", "fe(0.5)"))
    assert tradeoff_report.families(wide)["RE, random place"] == ["none", "re(0.1,0.4)"]
    assert "RE, random place" not in tradeoff_report.families(replace(book, defences=("none", "fe(0.5)")))


def conclusive(book: Workbook) -> Workbook:
    large = replace(book, setup=replace(book.setup, name="lfw64"))
    vars(large)["conclusive"] = True  # whatever its few people
    return large


def test_verdicts_need_every_judge(book):
    def row(judge: str, low: float, high: float) -> dict:
        interval = Interval((low + high) / 2, low, high, 62)
        return {
            "defence": "re(0.1,0.4)",
            "evaluator": judge,
            "advantage": interval,
            "detectable": 0.05,
            "extrapolated": False,
            "verdict": statistics.verdict(interval, defence="RE"),
        }

    judges = tradeoff_report.JUDGES
    for bounds, expected in (
        ([(0.1, 0.2)] * 3, "Holds by every judge"),
        ([(-0.1, 0.2)] * 3, "Not established by any judge"),
        ([(0.1, 0.2), (0.1, 0.2), (-0.1, 0.2)], "Established by main, panel majority; not by verifier"),
        ([(0.1, 0.2), (0.1, 0.2), (-0.3, -0.1)], "The judges disagree"),
    ):
        frame = pd.DataFrame([row(judge, *pair) for judge, pair in zip(judges, bounds, strict=True)])
        assert expected in tradeoff_report.verdicts(conclusive(book), frame)
    frame["extrapolated"] = True
    assert "no verdict" in tradeoff_report.verdicts(conclusive(book), frame)


def test_the_attacks_sanity_is_paired_and_says_too_small(book, measured):
    table = inversion_report.sanity(book, book.attack("none"))
    assert list(table.judge) == ["main", "panel_1", "panel_majority", "verifier", "verifier"]
    gains = [row.reconstructions.value - row.prior_samples.value for row in table.itertuples()]
    assert np.allclose([interval.value for interval in table.gain], gains)
    assert "Too small to conclude" in inversion_report.sanity_sentence(book, table)
    strong = table.assign(gain=[Interval(0.3, 0.1, 0.5, 62)] * len(table))
    assert "beats its prior samples" in inversion_report.sanity_sentence(conclusive(book), strong)
    weak = table.assign(
        gain=[Interval(0.3, 0.1, 0.5, 62)] * (len(table) - 1) + [Interval(0.1, -0.1, 0.3, 62)]
    )
    assert "does not clearly beat" in inversion_report.sanity_sentence(conclusive(book), weak)


def test_faces_are_the_marked_reconstructions_of_the_shown_people(book, measured):
    shown = inversion_report.faces(book, ["none"], best=2)
    assert shown["people"] == ["0", "1", "2"] and [len(p) for p in shown["private"]] == [2, 2, 2]
    (images,), (marks,) = shown["reconstructed"].values(), shown["marks"].values()
    assert [tuple(i.shape) for i in images] == [(2, 3, 16, 16)] * 3
    _, logits = targets.judge(book.setup, "main").model.both(torch.cat(list(images)))
    assert (logits.argmax(1) == torch.tensor([0, 0, 1, 1, 2, 2])).tolist() == sum(marks, [])
    assert f"{sum(map(sum, marks))} of 6" in inversion_report.faces_caption(book, shown)
    before, after = inversion_report.journeys(book, book.attack("none")).values()
    assert before.shape == after.shape and not torch.equal(before, after)


def test_budgets_grow_and_equal_ones_count_once(book, measured):
    runs = budget.curve_attacks(book)
    assert [run.budget for run in runs] == ["sweep", "headline"]
    curve = budget.budget_curve(book)
    passes = curve.groupby("budget")["x"].first()
    assert passes["sweep"] < passes["headline"] and set(curve.curve) == {"attack_budget"}
    saved = results.load_curves("attack-budget__*", folder=results.output_dir("digits"))
    assert tuple(saved.columns) == results.CURVE_COLUMNS and len(saved) == len(curve) == 2 * len(budget.SHOWN)
    text = budget.curve_sentence(book, curve)
    assert "too small to conclude" in text and text.index("(sweep, ") < text.index("(headline, ")
    added = success.compare(*(success.measure([run]) for run in reversed(runs))).difference
    assert f"The last step adds {points(added)}" in text
    table = budget.rival_table(book)
    models = ("NoDef", "RE [.1, .4]")
    assert list(table.index) == [("ppa", "eigenfaces", "sweep", model) for model in models]


def test_the_feature_report_of_a_partial_book_is_of_what_is_there(book, space):
    asked = replace(book, partial=True, defences=(*book.defences, "fe(0.3)"), training_seeds=(0, 7))
    found = feature_report.feature_report(asked)
    assert found.book.defences == book.defences and found.book.training_seeds == (0,)
    pd.testing.assert_frame_equal(found.distances, space.distances)


def test_the_feature_report_measures_claims_and_says_too_small(book, space):
    report = space
    assert set(report.sets) == {("re(0.1,0.4)", "re(0.1,0.4)"), ("none", "re(0.1,0.4)")}
    sets = report.sets["none", "re(0.1,0.4)"]
    assert len(sets.sets["private_erased"][0]) == 4 * len(sets.sets["private_train"][0])
    claims = feature_report.claims(report)
    counts = claims[claims.defence != "none"].groupby("claim").size().to_dict()
    assert counts == {"away": 3, "away_more": 3, "separated": 7, "towards": 6, "towards_more": 1}
    votes = feature_report.votes(report).map(lambda interval: interval.value)
    more = claims[claims.claim == "towards_more"].iloc[0].interval.value
    law = votes.loc["re(0.1,0.4)"]["reconstructions"]
    assert more == pytest.approx(law["re(0.1,0.4)"] - law["none"])
    text = answers(report, claims)
    assert text.count("too small to conclude") == 4 and "RE [.1, .4]" in text
    saved = results.load_tables("*__features", folder=results.output_dir("digits"))
    assert {"feature_knn_distance", "nearest_set_vote", "logit_margin"} <= set(saved.metric)
    assert set(saved[saved.metric == "logit_margin"].attack) == {""}
    with pytest.raises(UserError, match="a defence besides none"):
        feature_report.feature_report(replace(book, defences=("none",)))


def test_feature_words_follow_the_interval_and_its_direction(book, space):
    claims, report = feature_report.claims(space), replace(space, book=conclusive(book))
    for value, expected in ((0.3, "yes"), (-0.3, "no, the opposite"), (0.0, "not established")):
        fixed = [
            Interval(sign * value, sign * value - 0.1, sign * value + 0.1, 62) for sign in claims.supports
        ]
        text = answers(report, claims.assign(interval=fixed))
        assert text.count(f"**{expected}**") == 4, expected


def test_under_one_budget_nothing_is_beyond_a_weaker_attack(book, space):
    alone = replace(space, control=pd.DataFrame(), book=conclusive(book))
    claims = feature_report.claims(alone)
    assert "away_more" not in set(claims["claim"]) and "none" not in set(claims["defence"])
    fixed = [Interval(sign * 0.3, sign * 0.3 - 0.1, sign * 0.3 + 0.1, 62) for sign in claims.supports]
    (line,) = [s for s in answers(alone, claims.assign(interval=fixed)).splitlines() if "farther" in s]
    assert "yes; there is no weaker attack to compare with" in line.split("**")[1]


def test_farther_counts_only_beyond_a_weaker_attack(book, space):
    claims, report = feature_report.claims(space), replace(space, book=conclusive(book))
    knn = claims[claims.measure == "knn_distance"].set_index(["defence", "claim"])["interval"]
    away, alone = (knn[name, "away"].value for name in ("re(0.1,0.4)", "none"))
    assert knn["re(0.1,0.4)", "away_more"].value == pytest.approx(away - alone)
    for beyond, expected in (
        (0.1, "not established"),
        (0.3, "yes"),
        (-0.3, "no, less far than a weaker attack"),
    ):
        values = [(beyond if claim == "away_more" else 0.4) for claim in claims.claim]
        fixed = [Interval(value, value - 0.2, value + 0.2, 62) for value in values]
        (line,) = [s for s in answers(report, claims.assign(interval=fixed)).splitlines() if "farther" in s]
        assert f"{expected}" in line.split("**")[1], line
        assert f"alone +0.40 [+0.20, +0.60], the model beyond it {beyond:+.2f}" in line
        assert beyond == 0.3 or not line.split("**")[1].startswith("yes")


def test_claims_are_printed_in_favour_when_positive(space):
    claims = feature_report.claims(space)
    fixed = [Interval(sign * 0.3, sign * 0.3 - 0.1, sign * 0.3 + 0.2, 62) for sign in claims.supports]
    table = feature_report.claim_table(claims.assign(interval=fixed))
    cells = set(table["RE [.1, .4]"])
    assert cells == {"+0.30 [+0.20, +0.50]", "+0.30 [+0.10, +0.40]"}, (
        "where the sign is turned, so are the ends"
    )
    assert (
        "towards_more" not in str(table) and ("more so than under NoDef", "nearest-set vote") in table.index
    )
    control = table["NoDef, weaker attack"]
    assert [claim for (claim, _), cell in control.items() if cell] == [
        "farther from private than under NoDef"
    ] * 3


def test_a_fixed_place_is_erased_once_a_photo(book, measured):
    report = feature_report.feature_report(replace(book, defences=("none", "fe(0.5)")))
    sets = report.sets["fe(0.5)", "fe(0.5)"]
    assert len(sets.sets["private_erased"][0]) == len(sets.sets["private_train"][0])


# --- ablations ----------------------------------------------------------------------------------------


def test_equal_pixels_pair_each_defence_with_a_shorter_nodef(book, measured):
    wide = ablations.with_defences(book, (), ablations.PARTIAL)
    runs = ablations.exposure_runs(wide)
    assert [(run.defence, run.share) for run in runs] == [
        ("none", 1.0),
        ("none", 0.75),
        ("none", 0.5),
        ("re(0.1,0.4)", 1.0),
        ("re(0.5,0.5)", 1.0),
    ]
    attacks = ablations.exposure_attacks(wide, runs, longest=2)
    assert [attack.multiple for run in runs for attack in attacks[run]] == [2, 1.5, 1, 2, 2]
    values = {"none": [0.9, 0.8, 0.5], "re(0.1,0.4)": [0.7], "re(0.5,0.5)": [0.2]}
    frame = pd.DataFrame(
        [
            {
                "name": run.name,
                "defence": run.defence,
                "pixels": run.pixels,
                "metric": "AttAcc, main",
                "values": np.full((1, 3), values[run.defence].pop(0)),
                "photos": None,
            }
            for run in runs
        ]
    )
    compared = ablations.equal_pixels(frame)
    assert list(compared.control) == ["NoDef, ¾ as long", "NoDef, half as long"]
    assert [c.difference.value for c in compared.comparison] == pytest.approx([-0.1, -0.3])


def test_exposure_of_the_places(book):
    wide = ablations.with_defences(book, (), ablations.PLACES)
    table = ablations.exposure_table(wide)
    random, fixed, toroidal = (table.loc[name] for name in ("RE [.5, .5]", "FE .5", "RE [.5, .5] toroidal"))
    assert random["centre"] == 1 and toroidal["spread over positions"] < 1e-9
    assert fixed["never shown"] == fixed["mean"] == pytest.approx(random["mean"])
    assert random["never shown"] == pytest.approx(
        float((ablations.exposure(book, "re(0.5,0.5)") == 1).double().mean())
    )
    assert toroidal["never shown"] == 0 and table.loc["NoDef", "mean"] == 0
    shares = [ablations.erased_share(book, f"re(0.1,0.5,curriculum={end})") for end in (0, 0.5, 1)]
    assert shares[0] > shares[1] > shares[2] > ablations.erased_share(book, "re(0.1,0.1)"), (
        "while it grows, too"
    )


def test_places_are_compared_person_by_person(book, measured):
    frame = ablations.places(book)
    assert len(frame) == 2 * 4 and all(values.shape == (1, 3) for values in frame["values"])
    compared = ablations.against(frame, "none")
    own = frame[frame.metric == "AttAcc, main"].set_index("defence")["values"]
    (difference,) = compared[compared.metric == "AttAcc, main"].comparison
    assert difference.difference.value == pytest.approx((own["re(0.1,0.4)"] - own["none"]).mean())
    assert "Too small to conclude" in ablations.difference_lines(book, compared)
    error = ablations.error_maps(book, book.attack("none"))
    assert error.shape == (3, 16, 16) and 0 <= float(error.min()) and float(error.max()) <= 1


@pytest.mark.parametrize(("slope", "answer"), [(0.3, "Yes"), (0.1, "No"), (0.2, "Not established")])
def test_what_the_attack_misses_is_read_against_nodef(book, slope, answer):
    exposure = torch.linspace(0, 1, 64).view(8, 8)
    noise = 0.01 * torch.randn(20, 1, 1, generator=torch.Generator().manual_seed(0))
    errors = {"none": 0.2 * exposure.expand(20, 8, 8), "fe(0.5)": (slope + noise) * exposure}
    found = ablations.misses("fe(0.5)", exposure, errors, bins=4)
    apart = float(exposure.flatten()[-16:].mean() - exposure.flatten()[:16].mean())
    assert found.control.value == pytest.approx(0.2 * apart)
    assert found.difference.value == pytest.approx(found.own.value - found.control.value)
    assert f"NoDef {found.control.value:+.3f}" in ablations.misses_title(found)
    assert ablations.misses_sentence(conclusive(book), found).startswith(f"**{answer}")
    assert "Too small to conclude" in ablations.misses_sentence(book, found)
    assert ablations.misses("fe(0.5)", torch.full((8, 8), 0.5), errors) is None
    assert "equally often" in ablations.misses_title(None) and "equally often" in ablations.misses_sentence(
        book, None
    )


# --- the plan, and what is shown ----------------------------------------------------------------------


def test_the_plan_lists_every_stage_once_and_sees_what_is_there(book, measured):
    budget.budget_curve(book)
    book = replace(
        book,
        study=replace(
            book.study,
            compared=[],
            adaptive=[],
            referee=[],
            curves=[],
            others=[],
            repeated=[],
            chosen_attacks=[],
        ),
    )  # the toy has few attacks
    steps = plan(book)
    keys = [step.stage.key for step in steps]
    assert len(keys) == len(set(keys))
    there = {step.stage.label for step in steps if step.there}
    assert {"digits photos", "digits main", "digits verifier", "digits prior eigenfaces"} <= there
    assert all(step.seconds == 0 for step in steps if step.there)
    assert {step.stage.kind for step in steps} >= {"target", "evaluator", "prior", "reconstructions"}
    made = {path.stem for path in store.cache_dir().glob("reconstructions-*.json")}
    planned = {step.stage.stem for step in steps if step.stage.kind == "reconstructions"}
    assert {
        f"reconstructions-{s.stage.key}" for s in steps if s.there and s.stage.kind == "reconstructions"
    } <= made
    assert len(planned) > 5


def test_shown_tables():
    frame = pd.DataFrame(
        {
            "gain": [Interval(0.1, -0.05, 0.25, 9)],
            "shift": [Interval(0.1, -0.05, 0.25, 9)],
            "unknown": [Interval(math.nan, math.nan, math.nan, 9)],
            "distance": [Interval(1.5, 1.0, 2.0, 9)],
            "verdict": [statistics.verdict(Interval(0.1, 0.05, 0.2, 9))],
        }
    )
    shown = readable(frame, plain=["distance", "shift"], signed=["gain", "shift", "unknown"])
    assert shown.to_dict("records") == [
        {
            "gain": "+10.0 points [-5.0, +25.0]",
            "shift": "+0.100 [-0.050, +0.250]",
            "unknown": "undefined",
            "distance": "1.500 [1.000, 2.000]",
            "verdict": "RE helps",
        }
    ]


def test_pivot_joins_seeds_and_keeps_the_order(book, measured):
    wide = pivot(measured, metrics=["verifier_match", "kid"], columns="metric")
    assert list(wide.columns) == ["verifier match rate", "KID"] and list(wide.index) == [
        "none",
        "re(0.1,0.4)",
    ]
    assert "%" in wide.iloc[0, 0] and "%" not in wide.iloc[0, 1]
    by_judge = pivot(measured, metrics=["attack_accuracy_top1"], evaluator=["main", "panel_1"])
    assert list(by_judge.columns) == ["main", "panel 1"]


# --- somebody's classifier without its photos ---------------------------------------------------------

FACTORY = """
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
"""


@pytest.fixture
def external(tmp_path, monkeypatch) -> Workbook:
    (tmp_path / "somebodys.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    weights = {"1.weight": torch.randn(4, 768, generator=generator) * 0.1, "1.bias": torch.zeros(4)}
    save_file(weights, tmp_path / "weights.safetensors")
    given = {
        "kind": "external",
        "factory": "somebodys:network",
        "weights": str(tmp_path / "weights.safetensors"),
    }
    setup = {
        **TINY,
        "data": {**TINY["data"], "private": {"source": "none"}},
        "target": {"network": given, "recipe": {"steps": 1}},
        "multiples": {"none": [1]},
        "snapshots": [],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(setup))
    return open_workbook(str(tmp_path / "mine.yaml"))


def test_without_private_photos_there_is_confidence_and_no_attack_accuracy(external):
    assert external.defences == ("none",) and not external.has_photos
    table = evaluation_report.measured(external)
    assert set(table.metric) == {"target_confidence", "target_probability"} and (table.n == 4).all()
    assert "AttAcc is unavailable" in evaluation_report.scope(external, table)
    shown = evaluation_report.target_side(table)
    assert shown.shape == (1, 2)
    comparisons = tradeoff_report.comparisons(external)
    for page in (
        evaluation_report.judges(external),
        tradeoff_report.tradeoff_figure(external),
        comparisons,
    ):
        assert isinstance(page, Markdown) and "unavailable" in page.data
    assert "unavailable" in tradeoff_report.verdicts(external, comparisons)
    assert not math.isnan(table["value"].iloc[0])
    assert [step.stage.kind for step in plan(external)] == ["data", "prior", "reconstructions"]


def test_other_weights_are_another_target(external, tmp_path):
    first = external.attack("none").target().stage.key
    save_file({"1.weight": torch.ones(4, 768), "1.bias": torch.zeros(4)}, tmp_path / "weights.safetensors")
    assert external.attack("none").target().stage.key != first


def test_points_of_a_finished_nodef_run_are_made_again_in_one_training(book, monkeypatch):
    setup = replace(book.setup, snapshots=[0.25, 0.75])
    length = targets.headline(setup, "none")
    names = [f"early({part:g})" for part in setup.snapshots]
    stages = [targets.target_stage(setup, name, 7, length) for name in names]
    whole = targets.target(setup, "none", 7).meta["history"]
    first = [store.find(stage) for stage in stages]
    for stage in stages:
        store.remove(stage.key)
    targets.target(setup, names[1], 7)
    monkeypatch.setattr(targets, "train_target", lambda *_, **__: pytest.fail("trained a second time"))
    for name, was in zip(names, first, strict=True):
        made = targets.target(setup, name, 7)
        assert made.steps == was.meta["steps"]
        until = [
            row["step"] for row in whole if row["step"] <= made.steps
        ]  # none before the first epoch's end
        assert [row["step"] for row in made.meta["history"]] == until
        for key, tensor in made.model.state_dict().items():
            torch.testing.assert_close(tensor, was.tensors[key].to(tensor.dtype))


def test_an_attack_names_its_row(book):
    attack = book.attack("re(.1,.4)", attack_seed=3, budget="quick")
    assert attack == Attack(book.setup, "re(0.1,0.4)", 0, "ppa", "eigenfaces", "quick", 3, None)
    with pytest.raises(UserError, match="no budget 'huge'"):
        _ = replace(attack, budget="huge").values
    assert load_setup("digits").name == "digits"
