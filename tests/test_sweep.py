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

from lib import results
from lib.errors import UserError
from lib.plots import strengths as draw
from lib.reports import sweep
from lib.reports.workbook import Workbook
from lib.run.plan import plan
from lib.setups import Study, load_setup
from lib.stages import measures, success
from lib.statistics import Interval

STRENGTHS = {
    sweep.WEAKER: ["early(0.5)"],
    "RE": ["re(0.1,0.2)", "re(0.1,0.8)"],
    "NegLS": ["negls(-0.05)"],
}


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbook:
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path / "cache"))
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


def test_the_page_wants_no_photos_once_its_points_are_there(
    book: Workbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = sweep.measure(book)
    table["chosen"] = table["defence"] == "re(0.1,0.2)"
    monkeypatch.setattr("lib.reports.workbook.load_world", lambda _: pytest.fail("read the photos"))
    again = dataclasses.replace(book)
    assert sweep.points(again, ["none"]).chance == pytest.approx(1 / 3)
    assert len(sweep.tuned(again, table)) == 1 and len(sweep.matched(again, table)) == 3


def test_points_are_those_of_the_stored_runs(book: Workbook) -> None:
    table = sweep.measure(book)
    assert list(table["defence"]) == ["none", "early(0.5)", "re(0.1,0.2)", "re(0.1,0.8)", "negls(-0.05)"]
    attack = sweep.attack_on(book, "re(0.1,0.8)")
    row = table.set_index("defence").loc["re(0.1,0.8)"]
    assert row["attack"] == success.mean(success.measure([attack]))
    rows, identities = measures.target_rows(book.setup, "re(0.1,0.8)", 0)
    top1 = {r["split"]: r["value"] for r in rows if r["metric"] == "natural_accuracy"}
    assert (row["validation"], row["natural"].value) == (top1["validation"], top1["test"])
    found = sweep.points(book, ["none", "re(0.1,0.8)"])
    assert found.accuracy[0, 1].tolist() == [r["value"] for r in identities]
    assert found.means()[0][1] == pytest.approx(row["natural"].value), "micro, as natural accuracy is"
    saved = results.load_curves("*strengths*", folder=results.output_dir("digits"))
    assert len(saved) == 10 and set(saved["metric"]) == {"natural_accuracy", "attack_accuracy_top1"}


def test_tuned_points_are_paired_with_nodef(book: Workbook) -> None:
    table = sweep.measure(book).assign(chosen=[False, False, False, True, True])
    found = sweep.tuned(book, table).set_index("defence")
    assert list(found.index) == ["re(0.1,0.8)", "negls(-0.05)"]
    at = table.set_index("defence")
    privacy = at.loc["none", "attack"].value - at.loc["re(0.1,0.8)", "attack"].value
    assert found.loc["re(0.1,0.8)", "privacy"].value == pytest.approx(privacy)
    assert found["advantage"].notna().all(), "NoDef's own points are in the sweep"
    alone = sweep.tuned(book, table[table["family"] != sweep.WEAKER])
    assert alone["advantage"].isna().all()
    assert "RE [.1, .8]" in sweep.what_we_saw(book, sweep.tuned(book, table))
    assert len(sweep.tuned(book, table.assign(chosen=False))) == 0
    volumes = sweep.matched(book, table)
    assert list(volumes["family"]) == list(STRENGTHS) and "3 points" in volumes
    assert (
        "not reached"
        in sweep.shown_matched(
            volumes.assign(**{"3 points": [Interval(np.nan, np.nan, np.nan, 3)] * 3})
        ).to_string()
    )


def test_the_plan_knows_every_point(book: Workbook) -> None:
    labels = " ".join(step.stage.label for step in plan(book))
    assert all(f"target {name} " in labels for names in STRENGTHS.values() for name in names)


def test_nothing_to_sweep_is_an_error(book: Workbook) -> None:
    empty = dataclasses.replace(book, study=dataclasses.replace(book.study, strengths={}))
    assert sweep.attacks(empty) == []
    with pytest.raises(UserError, match="expected `strengths`"):
        sweep.measure(empty)


def test_the_figure_joins_a_family_from_nodef_on() -> None:
    rows = [("none", 0, False, 0.9, 0.8), ("RE", 2, True, 0.88, 0.5), ("RE", 1, False, 0.9, 0.7)]
    table = pd.DataFrame(rows, columns=["family", "strength", "chosen", "natural", "attack"])
    for side in ("natural", "attack"):
        table[f"{side}_low"], table[f"{side}_high"] = table[side] - 0.1, table[side] + 0.05
    ax = draw(table)
    assert ax.lines[0].get_xdata().tolist() == [0.9, 0.9, 0.88], "by strength, from NoDef"
    (ring,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert ring.get_offsets()[0].tolist() == [0.88, 0.5]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["RE", "NoDef"]
