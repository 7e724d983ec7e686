"""What notebooks 02 to 04 compute: closed forms where there are some, and words that follow the numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from lib import plots, statistics
from lib.data import Images
from lib.erasing import ErasingLaw
from lib.priors import Eigenfaces
from lib.reports import erasing_report, prior_quality, training_report
from lib.reports.prior_quality import GROUPS, PUBLIC, Quality
from lib.reports.workbook import open_workbook
from lib.statistics import Interval, wilson

# --- 02 -----------------------------------------------------------------------------------------------


def test_estimated_exposure_agrees_with_the_exact_one_and_a_wrong_law_does_not():
    laws = {"re": ErasingLaw(scale=(0.1, 0.4)), "toroidal": ErasingLaw(scale=(0.5, 0.5), location="toroidal")}
    maps = erasing_report.exposure_maps(laws, 16, draws=4000)
    table = erasing_report.exposure_table(laws, maps, draws=4000)
    assert (table["off"] < erasing_report.ERRORS).all()
    assert table.loc["re", "centre"] > 5 * table.loc["re", "corner"]
    shown = erasing_report.shown(table.assign(off=[np.nan, 2.5]))
    assert list(shown["off"]) == ["", "2.500"] and shown.loc["re", "mean area"].startswith("0.2")
    wrong = erasing_report.exposure_table(
        {"re": ErasingLaw(scale=(0.1, 0.5))}, {"re": maps["re"]}, draws=4000
    )
    assert wrong.loc["re", "off"] > 3 * erasing_report.ERRORS


def test_torchvision_hides_the_same_area():
    laws = {
        "rectangle": ErasingLaw(scale=(0.2, 0.4), shape="rectangle", ratio=(0.4, 2.5)),
        "disc": ErasingLaw(shape="disc"),
        "fixed": ErasingLaw(location="fixed"),
    }
    table = erasing_report.torchvision_table(laws, 16, draws=500)
    assert list(table.index) == ["rectangle"], "torchvision knows no other law"
    assert abs(table.loc["rectangle", "ours"] - table.loc["rectangle", "torchvision"]) < 0.02
    assert table.loc["rectangle", "difference"].low <= 0.02


def test_words_about_exposure_follow_the_table():
    table = pd.DataFrame(
        {
            "mean_area": [0.25, 0.5],
            "centre": [0.74, 0.5],
            "quarter": 0.3,
            "edge": 0.1,
            "corner": [0.003, 0.5],
        },
        index=["re(0.1,0.4)", "toroidal"],
    )
    first, second = erasing_report.finding(table).splitlines()
    assert "centre in 74% of the draws, the corner in 0.3%" in first
    assert "centre and corner in 50% and 50% of the draws" in second
    assert erasing_report.pixels_seen(table, 1000).iloc[:, 1].tolist() == [750, 500]


# --- 03 -----------------------------------------------------------------------------------------------


@pytest.fixture
def book():
    return open_workbook("digits", ["none", "re(0.1,0.4)", "fe(0.5)"], [0], [0])


def seeds(*points: float) -> statistics.SeedSummary:
    nothing = Interval(0.0, 0.0, 0.0, 1)
    over = Interval(0.75, 0.115, 1.385, 2)
    return statistics.SeedSummary(np.array(points), over, nothing, nothing)


def cost(**differences: Interval) -> pd.DataFrame:
    names = {"re": "re(0.1,0.4)", "fe": "fe(0.5)"}
    whole = Interval(0.9, 0.8, 1.0, 62)
    nodef = {"defence": "none", "seeds": seeds(0.9), "natural_accuracy": whole}
    rows = [{**nodef, "detectable": np.nan, "mcnemar": np.nan}]
    for key, difference in differences.items():
        accuracy = Interval(0.8, 0.7, 0.9, 62)
        rows.append(
            {
                "defence": names[key],
                "seeds": seeds(0.8, 0.7),
                "natural_accuracy": accuracy,
                "difference": difference,
                "detectable": 0.04,
                "mcnemar": 0.0312,
            }
        )
    return pd.DataFrame(rows)


def test_what_a_defence_costs_in_words_and_in_the_title(book):
    table = cost(re=Interval(-0.01, -0.03, 0.01, 62), fe=Interval(-0.2, -0.25, -0.15, 62))
    large = open_workbook("lfw64", ["none", "re(0.1,0.4)", "fe(0.5)"], [0], [0])
    first, second = training_report.finding(large, table).splitlines()
    assert "no difference established. (Could detect 4.0 points.)" in first and "lower" in second
    plots.theme()
    assert training_report.cost_figure(large, table).get_title(loc="left") == "1 of 2 defences costs accuracy"
    assert training_report.finding(book, table).count("too small to conclude") == 2
    shown = training_report.cost_table(table)
    assert shown.loc["fe(0.5)", "minus NoDef"] == "-20.0 points [-25.0, -15.0]"
    assert shown.loc["none", "detectable"] == shown.loc["none", "McNemar's p (Holm)"] == ""
    assert shown.loc["none", "each training seed"] == "90.0 %"
    assert shown.loc["fe(0.5)", "each training seed"] == "80.0, 70.0 % (t: 11.5 to 100.0)"
    assert shown.loc["fe(0.5)", "McNemar's p (Holm)"] == "0.031"


def test_the_expected_area_is_that_of_the_law(book):
    assert training_report._area(ErasingLaw(scale=(0.25, 0.25)), book) == pytest.approx(0.25)
    assert training_report._area(ErasingLaw(scale=(0.3, 0.3), shape="disc"), book) == pytest.approx(
        0.3, abs=0.02
    )


def test_the_headline_is_the_best_of_what_was_tried(book, monkeypatch):
    lengths = pd.DataFrame(
        {
            "defence": ["none", "none", "re(0.1,0.4)", "re(0.1,0.4)"],
            "training_steps": [30, 60, 30, 60],
            "training_seed": 0,
            "metric": "natural_accuracy",
            "split": "validation",
            "value": [0.9, 0.8, 0.5, 0.7],
        }
    )
    monkeypatch.setattr(training_report, "headline_steps", lambda book: {"none": 30.0, "re(0.1,0.4)": 60.0})
    assert training_report.headline_was_tried(book, lengths)
    assert "none: 30 steps 90.0 %, 60 steps 80.0 %; headline 30" in training_report.length_sentence(
        book, lengths
    )
    monkeypatch.setattr(training_report, "headline_steps", lambda book: {"none": 60.0})
    assert not training_report.headline_was_tried(book, lengths)


# --- 04 -----------------------------------------------------------------------------------------------


def quality(kids: dict[str, float], nearer: float = 0.5) -> Quality:
    noise = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
    groups = {
        name: {
            "kid": kid + noise,
            "precision": np.ones(GROUPS),
            **{m: 0.5 + noise for m in ("recall", "coverage")},
        }
        | {"density": 1 + noise}
        for name, kid in kids.items()
    }
    shares = {name: wilson(round(200 * nearer), 200) for name in kids if name != PUBLIC}
    return Quality("lfw64", "verifier", 40, groups, shares, {"stylegan": {"training photos": 1.0}})


def test_the_nearer_prior_is_named_only_when_the_groups_agree():
    text = prior_quality.quality_sentence(quality({"eigenfaces": 0.5, "stylegan": 0.2}), conclusive=True)
    assert "stylegan is nearer" in text and "no sign of memorising" in text
    close = quality({"eigenfaces": 0.2, "stylegan": 0.2})
    close.groups["stylegan"]["kid"] = close.groups["stylegan"]["kid"][::-1]
    assert "no difference established" in prior_quality.quality_sentence(close, conclusive=True)
    assert "Too small to conclude" in prior_quality.quality_sentence(close, conclusive=False)
    copies = quality({"eigenfaces": 0.5, "stylegan": 0.2}, nearer=0.7)
    assert "memorises" in prior_quality.quality_sentence(copies, conclusive=True)


def test_intervals_stay_within_what_a_metric_can_be_and_are_never_empty():
    found = quality({"eigenfaces": 0.5})
    exact = found.interval("eigenfaces", "precision")
    assert exact.value == exact.high == 1 and 0.98 < exact.low < 1
    found.groups["eigenfaces"]["recall"] = np.array([0.9, 1.0, 1.0, 1.0, 1.0])
    assert found.interval("eigenfaces", "recall").high == 1
    assert found.interval("eigenfaces", "kid").value == pytest.approx(0.5)


def test_quality_is_saved_in_the_schema_of_curves():
    from lib import results

    rows = prior_quality.quality_rows(quality({"eigenfaces": 0.5, "stylegan": 0.2, PUBLIC: 0.0}))
    results.save_curves(rows, "quality", allow_missing={"critic_logit"})
    table = results.load_curves("quality")
    assert set(table["metric"]) == {*prior_quality.METRICS, "nearer_to_training_rate", "critic_logit"}
    assert set(table[table["prior"] == ""]["split"]) == {"public_photos"}


def test_groups_of_one_distribution_are_near_and_of_two_are_not():
    stream = torch.Generator().manual_seed(0)
    real, same = torch.randn(2, 100, 4, generator=stream)
    near, far = prior_quality._compare(real, same), prior_quality._compare(real, same + 3)
    assert {len(values) for values in near.values()} == {GROUPS} and set(near) == set(prior_quality.METRICS)
    assert far["kid"].min() > near["kid"].max() and far["precision"].max() < near["precision"].min()


def test_all_components_express_everything_within_their_span():
    pixels = torch.randint(
        0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    faces = Eigenfaces.fit(pixels, components=39)
    photos = Images(pixels, torch.arange(40) // 4)
    first, last = prior_quality._shares(faces, photos, photos.labels, [1, 39])
    assert last.value == pytest.approx(1, abs=1e-3) and last.n == 10
    assert 0 < first.low < first.value < first.high < 0.5
