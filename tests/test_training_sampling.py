"""Balanced batches: equally many photos of each of some people, nobody's photo twice before all of theirs once."""

import torch

from lib.training.sampling import balanced_order


def test_balanced_batches_have_the_same_number_of_photos_of_each_of_so_many_people():
    labels = torch.tensor([3] * 9 + [5] * 4 + [7] * 20 + [8] * 11)
    stream = torch.Generator().manual_seed(0)
    order = balanced_order(labels, steps=50, batch=12, identities=3, generator=stream)
    chosen = labels[order].view(50, 12)
    for batch in chosen:
        assert batch.unique(return_counts=True)[1].tolist() == [4, 4, 4]
    assert {tuple(sorted(set(batch.tolist()))) for batch in chosen} == {
        (3, 5, 7),
        (3, 5, 8),
        (3, 7, 8),
        (5, 7, 8),
    }
    assert any(batch[0] == batch[-1] for batch in chosen) and not (chosen[:, :4] == chosen[:, :1]).all()


def test_all_photos_of_a_person_come_before_one_comes_again():
    labels = torch.arange(3).repeat_interleave(torch.tensor([8, 5, 20]))
    order = balanced_order(
        labels, steps=2, batch=12, identities=3, generator=torch.Generator().manual_seed(1)
    )
    counts = torch.bincount(order, minlength=33)
    assert counts[:8].tolist() == [1] * 8 and sorted(counts[8:13].tolist()) == [1, 1, 2, 2, 2]
    assert counts[13:].max() == 1 and counts[13:].sum() == 8
