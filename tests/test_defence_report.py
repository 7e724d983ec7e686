"""Notebook 10: pages from the registry, diagnostics over training, costs beside NoDef's in one run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY

from lib import defences
from lib.data import Images
from lib.plots import label
from lib.reports import defence_costs, defence_pages, defence_report
from lib.reports.workbook import Workbook
from lib.setups import Setup, Study, load_setup
from lib.training import Defence

PAGES = ["re(0.1,0.4)", "negls(-0.05)", "tts", "small(0.5)"]


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbook:
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    content = copy.deepcopy(TINY)
    content["defences"] = {"tts": {"warm": 0.5}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    study = Study("digits", ["none"], [0], [0], ["ppa"], "eigenfaces", "headline", pages=PAGES)
    return Workbook(load_setup(path), study, ("none",), (0,), (0,))


def test_the_register_has_every_defence_and_how_it_acts(book: Workbook) -> None:
    table = defence_pages.register(book.setup)
    assert list(table.index) == defences.names()
    assert table.loc["none", "acts through"] == "nothing" and table.loc["small", "acts through"] == "plan"
    assert table.loc["negls", "acts through"] == "phase, criterion"
    assert table.loc["re", "written"] == "re(low,high)" and "p 1" in table.loc["re", "constants"]
    assert table.loc["tts", "constants"] == "warm 0.5, cut 0", "the setup's value"


def test_a_page_says_what_its_file_says() -> None:
    text = defence_pages.page("re(0.1,0.4)+negls(-0.05)")
    assert text.startswith("### RE [.1, .4] + NegLS -.05")
    assert "Source: Struppek" in text and "no lower bound" in text
    assert "Args" not in text and "Raises" not in text and "Base" not in text
    assert (
        "- `schedule`: `ramp`, the paper's" in text and "- `p`: probability that an image is erased." in text
    )
    assert "`re erased area`: mean fraction" in text and "`margin`: mean target-logit margin" in text
    assert "With a curriculum also `re a h`" in text, "what it adds to what its base records"
    whole = defence_pages.page("atat(0.1)")
    assert whole.endswith("the reverse of adversarial training."), "the paragraph on its source to its end"
    assert "- `steps`: of PGD." in whole and "see `Adversarial`" not in whole, "what its base says"
    for measure in ("hsic", "coco"):
        both = defence_pages.page(f"bido_{measure}(0.05,0.5)")
        assert "sum over taps z of lx d(x, z) - ly d(z, y)" in both and both.count("- `lx, ly`: weights") == 1
        assert ("- `epsilon`" in both) == (measure == "hsic")
    several = defence_pages.page("re(0.1,0.4)", "re(0.1,0.8)")
    assert several.startswith("### RE [.1, .4]; RE [.1, .8]\n") and several.count("erase, anew") == 1
    pages = [defence_pages.page(usage) for usage in (*PAGES, "fe(0.5)", "bido_coco(1,50)", "dpsgd(8)")]
    assert not any(":`" in text or "``" in text for text in pages)


def test_every_listed_defence_shows_that_it_acts(book: Workbook) -> None:
    curves = defence_report.diagnostics(book)
    assert defence_report.silent(book, curves) == [], "controls of the recipe need not"
    scale = curves[curves["diagnostic"] == "tts.skip_scale"]
    assert (
        scale["value"].iloc[0] == 1 and scale["value"].iloc[-1] == 0 and scale["step"].is_monotonic_increasing
    )
    hushed = curves[curves["defence"] != "tts"]
    assert defence_report.silent(book, hushed) == ["tts"]
    ends = defence_report.activity(book, curves)
    assert ends.loc[("NegLS -.05", "alpha"), "at the end"] == pytest.approx(-0.05)
    assert set(ends["acted"]) == {"yes"} and ends["after the first epoch"].notna().all()
    late = curves[(curves["defence"] != "tts") | (curves["step"] == curves["step"].max())]
    assert defence_report.activity(book, late).loc[("TTS", "skip scale")].isna()["after the first epoch"]
    assert "at the end of training alone: TTS, skip scale." in defence_report.diagnostic_caption(late)
    assert "TTS" not in defence_report.diagnostic_caption(curves)
    same = curves.assign(value=curves["value"].where(curves["diagnostic"] != "tts.skip_scale", 0.0))
    assert "The same throughout: TTS, skip scale." in defence_report.diagnostic_caption(same)
    assert "TTS" not in {ax.get_title() for ax in defence_report.diagnostic_figure(same).axes}
    idle = curves.assign(value=curves["value"].where(curves["diagnostic"] != "tts.skip_scale", 1.0))
    assert defence_report.silent(book, idle) == ["tts"], "a skip at full scale"
    assert defence_report.activity(book, idle).loc[("TTS", "skip scale"), "acted"] == "no"
    unknown = curves.assign(value=curves["value"].where(curves["diagnostic"] != "tts.skip_scale"))
    assert defence_report.silent(book, unknown) == ["tts"], "NaN shows nothing"
    figure = defence_report.diagnostic_figure(curves)
    assert [(ax.get_title(), ax.get_ylabel()) for ax in figure.axes][:2] == [
        ("RE [.1, .4]", "re erased area"),
        ("NegLS -.05", "alpha"),
    ]
    flat = curves.assign(value=0.25 + 1e-6 * np.arange(len(curves)))
    for ax in defence_report.diagnostic_figure(flat).axes:
        low, high = ax.get_ylim()
        assert high - low == pytest.approx(0.025, rel=1e-3) and low < 0.25 < high, "hardly moved: looks flat"
    pair = curves[curves["defence"] == "re(0.1,0.4)"].assign(defence="re(0.1,0.4)+negls(-0.05)")
    both = defence_report.diagnostic_figure(pd.concat([curves, pair]))
    shown = [ax for ax in both.axes if "re erased area" in ax.get_ylabel()]
    assert [ax.get_title() for ax in shown] == ["RE [.1, .4]", "RE [.1, .4] + NegLS -.05"]
    assert all(len(ax.lines) == 1 for ax in shown), "of each model alone"


def test_costs_are_ratios_of_one_run(book: Workbook) -> None:
    found = defence_costs.measure(book)
    assert list(found["defence"]) == ["none", *PAGES]
    first = found.iloc[0]
    assert first["memory"] == 1 and 0.2 < first["time"] < 5, "NoDef beside NoDef: what the machine adds"
    assert (found["low"] <= found["time"]).all() and (found["time"] <= found["high"]).all()
    memory = found.set_index("defence")["memory"]
    assert memory["small(0.5)"] < 0.97 and memory["re(0.1,0.4)"] == pytest.approx(1, abs=0.05)
    dear = found.assign(
        time=np.array([1.0, 1.0, 1.0, 5.0, 1.0]), low=[1, 1, 1, 4, 1], high=[1, 1.2, 1.2, 6, 1.4]
    )
    said = defence_costs.sentence(dear)
    assert "dearest by the median is TTS, 5.0 [4.0, 6.0] times" in said
    assert defence_costs.shown(dear).iloc[:, 0].tolist()[2:4] == ["1.00 [1.00, 1.20]", "5.00 [4.00, 6.00]"]
    assert defence_costs.shown(dear.assign(low=dear["time"], high=dear["time"])).iloc[3, 0] == "5.00"
    assert (found["same"] == found["time"]).all(), "none of these is trained in fp32"
    slow = found.assign(same=[1.0, 1.0, 2.5, 1.0, 1.0], same_low=[1.0, 1.0, 2.0, 1.1, 1.0])
    assert defence_costs.sentence(slow).endswith(f"of it: {label(PAGES[1])} (2.5 for 1.0).")
    assert "Of 4 defences 2 stay below" in said and " 1 above, 1 cross it" in said
    expected = found.set_index("defence")["expected"]
    assert (expected == 1).all(), "none of these needs other passes"
    assert torch.is_grad_enabled()


def test_costs_are_of_neighbours_in_time(book: Workbook, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def seconds(setup: Setup, defence: str, photos: Images, parts: Sequence[Defence] = ()) -> float:
        calls.append((defence, bool(parts)))
        return (
            {"none": 1.0, "re(0.1,0.4)": 1.2, "advtrain(0.01)": 8.0}[defence]
            * (2 if parts else 1)
            * len(calls)
        )

    monkeypatch.setattr(defence_costs, "_seconds", seconds)
    photos = defence_costs._photos(book.setup)
    calls += [("", False)] * 1000  # a machine that slows down, by a thousandth a training
    own, same = defence_costs._beside(book.setup, "re(0.1,0.4)", photos, 0)
    assert own == same == pytest.approx(1.2, rel=2e-3) and own > 1.2
    assert defence_costs._beside(book.setup, "re(0.1,0.4)", photos, 1)[0] < 1.2, "the other way round"
    own, same = defence_costs._beside(book.setup, "advtrain(0.01)", photos, 0)
    assert (own, same) == pytest.approx((8.0, 4.0), rel=2e-3)
    assert calls[-3:] == [("none", False), ("advtrain(0.01)", False), ("none", True)]
