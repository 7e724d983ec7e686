"""Evasion against a closed form, the backdoor's patterns, membership against scikit-learn, and their report."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY
from sklearn.metrics import roc_auc_score
from torch import nn

from lib import results, statistics
from lib.data import Images
from lib.errors import UserError
from lib.reports import correlation, sweep
from lib.reports import robustness_report as report
from lib.reports.workbook import Workbook
from lib.robustness import Backdoor, Evasion, evade, log_odds, membership, poison, stamp
from lib.run.plan import plan
from lib.setups import Study, load_setup
from lib.stages import records, robustness

QUICK = Evasion(radii=[4.0, 16.0], auto_radii=[16.0], steps=8, auto_steps=8, queries=60)


class Linear(nn.Module):
    """Two classes with the margin w x + b, and a third that never wins: evaded within radius r if and only if r ||w||_1
    exceeds it."""

    num_classes = 3
    image_size = 8

    def __init__(self, *, steps: int = 0) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3 * 64, generator=stream) / 192)
        self.steps = steps  # of a staircase that hides the gradient; 0: none

    def margin(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) - 0.5) @ self.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = self.margin(images)
        if self.steps:
            value = torch.floor(value * self.steps) / self.steps + 0 * value
        return torch.stack([value, -value, value.detach() * 0 - 10], 1)


def photos(count: int = 60) -> torch.Tensor:
    """Grey enough that no change within 16/255 meets the ends of the range."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


def test_a_linear_model_falls_exactly_where_its_margin_says() -> None:
    target, images = Linear(), photos()
    margin = target.margin(images).detach()
    labels = (margin < 0).long()
    labels[:5] = 1 - labels[:5]  # wrong as they are
    found = evade(target, images, labels, budget=QUICK, seed=0)
    right = torch.arange(len(images)) >= 5
    assert torch.equal(found["clean"][0.0], right)
    reach = target.weight.detach().abs().sum()
    for name, radius in (("fgsm", 4.0), ("fgsm", 16.0), ("pgd", 4.0), ("pgd", 16.0), ("autoattack", 16.0)):
        expected = right & (margin.abs() > radius / 255 * reach)
        near = (margin.abs() - radius / 255 * reach).abs() < 1e-3
        assert torch.equal(found[name][radius] | near, expected | near), (name, radius)
    assert 5 < found["fgsm"][4.0].sum() < 55, "some fall and some stand"
    assert all(p.requires_grad for p in target.parameters()), "left as it was"


def test_hidden_gradients_do_not_fool_autoattack() -> None:
    target, images = Linear(steps=30), photos()
    labels = target(images).argmax(1)
    found = evade(target, images, labels, budget=dataclasses.replace(QUICK, queries=200), seed=0)
    assert found["fgsm"][16.0].float().mean() > 0.9, "the staircase has no gradient"
    assert found["autoattack"][16.0].float().mean() < found["pgd"][16.0].float().mean() - 0.1


def test_evasion_repeats_and_leaves_the_generators_alone() -> None:
    target, images = Linear(), photos(20)
    labels = target(images).argmax(1)
    torch.manual_seed(5), np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5), np.random.seed(5)
    first = evade(target, images, labels, budget=QUICK, seed=1)
    assert (torch.rand(1), np.random.rand()) == expected
    again = evade(target, images, labels, budget=QUICK, seed=1)
    assert all(torch.equal(first[n][r], again[n][r]) for n in first for r in first[n])


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Evasion(radii=[]), "radii above 0"),
        (lambda: Evasion(auto_radii=[-1.0]), "radii above 0"),
        (lambda: Evasion(steps=0), "at least 1"),
        (lambda: evade(Linear(), photos(2), torch.zeros(3).long(), budget=QUICK, seed=0), "got 2 and 3"),
        (lambda: Backdoor(rate=0.0), "rate and a side"),
        (lambda: Backdoor(places=["edge"]), "places of corner, centre"),
        (lambda: Backdoor(places=["corner", "corner"]), "each once"),
        (lambda: Backdoor().aims(2), "more than 2 people"),
        (lambda: membership([1.0], [0], [1.0], [1], seed=0), "same people"),
    ],
)
def test_bad_input_is_refused(make, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make()
    assert "\n" not in str(error.value)


# --- the backdoor -------------------------------------------------------------------------------------


def test_the_pattern_is_where_it_should_be_and_nowhere_else() -> None:
    pixels = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    corner, centre = (stamp(pixels, place, side=0.125) for place in ("corner", "centre"))
    assert (pixels == 100).all(), "a copy"
    for stamped, first in ((corner, 55), (centre, 28)):
        changed = (stamped != 100).all(1)
        assert changed.sum() == 2 * 64 and changed[:, first : first + 8, first : first + 8].all()
        assert set(stamped[changed[:, None].expand_as(stamped)].tolist()) == {0, 255}
    assert not torch.equal(corner[0, 0, 55:63, 55:63], corner[0, 0, 55:63, 55:63].flip(1)), (
        "a mirror image differs"
    )


def test_poison_takes_other_peoples_photos_once() -> None:
    pixels = torch.randint(0, 256, (200, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    images = Images(pixels, torch.arange(200) % 10, [str(k) for k in range(10)], [f"{i}" for i in range(200)])
    plan = Backdoor(rate=0.1)
    planted = poison(images, plan, seed=3)
    moved = planted.images.labels != images.labels
    assert planted.count == {"corner": 16, "centre": 16}, "a tenth of the 160 photos of the eight others"
    assert moved.sum() == 32 and set(planted.images.labels[moved].tolist()) == set(
        plan.aims(10).values()
    ) == {0, 5}
    assert set(images.labels[moved].tolist()) <= {1, 2, 3, 4, 6, 7, 8, 9}
    touched = (planted.images.pixels != images.pixels).flatten(1).any(1)
    assert torch.equal(touched, moved), "a stamped photo is relabelled, and no other"
    again, other = poison(images, plan, seed=3), poison(images, plan, seed=4)
    assert torch.equal(again.images.pixels, planted.images.pixels)
    assert not torch.equal(other.images.labels, planted.images.labels)


# --- membership ---------------------------------------------------------------------------------------


def test_log_odds_are_of_the_true_label_and_finite() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    p = logits.double().softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(log_odds(logits, labels), (p / (1 - p)).log())
    sure = torch.tensor([[500.0, 0.0, 0.0]])
    assert log_odds(sure, torch.tensor([0])).item() == pytest.approx(500 - np.log(2))


def test_membership_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    people = np.arange(400) % 40
    members, others = rng.normal(1, 1, 400).round(1), rng.normal(0, 1, 400).round(1)  # with ties
    found = membership(members, people, others, people, seed=0)
    expected = roc_auc_score(np.r_[np.ones(400), np.zeros(400)], np.r_[members, others])
    assert found.auc.value == pytest.approx(expected) and found.auc.low < expected < found.auc.high
    threshold = np.sort(others)[-5]  # four of 400 may lie above it
    assert (others > threshold).mean() <= 0.01 and found.found.value == (members > threshold).mean()
    assert found.auc.n == 40
    assert found.auc.standard_error() == pytest.approx(0.016, rel=0.3), "of 400 against 400 at this distance"


def test_nobody_is_told_where_there_is_nothing_to_tell() -> None:
    rng = np.random.default_rng(1)
    people = np.arange(600) % 60
    found = membership(rng.normal(size=600), people, rng.normal(size=600), people, seed=0)
    assert found.auc.low < 0.5 < found.auc.high and found.found.low < 0.02


# --- the report ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("robustness")


@pytest.fixture
def book(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workbook:
    monkeypatch.setenv("MIDRE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("RESULTS_DIR", str(folder / "results"))
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    content = copy.deepcopy(TINY)
    content["robustness"] = {
        "evasion": {"radii": [8, 32], "auto_radii": [8], "steps": 3, "auto_steps": 3, "queries": 5},
        "backdoor": {"rate": 0.1, "side": 0.25},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    study = Study(
        "digits", ["none"], [0], [0], ["ppa"], "eigenfaces", "headline", swept="ppa eigenfaces quick",
        evaded=["none", "re(0.1,0.4)", "fe(0.5)"], backdoored=["none", "re(0.1,0.4)"],
    )  # fmt: skip
    return Workbook(load_setup(path), study, ("none",), (0,), (0,))


def test_nodef_comes_first_whatever_is_listed(book: Workbook) -> None:
    study = dataclasses.replace(book.study, evaded=["fe(0.5)", "none"], backdoored=[])
    other = dataclasses.replace(book, study=study)
    assert [attack.defence for attack in report.models(other)] == ["none", "fe(0.5)"], (
        "all are compared with it"
    )
    assert report.models(other, "backdoored") == []
    part = dataclasses.replace(book, partial=True)
    with pytest.raises(UserError, match="compares with NoDef, whose evaded record is not made yet"):
        report.models(part)


def test_the_plan_has_the_poisoned_targets(book: Workbook) -> None:
    labels = [step.stage.label for step in plan(book)]
    assert sum("poisoned" in name for name in labels) == 2 and any("fe(0.5)" in name for name in labels)


def test_the_report_is_of_the_stored_runs(book: Workbook) -> None:
    evaded, opened, told = report.evasion(book), report.backdoor(book), report.members(book)
    assert len(evaded) == 3 * (1 + 2 + 2 + 1)
    clean = evaded[(evaded["attack"] == "clean") & (evaded["defence"] == "none")].iloc[0]
    assert clean["compared"] is None and clean["robust"].n == 3
    row = evaded[(evaded["attack"] == "pgd") & (evaded["defence"] == "fe(0.5)")].iloc[0]
    base = evaded[(evaded["attack"] == "pgd") & (evaded["defence"] == "none")].iloc[0]
    assert row["compared"].difference.value == pytest.approx(row["robust"].value - base["robust"].value)
    low, high = (statistics.Interval(v, v, v, 3) for v in (0.1, 0.9))
    for smaller, larger, holds in ((high, low, True), (low, high, False), (low, low, True)):
        made = [larger if radius == 32 else smaller for radius in evaded["radius"]]
        assert report.nested(evaded.assign(robust=made)) is holds, "more may not stand within a larger radius"
    assert (
        list(opened["place"]) == ["corner", "centre"] * 2
        and opened["compared"].isna().tolist() == [True] * 2 + [False] * 2
    )
    answers = records.answers(book.setup, "none", 0)
    expected = membership(
        answers.log_odds["train"],
        answers.labels["train"],
        answers.log_odds["test"],
        answers.labels["test"],
        seed=0,
    )
    assert told["auc"].iloc[0] == expected.auc
    for name, metric in (
        ("evasion", "robust_accuracy"),
        ("backdoor", "trigger_success_rate"),
        ("membership", "membership_auc"),
    ):
        assert metric in set(results.load_curves(f"*{name}", folder=results.output_dir("digits"))["metric"])
    found = correlation.measure(book)
    values = found["points"]
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(values["robust"], values["attack"])[0, 1]
    assert found["pearson"].value == pytest.approx(expected, nan_ok=True)
    assert found["pearson"].n == len(values), "models are the sample"
    assert "Too small to conclude" in correlation.sentence(book, found)
    said = report.what_we_saw(evaded, opened, told, radius=8.0)
    assert said.count("\n- ") == 6 and said.startswith("**Of 6 comparisons of a defended model with NoDef ")
    assert said.count("is not established to open NoDef") == 2, "three people cannot establish it"
    assert "PGD at 8/255" in said and "AutoAttack at 8/255" in said
    assert report.shown_evasion(evaded).shape == (6, 3) and len(report.shown_backdoor(opened)) == 4
    assert report.patterns(book).shape == (2, 3, 16, 16)


def test_the_poisoned_target_learned_from_poisoned_photos(
    book: Workbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = sweep.attack_on(book, "none")
    trained = robustness.poisoned_target(attack)
    assert trained.meta["poisoned"]["corner"] > 0 and trained.stage.key != attack.target_stage().key
    weights = [dict(network.model.named_parameters()) for network in (trained, attack.target())]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    found = robustness.backdoor(attack)
    assert found["right"].shape == found["labels"].shape and found["opened.corner"].dtype == torch.bool
    monkeypatch.setattr(robustness, "answers", lambda *_: pytest.fail("asked again"))
    assert robustness.backdoor(attack).keys() == found.keys()


def test_the_words_follow_the_numbers(book: Workbook) -> None:
    interval = statistics.Interval
    large = dataclasses.replace(book)
    vars(large)["conclusive"] = True  # whatever its few people
    points = pd.DataFrame({"defence": ["none"] * 5})
    sure = {"points": points, "pearson": interval(0.8, 0.6, 0.9, 62), "spearman": interval(0.8, 0.5, 0.9, 62)}
    assert "harder to evade leak more" in correlation.sentence(large, sure)
    less = sure | {"spearman": interval(-0.8, -0.9, -0.6, 5)}
    assert "harder to evade leak less" in correlation.sentence(large, less)
    unsure = sure | {"spearman": interval(0.2, -0.6, 0.9, 5)}
    assert "no relation is established" in correlation.sentence(large, unsure)
    few = sure | {"points": points[:4]}
    assert "too few models" in correlation.sentence(large, few), "people are many, models are not"


def test_a_model_differs_by_its_interval_and_by_holms_p() -> None:
    person = np.arange(40)
    sure, unsure, same = (person % 2 < 1) * 1.0, (person < 6) * 1.0, np.zeros(40)
    rows = pd.DataFrame({"defence": ["rolss", "negls(-0.05)", "ls(0.1)"]})
    rows["compared"] = [statistics.compare_paired(same, there, seed=0) for there in (sure, unsure, same)]
    alone = rows.iloc[[1]]
    assert (
        report._said(report._sorted(alone)).startswith("lower for NegLS")
        and rows["compared"][1].p_value < 0.05
    )
    said = report._said(report._sorted(rows))
    assert said.startswith("lower for RoLSS") and "no difference established for NegLS" in said


def test_correlations_are_numpys_and_empty_where_nothing_varies() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 3, 5))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    assert correlation._correlations(x, y) == pytest.approx(expected)
    assert np.isnan(correlation._correlations(np.ones((1, 4)), y[:1, :4])).all()
