"""What `make run` shows: the page's table beside the committed study, its words, and how the command ends."""

from __future__ import annotations

import nbformat
import pandas as pd
import pytest

from lib import results
from lib.reports import start_report
from lib.reports.workbook import open_workbook
from lib.results import COLUMNS
from lib.run import start
from lib.stages.exhibits import person_names, shown_people


def row(defence: str, metric: str, evaluator: str, value: float, **changes) -> dict:
    common = dict.fromkeys(COLUMNS, "") | {
        "setup": "digits",
        "defence": defence,
        "training_steps": 100,
        "training_seed": 0,
        "metric": metric,
        "evaluator": evaluator,
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "n": 5,
        "headline": 0,
    }
    if evaluator:
        attacked = {"prior": "eigenfaces", "attack": "ppa", "budget": "start", "attack_seed": 0}
    else:
        attacked = {"split": "test", "attack_seed": None}
    return common | attacked | changes


def page(none: float = 0.8, erased: float = 0.5) -> list[dict]:
    rows = []
    for defence, value in (("none", none), ("re(0.1,0.4)", erased)):
        rows += [
            row(defence, "natural_accuracy", "", 0.85),
            row(defence, "natural_accuracy", "", 0.9, split="train"),
        ]
        rows += [
            row(defence, "attack_accuracy_top1", judge, value)
            for judge in ("main", "panel_1", "panel_majority")
        ]
        rows.append(row(defence, "attack_accuracy_top1", "panel_unanimous", 0.2))
        rows += [
            row(defence, metric, "verifier", 0.3) for metric in ("verifier_match", "verifier_rank1_accuracy")
        ]
    return rows


@pytest.fixture
def book():
    return open_workbook("digits", ["none", "re(0.1,0.4)"], [0], [0])


def test_the_page_is_beside_the_study_where_there_is_one(tmp_path, book, monkeypatch):
    monkeypatch.setattr(start_report, "PUBLISHED", tmp_path)
    table = pd.DataFrame(page())
    assert start_report.committed(book).empty
    alone = start_report.comparison(table, start_report.committed(book))
    assert len(alone) == 2 * len(start_report.SHOWN) and set(alone[start_report.COMMITTED]) == {
        start_report.ABSENT
    }
    assert alone.loc[("AttAcc, main evaluator", "none"), "this page"] == "80.0 % [70.0, 90.0]"
    assert alone.loc[("natural accuracy", "re(0.1,0.4)"), "this page"] == "85.0 % [75.0, 95.0]", (
        "test photos only"
    )

    study = [row("none", "attack_accuracy_top1", "main", 0.6, headline=1, budget="headline")]
    study += [row("none", "attack_accuracy_top1", "main", 0.1, headline=0, budget="sweep")]
    study += [row("fe(0.5)", "attack_accuracy_top1", "main", 0.1, headline=1, budget="headline")]
    study += [study[0] | {"attack_seed": 1, "value": 0.9}]
    results.save_table(study, "study", folder=tmp_path)
    found = start_report.committed(book)
    assert found["value"].tolist() == [0.6], "headline rows of the page's models, the study's attack seeds"
    both = start_report.comparison(table, found)
    assert both.loc[("AttAcc, main evaluator", "none"), start_report.COMMITTED] == "60.0 % [50.0, 70.0]"


def test_bars_show_every_judge_once(book):
    bars = start_report.judged(pd.DataFrame(page()))
    assert sorted(bars["evaluator"].unique()) == ["main", "panel_1", "panel_majority", "verifier"]
    assert len(bars) == 8 and set(bars[bars["evaluator"] == "verifier"]["metric"]) == {"verifier_match"}


def test_words_follow_the_table_and_the_preset(book, monkeypatch):
    table = pd.DataFrame(page())
    text = start_report.finding(book, table, start_report.committed(book))
    assert "80.0 %" in text and "50.0 %" in text and text.endswith("**Too small to conclude.**")

    large = open_workbook("lfw64", ["none", "re(0.1,0.4)"], [0], [0])
    empty = table[:0]
    assert "numbers are not there yet; `make run SETUP=lfw64`" in start_report.finding(large, table, empty)
    assert "committed study in the table, of 1 training seed" in start_report.finding(large, table, table)


def test_models_are_compared_judge_by_judge_and_paired(book):
    large = open_workbook("lfw64", ["none", "re(0.1,0.4)"], [0], [0])
    rows = []
    for k in range(30):
        for judge, erased in (
            ("main", 0.4),
            ("panel_2", 1.0),
            ("panel_majority", 0.7),
            ("panel_unanimous", 0.2),
        ):
            for defence, value in (("none", 0.7), ("re(0.1,0.4)", erased)):
                made = row(defence, "attack_accuracy_top1", judge, value + (k % 3 - 1) * 0.1 * (erased < 1))
                made = {key: made[key] for key in results.IDENTITY_COLUMNS if key in made}
                rows.append(made | {"identity": k, "setup": "lfw64", "n": 2})
    results.save_identities(rows, "lfw64__page")
    found = start_report.differences(large)
    assert list(found) == ["main", "panel_2", "panel_majority"], "in the order of the figures"
    assert found["main"].value == pytest.approx(0.3) and found["main"].n == 30
    assert start_report.bars_title(large, found) == "RE [.1, .4] leaks less by 1 of 3 judges, more by 1"
    assert "main evaluator +30.0 points" in start_report.differences_sentence(large, found)
    assert start_report.bars_title(book, found) == "Too small to conclude"
    assert "Too small" in start_report.differences_sentence(book, found)
    assert start_report.differences(open_workbook("lfw64", ["none"], [0], [0])) == {}


def test_reconstructions_are_compared_with_what_they_started_from(tmp_path, book):
    curve = {"curve": "prior_samples", "x_name": "none", "x": 0.0}
    rows = [row(d, "attack_accuracy_top1", "main", 0.2) for d in book.defences]
    rows = [{k: v for k, v in r.items() if k != "headline"} | curve for r in rows]
    results.save_curves(rows, "prior-samples__digits")
    assert start_report.beats_start(book, pd.DataFrame(page()))
    assert not start_report.beats_start(book, pd.DataFrame(page(erased=0.2)))


def test_at_most_twelve_people_evenly_spaced():
    assert shown_people(5) == [0, 1, 2, 3, 4]
    shown = shown_people(62)
    assert len(shown) == len(set(shown)) == 12 and (shown[0], shown[-1]) == (0, 61)
    assert person_names(["Jose_Maria_Aznar", "B"], [0]) == ["Jose Maria Aznar"]


def test_the_command_prints_the_table_and_what_to_open_and_repeats_cheaply(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "start"
    asked = []

    def run_notebook(name, parameters, output, **options):
        asked.append((name, parameters, options["resume"], options["results"]))
        if not output.exists():
            output.parent.mkdir(parents=True)
            cells = [nbformat.v4.new_markdown_cell("# A page")]
            nbformat.write(nbformat.v4.new_notebook(cells=cells), output)
            results.save_table(page(), "page", folder=folder)
        return output

    monkeypatch.setattr(start, "run_dir", lambda setup: tmp_path / setup)
    monkeypatch.setattr(start, "run_notebook", run_notebook)
    assert start.run_start() == 0
    shown = capsys.readouterr().out
    assert "digits: 5 people, attack budget start" in shown and "80.0 % [70.0, 90.0]" in shown
    assert "00_start_here.html" in shown and "00_start_here.ipynb" in shown and "README.md" in shown
    made = folder / "00_start_here.html"
    assert "A page" in made.read_text()
    first = made.stat().st_mtime_ns
    assert start.run_start() == 0 and made.stat().st_mtime_ns == first
    assert asked == [("00_start_here", {}, True, folder)] * 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "00_start_here.html",
        "00_start_here.ipynb",
        "tables",
    ]


def test_the_terminal_shows_the_pages_numbers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        start.results,
        "load_tables",
        lambda **_: pd.DataFrame({"setup": ["digits"], "defence": ["none"], "n": [3]}),
    )
    monkeypatch.setattr(start, "committed", lambda book: asked.append(book) or "the study")
    monkeypatch.setattr(start, "comparison", lambda rows, study: pd.Series([study]))
    ((_, text),) = start._printed(tmp_path)
    assert "the study" in text and asked[0].defences == ("none",)
