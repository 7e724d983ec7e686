"""On ``digits`` every diagnostic that training moves by itself, too, against the defence's idle twin: the same
measurement under the same recipe and draws, without the weight."""

from __future__ import annotations

import pytest

from lib.reports.workbook import Workbook, open_workbook
from lib.stages import records


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Workbook:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIDRE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_workbook("digits")


def ends(book: Workbook, text: str) -> tuple[dict[str, float], list[dict[str, float]]]:
    """What a defence says at the end of its training, and of every epoch."""
    training = records.answers_of(book.attack(text)).training

    def own(row: dict[str, float]) -> dict[str, float]:
        return {name.rpartition(".")[2]: value for name, value in row.items() if "." in name}

    return own(training["diagnostics"]), [own(row) for row in training["history"]]


@pytest.mark.parametrize(
    ("text", "twin", "share"),
    [("bido_hsic(0.05,0.5)", "bido_hsic(0,0)", 1.3), ("bido_coco(1,50)", "bido_coco(0,0)", 1.5)],
)
def test_bido_lowers_what_it_weighs_below_what_training_alone_does(
    book: Workbook, text: str, twin: str, share: float
) -> None:
    lx, ly = map(float, text[text.index("(") + 1 : -1].split(","))
    (end, _), (idle, rows) = ends(book, text), ends(book, twin)
    assert end["penalty"] < share * (lx * idle["x_z"] - ly * idle["z_y"]) < 0
    assert end["z_y"] > 0.9 * idle["z_y"], "no collapse"
    if "hsic" in text:
        assert end["x_z"] < 0.9 * idle["x_z"]
    assert rows[-1]["penalty"] == 0, "the twin weighs nothing"


def test_smoothing_moves_the_target_logit_away_from_where_training_alone_puts_it(book: Workbook) -> None:
    found = {
        text: ends(book, text)[0]["margin"] for text in ("negls(-0.2)", "negls(-0.05)", "ls(0)", "ls(0.1)")
    }
    assert list(found) == sorted(found, key=found.get, reverse=True)
    assert found["ls(0)"] - found["ls(0.1)"] > 0.5


def test_mid_lets_less_through_than_its_noisy_head_alone(book: Workbook) -> None:
    (end, _), (idle, _) = ends(book, "mid(0.01)"), ends(book, "mid(0)")
    assert end["kl"] < 0.5 * idle["kl"]
