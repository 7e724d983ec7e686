"""Rows of results: what a number of the tables is computed from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.data import Images
from lib.evaluation import squared_mmd
from lib.stages import realism, success
from lib.stages.measures import _leakage, kept_index
from lib.stages.realism import kid_by_identity
from lib.stages.starts import merge


def clouds(shift: float, people: int = 12, per_person: int = 6, size: int = 8):
    stream = torch.Generator().manual_seed(int(shift * 10))
    labels = torch.arange(people).repeat_interleave(per_person)
    return torch.randn(len(labels), size, generator=stream) + shift, labels


def test_kid_is_the_unbiased_mmd_of_all_images():
    (fake, labels), (real, others) = clouds(0.5), clouds(0.0)
    found = kid_by_identity(fake, labels, real, others)
    torch.testing.assert_close(
        torch.tensor(found.value), squared_mmd(fake.double(), real.double()).float(), rtol=1e-4, atol=1e-6
    )
    assert found.n == 12 and found.low < found.value < found.high


def test_kid_sums_some_rows_at_a_time(monkeypatch):
    stream = torch.Generator().manual_seed(0)
    fake, real = torch.rand(12, 5, generator=stream), torch.rand(21, 5, generator=stream)
    labels, others = torch.arange(12) % 3, torch.arange(21) % 3
    whole = kid_by_identity(fake, labels, real, others)
    monkeypatch.setattr(realism, "ROWS", 4)
    assert kid_by_identity(fake, labels, real, others).value == pytest.approx(whole.value)


def test_leakage_is_undefined_where_strangers_are_no_farther():
    assert np.isnan(_leakage(np.array([[3.0, 2.0, 1.0]]))).all()
    assert _leakage(np.array([[3.0, 2.0, 4.0]])) == pytest.approx(0.5)


def test_kid_of_one_law_is_zero_within_its_interval_and_of_two_is_not():
    (same, labels), (real, others), (moved, _) = clouds(0.1), clouds(0.0), clouds(1.0)
    null = kid_by_identity(same - 0.1, labels, real, others)
    assert null.low < 0 < null.high
    assert kid_by_identity(moved, labels, real, others).low > null.high


def test_kid_jackknife_leaves_out_people_by_hand():
    (fake, labels), (real, others) = clouds(0.3, people=4), clouds(0.0, people=4)
    found = kid_by_identity(fake, labels, real, others)
    parts = torch.tensor(
        [float(squared_mmd(fake[labels != k].double(), real[others != k].double())) for k in range(4)]
    ).double()
    error = (3 / 4 * (parts - parts.mean()).square().sum()).sqrt()
    torch.testing.assert_close(
        torch.tensor(found.high - found.value), (1.96 * error).float(), rtol=1e-3, atol=1e-6
    )


def test_kept_index_points_into_identity_major_candidates():
    selected = torch.tensor([[2, 0], [1, 3]])
    latents = torch.arange(8.0).view(2, 4, 1)
    flat = latents.flatten(0, 1)[kept_index(selected, 4)]
    assert flat.flatten().tolist() == [2, 0, 5, 7]


def test_merged_sets_keep_their_people_apart():
    one = Images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ["a", "b"], ["1", "2"])
    two = Images(torch.ones(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([0]), ["c"], ["3"])
    both = merge([one, two])
    assert both.labels.tolist() == [0, 1, 2] and both.names == ["a", "b", "c"] and len(both.files) == 3


def test_attacks_are_compared_by_equally_many_images():
    def outcome(hits: list[list[int]]) -> success.Outcome:
        found = {"main": torch.tensor(hits, dtype=torch.bool)}
        return success.Outcome(
            SimpleNamespace(attack_seed=0), found, found, np.arange(3), torch.zeros(0), {}, []
        )

    two, four = outcome([[1, 0], [1, 0], [1, 0]]), outcome([[1, 1, 0, 0]] * 3)
    assert two.per_person().mean() == four.per_person().mean() == 0.5
    assert success.compare([four], [two]).difference.value == 0.5, "of the best two of both"
    assert four.per_person(best=2).tolist() == [1, 1, 1] and success.fewest([two], [four]) == 2
