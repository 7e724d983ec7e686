"""The memory that a piece of work takes at its peak."""

from __future__ import annotations

import pytest
import torch

from lib.runtime import RESET, Peak

CPU = torch.device("cpu")
MEGABYTES = 64


def fill() -> None:
    torch.zeros(MEGABYTES * 250_000).add_(1)


@pytest.mark.skipif(not RESET.exists(), reason="the system does not tell")
def test_the_peak_is_of_the_work_alone_though_it_was_given_back_and_done_before() -> None:
    fill()
    for _ in range(2):  # the second time its pages may still be with the process
        peak = Peak(CPU)
        fill()
        kept = torch.zeros(250_000)
        found = peak.megabytes()
        assert found == pytest.approx(MEGABYTES, abs=8) and len(kept)
    assert Peak(CPU).megabytes() < 4


def test_where_the_system_does_not_tell_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.runtime.RESET", RESET.with_name("of_another_system") / "no")
    assert Peak(CPU).megabytes() is None
    assert Peak(torch.device("mps")).megabytes() is None
