"""The curriculum over a_h: the upper bound grows evenly, then holds; without one nothing changes."""

import dataclasses

import pytest
import torch
from toys import SMALL, assert_resumes

from lib.defences import build


def seeded():
    return torch.Generator().manual_seed(0)


def test_the_curriculum_grows_the_upper_bound_evenly_then_holds_it():
    (defence,) = build("re(0.1,0.5,curriculum=0.5)")
    bounds = []
    for epoch in range(10):
        defence.phase(epoch, 10)
        bounds.append(defence.law.scale)
    expected = [0.1, 0.18, 0.26, 0.34, 0.42] + [0.5] * 5
    assert [low for low, _ in bounds] == [0.1] * 10
    assert [high for _, high in bounds] == pytest.approx(expected)
    again = build("re(0.1,0.5,curriculum=1)")[0]
    again.phase(7, 8)  # where a run goes on after a kill
    assert (
        again.law.scale == (0.1, pytest.approx(0.45)) and again.diagnostics()["re_a_h"] == again.law.scale[1]
    )
    again.phase(0, 1)
    assert again.law.scale == (0.1, 0.1)


def test_what_is_erased_follows_the_curriculum():
    (defence,) = build("re(0.1,0.6,curriculum=1)")
    images, index = torch.zeros(2000, 3, 32, 32), torch.arange(2000)
    areas = []
    for epoch in (0, 2, 3):
        defence.phase(epoch, 4)
        areas.append(defence.input(images, index, seeded()).mask.flatten(1).float().mean(1))
    for area, high in zip(areas, (0.1, 0.35, 0.475), strict=True):
        assert area.mean().item() == pytest.approx((0.1 + high) / 2, abs=0.01)
        assert area.max().item() == pytest.approx(high, abs=0.02)


def test_without_a_curriculum_a_phase_changes_nothing_and_the_name_does_not_say_so():
    (plain,), (explicit,) = build("re(0.1,0.4)"), build("re(0.1,0.4,curriculum=0)")
    assert explicit.name == plain.name == "re(0.1,0.4)"
    law = plain.law
    plain.phase(0, 10)
    assert plain.law is law and set(plain.diagnostics()) == {"re_erased_area"}
    (grown,) = build("re(0.1,0.4,curriculum=0.25)")
    assert grown.name == "re(0.1,0.4,curriculum=0.25)" and grown.law == law, "the law that it ends with"


def test_a_curriculum_resumes_where_it_was(tmp_path):
    recipe = dataclasses.replace(SMALL, steps=9)
    whole = assert_resumes(lambda: build("re(0.1,0.5,curriculum=1)"), recipe, tmp_path)
    key = "re(0.1,0.5,curriculum=1).re_a_h"
    assert [row[key] for row in whole.history] == pytest.approx([0.1, 0.1 + 0.4 / 3, 0.1 + 0.8 / 3])
