"""Closed forms of every metric, and the traps of the metrics specification (sections 3 to 5, 8 and 13)."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import nn

from lib.errors import UserError
from lib.evaluation import (
    balanced_references,
    corrected_accuracy,
    distance_to_classes,
    frechet_distance,
    frechet_from_moments,
    frechet_null,
    gallery_scores,
    genuine_and_impostor,
    hits,
    identity_means,
    judge,
    kernel_distance,
    knn_distances,
    matches,
    nearest_same_class,
    pairwise_kappa,
    panel_vote,
    prdc,
    prdc_per_class,
    proxy_false_positives,
    rank_one,
    scaled_leakage,
    squared_mmd,
    stranger_distance,
    threshold_at,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Attack accuracy


def test_hits_counts_the_k_largest_logits():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    labels = torch.tensor([0, 1, 2])
    assert hits(logits, labels).tolist() == [True, False, False]
    assert hits(logits, labels, k=2).tolist() == [True, True, False]
    assert hits(logits, labels, k=3).tolist() == [True, True, True]


def test_hits_agree_with_argmax_even_on_ties():
    logits = torch.randint(0, 3, (200, 5), generator=generator()).float()
    labels = torch.randint(0, 5, (200,), generator=generator(1))
    assert torch.equal(hits(logits, labels), logits.argmax(1) == labels)
    constant = torch.zeros(5, 5)
    assert hits(constant, torch.arange(5)).sum() == 1


@pytest.mark.parametrize(
    ("logits", "labels", "k"),
    [
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 4),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 0),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 1),
        (torch.zeros(2, 3), torch.tensor([0, 3]), 1),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), 1),
        (torch.zeros(2, 3), torch.zeros(2), 1),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 1),
        (torch.full((2, 3), torch.nan), torch.zeros(2, dtype=torch.long), 1),
    ],
)
def test_hits_refuse_bad_input(logits, labels, k):
    with pytest.raises(UserError):
        hits(logits, labels, k=k)


def test_identity_means_keep_people_apart():
    result = identity_means(torch.tensor([True, False, True, True]), torch.tensor([7, 7, 2, 7]))
    assert result.identity.tolist() == [2, 7]
    assert result.mean.tolist() == pytest.approx([1, 2 / 3])
    assert result.count.tolist() == [1, 3]
    with pytest.raises(UserError, match="align"):
        identity_means(torch.ones(3), torch.zeros(2, dtype=torch.long))


def test_panel_votes_on_a_small_table():
    panel = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    vote = panel_vote(panel)
    assert vote.votes.tolist() == [3, 2, 1, 0]
    assert vote.majority.tolist() == [True, True, False, False]
    assert vote.any.tolist() == [True, True, True, False]
    assert vote.all.tolist() == [True, False, False, False]
    assert not panel_vote(panel[:2, 2:3]).majority.any(), "one of two is no majority"
    with pytest.raises(UserError, match="bool"):
        panel_vote(panel.float())


def test_kappa_is_one_for_equal_zero_for_unrelated_and_undefined_for_constant():
    first = [1, 1, 0, 0]
    panel = torch.tensor([first, first, [1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    kappa = pairwise_kappa(panel)
    assert kappa[0, 1] == 1 and kappa[0, 2] == 0 and kappa[0, 3] == -1
    assert math.isnan(kappa[4, 5]) and kappa[0, 4] == 0
    assert kappa[2, 3] == pytest.approx(cohen_kappa_score(panel[3].numpy(), panel[2].numpy()))


def test_corrected_accuracy_runs_from_chance_to_ceiling():
    assert corrected_accuracy(0.1, chance=0.1, ceiling=0.9) == 0
    assert corrected_accuracy(0.9, chance=0.1, ceiling=0.9) == 1
    assert corrected_accuracy(0.5, chance=0.1, ceiling=0.9) == pytest.approx(0.5)
    assert math.isnan(corrected_accuracy(0.5, chance=0.2, ceiling=0.2))
    with pytest.raises(UserError, match="fraction"):
        corrected_accuracy(50, chance=0.1, ceiling=0.9)


# Verification


def test_gallery_scores_take_the_best_or_the_mean_photo():
    gallery = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    owner = torch.tensor([5, 5, 3])
    best = gallery_scores(torch.tensor([[4.0, 0.0]]), gallery, owner)
    assert best.identity.tolist() == [3, 5]
    assert best.values.tolist() == [[-1.0, 1.0]]
    mean = gallery_scores(torch.tensor([[4.0, 0.0]]), gallery, owner, reduce="mean")
    assert mean.values.tolist() == [[-1.0, 0.5]]
    assert rank_one(best, torch.tensor([5])).all() and not rank_one(best, torch.tensor([3])).any()
    genuine, impostor = genuine_and_impostor(best, torch.tensor([5]))
    assert genuine.tolist() == [1.0] and impostor.tolist() == [-1.0]


def test_threshold_keeps_the_false_accept_rate_and_is_tight():
    impostor = torch.arange(1000).double()[torch.randperm(1000, generator=generator())]
    threshold = threshold_at(impostor, false_accept_rate=0.01)
    assert (impostor > threshold).sum() == 10
    ties = torch.cat([torch.zeros(50), torch.ones(50)])
    assert (ties > threshold_at(ties, false_accept_rate=0.1)).double().mean() <= 0.1
    with pytest.raises(UserError, match="at least 1000"):
        threshold_at(impostor[:999], false_accept_rate=0.001)


def test_natural_photos_verify_and_strangers_do_not():
    centres = torch.eye(6)
    owner = torch.arange(6).repeat(4)
    photos = centres[owner] + 0.02 * torch.randn(24, 6, generator=generator())
    probe = centres[owner] + 0.02 * torch.randn(24, 6, generator=generator(1))
    scores = gallery_scores(probe, photos, owner)
    _, impostor = genuine_and_impostor(scores, owner)
    threshold = threshold_at(impostor, false_accept_rate=0.05)
    assert matches(scores, owner, threshold=threshold).all()
    assert matches(scores, (owner + 1) % 6, threshold=threshold).double().mean() <= 0.2


def test_proxy_false_positives_look_only_at_rejected_images():
    values, index = proxy_false_positives(
        torch.tensor([True, True, False, True]), torch.tensor([True, False, False, False])
    )
    assert values.tolist() == [True, False, True] and index.tolist() == [1, 2, 3]


def test_verification_refuses_bad_input():
    gallery, owner = torch.eye(3), torch.arange(3)
    with pytest.raises(UserError, match="enrol"):
        rank_one(gallery_scores(gallery, gallery, owner), torch.tensor([0, 1, 9]))
    with pytest.raises(UserError, match="zero vector"):
        gallery_scores(torch.zeros(1, 3), gallery, owner)
    with pytest.raises(UserError, match="width"):
        gallery_scores(torch.ones(1, 2), gallery, owner)
    with pytest.raises(UserError, match="at least two people"):
        genuine_and_impostor(gallery_scores(gallery[:1], gallery[:1], owner[:1]), owner[:1])
    with pytest.raises(UserError, match="shape"):
        proxy_false_positives(torch.ones(3).bool(), torch.ones(2).bool())


# Distance to the nearest private photo


def test_balanced_references_are_balanced_and_fixed_by_the_seed():
    labels = torch.tensor([0] * 9 + [4] * 3 + [2] * 5)
    chosen = balanced_references(labels)
    assert torch.bincount(labels[chosen]).tolist() == [3, 0, 3, 0, 3]
    assert len(chosen.unique()) == 9
    assert torch.equal(chosen, balanced_references(labels))
    assert any(not torch.equal(chosen, balanced_references(labels, seed=seed)) for seed in (1, 2, 3))
    with pytest.raises(UserError, match="1 to 3"):
        balanced_references(labels, count=4)


def test_nearest_distance_is_squared_and_of_the_same_class():
    references = torch.tensor([[0.0, 0.0], [10.0, 0.0], [3.0, 0.0], [3.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    image = torch.tensor([[3.0, 4.0]])
    assert nearest_same_class(image, torch.tensor([0]), references, labels).tolist() == pytest.approx([25])
    assert nearest_same_class(image, torch.tensor([1]), references, labels).tolist() == pytest.approx([9])
    distance, classes = distance_to_classes(image, references, labels)
    assert classes.tolist() == [0, 1] and distance[0].tolist() == pytest.approx([25, 9])
    with pytest.raises(UserError, match="class 2"):
        nearest_same_class(image, torch.tensor([2]), references, labels)


def test_more_photos_of_a_person_do_not_shorten_the_distance():
    few, many = torch.randn(4, 3, generator=generator()), torch.randn(400, 3, generator=generator(1))
    labels = torch.tensor([0] * 4 + [1] * 400)
    images = torch.randn(500, 3, generator=generator(2))
    means = [
        nearest_same_class(images, torch.full((500,), k), torch.cat([few, many]), labels).mean()
        for k in (0, 1)
    ]
    assert 0.3 < means[0] / means[1] < 3
    unbalanced = distance_to_classes(images, torch.cat([few, many]), labels)[0].mean(0)
    assert unbalanced[0] / unbalanced[1] > 10


def test_the_two_references_of_the_distance():
    references = torch.tensor([[0.0], [10.0], [20.0]])
    labels = torch.tensor([0, 1, 2])
    unseen = torch.tensor([[1.0], [12.0]])
    result = knn_distances(
        torch.tensor([[2.0], [4.0], [10.0]]),
        torch.tensor([0, 0, 1]),
        references=references,
        reference_labels=labels,
        unseen=unseen,
        unseen_labels=torch.tensor([0, 1]),
    )
    assert result.per_image.tolist() == pytest.approx([4, 16, 0])
    assert result.reconstruction.tolist() == pytest.approx([10, 0])
    assert result.unseen.tolist() == pytest.approx([1, 4])
    assert result.stranger.tolist() == pytest.approx([144, 81])
    assert result.leakage == pytest.approx((112.5 - 5) / (112.5 - 2.5))
    alone, classes = stranger_distance(unseen[:1], torch.tensor([0]), references, labels)
    assert math.isnan(alone[0]) and alone[1:].tolist() == pytest.approx([81, 361])
    assert classes.tolist() == [0, 1, 2]


def test_a_person_without_unseen_photo_is_marked_not_invented():
    result = knn_distances(
        torch.tensor([[1.0], [11.0]]),
        torch.tensor([0, 1]),
        references=torch.tensor([[0.0], [10.0]]),
        reference_labels=torch.tensor([0, 1]),
        unseen=torch.tensor([[2.0], [3.0]]),
        unseen_labels=torch.tensor([0, 0]),
    )
    assert result.complete.tolist() == [False, False], "0 has no stranger, 1 no unseen photo"
    assert math.isnan(result.leakage)


def test_scaled_leakage_ends():
    unseen, stranger = torch.tensor(2.0), torch.tensor(10.0)
    values = scaled_leakage(torch.tensor([10.0, 2.0, 6.0]), unseen, stranger)
    assert values.tolist() == [0, 1, 0.5]
    assert scaled_leakage(torch.tensor(1.0), stranger, unseen).isnan()


# Distributions


def test_squared_mmd_against_a_written_out_sum():
    x, y = (
        torch.randn(4, 3, generator=generator()).double(),
        torch.randn(5, 3, generator=generator(1)).double(),
    )

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    within_x = sum(kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(kernel(a, b) for a in x for b in y) / 20
    assert float(squared_mmd(x, y)) == pytest.approx(within_x + within_y - 2 * between)


def test_kernel_distance_is_unbiased_around_zero_and_sees_a_shift():
    x, y = torch.randn(2000, 4, generator=generator()).split(1000)
    same = kernel_distance(x, y, subset_size=50, subsets=200)
    assert abs(same.value) < 4 * same.spread / math.sqrt(20)  # 20 disjoint subsets fit in a set
    assert (same.estimates < 0).any(), "an unbiased estimate of 0 is negative at times"
    shifted = kernel_distance(x, y + 1, subset_size=50, subsets=20)
    assert shifted.value > 5 * abs(same.value) and shifted.value > 1
    assert (
        kernel_distance(x, y, subset_size=50, subsets=5).value
        == kernel_distance(x, y, subset_size=50, subsets=5).value
    )
    assert kernel_distance(x[:7], y, subsets=2).subset_size == 7
    with pytest.raises(UserError):
        kernel_distance(x[:1], y)
    with pytest.raises(UserError, match="finite"):
        kernel_distance(x.clone().index_fill_(0, torch.tensor([3]), torch.nan), y)


def test_frechet_closed_forms():
    one = torch.ones(1, dtype=torch.float64)
    assert float(frechet_from_moments(0 * one, one[None], 2 * one, 9 * one[None])) == pytest.approx(8)
    first, second = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([9.0, 16.0]))
    zero = torch.zeros(2)
    assert float(frechet_from_moments(zero, first, zero, second)) == pytest.approx(4 + 4, rel=1e-5)
    x = torch.randn(50, 3, generator=generator())
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(12, rel=1e-6)


def test_frechet_bias_in_small_samples_is_what_the_null_shows():
    small = frechet_null(torch.randn(120, 16, generator=generator()))
    large = frechet_null(torch.randn(2000, 16, generator=generator()))
    assert small == pytest.approx(2.8, rel=0.35) and large == pytest.approx(0.17, rel=0.35)
    with pytest.raises(UserError):
        frechet_null(torch.randn(3, 2))


REAL = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [5, 5]])
FAKE = torch.tensor([[0.1, 0.1], [0.9, 0.2], [3, 3], [5, 5.5]])


def test_prdc_toy_has_the_standard_values():
    result = prdc(REAL, FAKE, k=1)
    assert result == pytest.approx((1.0, 0.8, 2.0, 1.0, 5, 4))


def test_prdc_of_far_sets_is_zero_and_of_equal_sets_full():
    assert prdc(REAL, FAKE + 100, k=1)[:4] == (0, 0, 0, 0)
    x = torch.randn(30, 2, generator=generator())
    same = prdc(x, x)
    assert same.precision == same.recall == same.coverage == 1


def test_prdc_of_class_zero_uses_class_zero_only():
    real = torch.cat([REAL, FAKE + 100])
    real_labels = torch.tensor([0] * 5 + [1] * 4)
    fake = torch.cat([FAKE, FAKE + 100])
    result = prdc_per_class(real, real_labels, fake, torch.tensor([0] * 4 + [1] * 4), k=1)
    assert result[0] == prdc(REAL, FAKE, k=1)
    assert result[1].real_count == 4


def test_prdc_refuses_too_few_images():
    with pytest.raises(UserError, match=r"k \+ 1 = 5"):
        prdc(REAL, FAKE, k=4)
    with pytest.raises(UserError, match="class 3"):
        prdc_per_class(REAL, torch.full((5,), 3), FAKE[:1], torch.tensor([3]), k=1)
    with pytest.raises(UserError):
        prdc(REAL, FAKE, k=0)


# Judges


class Judge(nn.Module):
    """Two features (mean and largest pixel) and three logits of them."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.head = nn.Linear(2, 3)
        self.drop = nn.Dropout(0.5)
        self.sizes: list[int] = []

    def both(self, x):
        self.sizes.append(x.shape[-1])
        features = self.drop(torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1))
        return features, self.head(features)


def test_judge_synthesises_each_latent_once_for_all_networks():
    seen = []

    def synthesise(latents):
        assert latents.dtype == torch.float32 and not torch.is_grad_enabled()
        seen.append(len(latents))
        return latents[:, :, None, None].expand(-1, 3, 8, 8)

    networks = {"target": Judge(8).train(), "evaluator": Judge(4), "panel": Judge(4)}
    latents = torch.tensor([[0.25], [2.0], [-1.0], [0.5], [0.75]], dtype=torch.float16)
    result = judge(latents, networks, synthesise=synthesise, batch_size=2)
    assert seen == [2, 2, 1]
    assert networks["target"].sizes == [8] * 3 and networks["evaluator"].sizes == [4] * 3
    features, logits = result["evaluator"]
    assert torch.allclose(features[:, 0], torch.tensor([0.25, 1.0, 0.0, 0.5, 0.75]), atol=1e-6), (
        "clamped to [0, 1]"
    )
    assert features.dtype == logits.dtype == torch.float32 and logits.shape == (5, 3)
    assert networks["target"].training and networks["target"].head.weight.requires_grad, "restored"


def test_judge_scores_do_not_depend_on_the_batch_and_match_stored_bytes():
    images = torch.randint(0, 256, (5, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    network = {"main": Judge(6)}
    whole, parts = judge(images, network, batch_size=64)["main"], judge(images, network, batch_size=2)["main"]
    assert torch.allclose(whole[1], parts[1], atol=1e-6)
    assert torch.equal(judge(images.float() / 255, network)["main"][1], whole[1])


def test_judge_outputs_can_be_trained_on():
    features, _ = judge(torch.rand(4, 3, 8, 8), {"main": Judge(8)})["main"]
    loss = nn.Linear(2, 1)(features).sum()
    loss.backward()
    assert not features.is_inference()


def test_judge_refuses_bad_input():
    with pytest.raises(UserError, match="synthesise"):
        judge(torch.zeros(2, 5), {"main": Judge(8)})
    with pytest.raises(UserError):
        judge(torch.zeros(0, 3, 8, 8), {"main": Judge(8)})
    with pytest.raises(UserError):
        judge(torch.zeros(1, 3, 8, 8), {})
