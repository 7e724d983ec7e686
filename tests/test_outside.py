"""The optional outside verifier, with a stand-in for dlib's network: nothing has to be installed."""

import numpy as np
import pytest
import torch
from conftest import TINY
from yaml import safe_dump

from lib import results
from lib.errors import UserError
from lib.evaluation import dlib_face
from lib.reports import evaluation_report, outside, tradeoff_report
from lib.reports.workbook import open_workbook


class Network:
    """Takes the brightness of sixteen fields for an embedding; notes what it was shown."""

    seen: list[tuple] = []

    def compute_face_descriptor(self, chips):
        self.seen.extend((chip.shape, chip.dtype) for chip in chips)
        return [chip.mean(2)[:144, :144].reshape(4, 36, 4, 36).mean((1, 3)).ravel() + 1 for chip in chips]


@pytest.fixture
def stand_in(monkeypatch):
    Network.seen.clear()
    monkeypatch.setattr(dlib_face, "_network", Network)


def test_it_sees_whole_faces_at_its_own_size_in_order(stand_in):
    grey = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 16, 16)
    found = dlib_face.embed(grey)
    assert set(Network.seen) == {((150, 150, 3), np.dtype("uint8"))}
    assert torch.equal(found, torch.arange(1.0, 41)[:, None].expand(40, 16))
    assert torch.equal(dlib_face.embed(grey.float() / 255), found)
    with pytest.raises(UserError, match=r"expected images \(N, 3, S, S\)"):
        dlib_face.embed(torch.zeros(2, 16, 16))


def test_without_the_extra_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(dlib_face, "available", lambda: False)
    dlib_face._network.cache_clear()
    with pytest.raises(UserError, match=r"pip install -e '\.\[verifier\]'"):
        dlib_face.embed(torch.zeros(1, 3, 8, 8))


def test_it_is_one_more_judge(stand_in, monkeypatch, tmp_path):
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    (tmp_path / "tiny.yaml").write_text(safe_dump(TINY))
    book = open_workbook(str(tmp_path / "tiny.yaml"), ["none", "re(.1,.4)"], [0], [0])
    assert "digits are no faces" in outside.opinion(book).data and outside.caption(book) == ""
    monkeypatch.setattr(outside, "applies", lambda setup: True)
    evaluation_report.measured(book)
    table = outside.measured(book)
    assert set(table["evaluator"]) == {"verifier_dlib"}
    assert set(table["defence"]) == {"none", "re(0.1,0.4)", "early(0.5)"}
    assert set(table["metric"]) == {"verifier_match", "verifier_rank1_accuracy"}
    attack = book.headline_attacks()[0]
    seen = outside.judged(attack)
    assert seen.labels.tolist() == [k for k in range(3) for _ in range(outside.KEPT)]
    enrolled = outside.gallery(book.setup)
    assert len(torch.bincount(enrolled.people).unique()) == 1  # as many for everybody
    by_hand = torch.nn.functional.normalize(seen.features[outside.NAME]) @ (
        torch.nn.functional.normalize(enrolled.enrolled).T
    )
    first = enrolled.people[by_hand.argmax(1)] == seen.labels
    row = table[(table["defence"] == "none") & (table["metric"] == "verifier_rank1_accuracy")].iloc[0]
    assert row["value"] == pytest.approx(float(first.float().mean()))
    calls = len(Network.seen)
    assert "verifier match rate" in outside.opinion(book).columns and len(Network.seen) == calls  # kept
    assert "false-accept rate 10 %" in outside.caption(book)
    compared = tradeoff_report.comparisons(book)
    assert set(compared["evaluator"]) == {*tradeoff_report.JUDGES, "verifier_dlib"}
    saved = results.load_tables("*evaluators__dlib")
    assert set(saved["metric"]) == {"verifier_match", "verifier_rank1_accuracy"}
