"""Closed forms and known answers of the feature-space analysis."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import davies_bouldin_score, silhouette_score
from sklearn.neighbors import NearestCentroid

from lib import features as F
from lib.errors import UserError


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def classes(rng, *, per_class=12, count=4, width=6, gap=6.0):
    means = gap * rng.normal(size=(count, width))
    identity = np.repeat(np.arange(count), per_class)
    return means[identity] + rng.normal(size=(len(identity), width)), identity


def test_squared_shift_known(rng):
    a = rng.normal(size=(30, 5))
    noise = 2 * a.var(0, ddof=1).sum() / 30
    assert F.squared_shift(a, a + np.array([3.0, 4, 0, 0, 0])) == pytest.approx(25 - noise)
    assert F.squared_shift(a, a + np.array([3.0, 4, 0, 0, 0]), scale=2.5) == pytest.approx(
        (25 - noise) / 6.25
    )
    assert F.squared_shift(a[:1], a[:1] + 3.0) == pytest.approx(45), "one row each: no spread is known"
    assert F.squared_shift(a, a) == pytest.approx(-noise), "unbiased: may be negative"


@pytest.mark.parametrize(("n", "spread"), [(5, 1.0), (50, 1.0), (5, 3.0)])
def test_squared_shift_is_the_same_of_few_and_of_scattered_rows(rng, n, spread):
    squares = [
        F.squared_shift(rng.normal(size=(20, 3)), spread * rng.normal(size=(n, 3)) + 5) for _ in range(600)
    ]
    assert np.mean(squares) == pytest.approx(75, rel=0.03)


def test_erasing_draws_of_a_photo_are_one_row_of_a_shift(rng):
    sets = feature_sets(rng, at_erased=False)
    (photos, people), erasure = sets.sets["private_train"], 2.0 * rng.normal(size=(3 * 45, 5))
    draws = np.concatenate([photos] * 3) + erasure - np.tile(erasure.reshape(3, 45, 5).mean(0), (3, 1))
    repeated = F.FeatureSets({**sets.sets, "private_erased": (draws, np.tile(people, 3))})
    table = F.distance_table(repeated, defence="none")
    shift = F.per_identity(table, pair="private_erased->private_train", measure="squared_shift")
    assert (shift < 0).all(), "the draws of every photo cancel"


def test_shifts_do_not_depend_on_the_feature_scale(rng):
    x, identity = classes(rng, per_class=40)
    for factor in (1.0, 1000.0):
        y = factor * x
        scaled = F.squared_shift(y[identity == 0], y[identity == 1], scale=F.within_scale(y, identity))
        whitened = F.squared_shift(
            y[identity == 0], y[identity == 1], whitening=F.within_whitening(y, identity)
        )
        if factor == 1.0:
            expected = scaled, whitened
    assert (scaled, whitened) == pytest.approx(expected, rel=1e-6)


def test_within_scale_and_whitening(rng):
    x, identity = classes(rng, per_class=2000, count=3)
    assert F.within_scale(x, identity) == pytest.approx(1, abs=0.02)
    white = (2 * x) @ F.within_whitening(2 * x, identity)
    assert F.within_scale(white, identity) == pytest.approx(1, abs=0.02)


def test_mmd_is_zero_for_one_law_and_its_test_is_calibrated(rng):
    pairs = [rng.normal(size=(2, 25, 4)) for _ in range(40)]
    results = np.array([F.mmd_test(a, b, permutations=99) for a, b in pairs])
    assert abs(results[:, 0].mean()) < 3 * results[:, 0].std() / np.sqrt(40)
    assert 0.3 < results[:, 1].mean() < 0.7
    value, p = F.mmd_test(pairs[0][0], pairs[0][1] + 2, permutations=99)
    assert value > 0.2 and p == pytest.approx(0.01)


def test_mmd_formula(rng):
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    k = lambda x, y: np.exp(-cdist(x, y, "sqeuclidean") / (2 * 1.5**2))  # noqa: E731
    off = lambda m: (m.sum() - np.trace(m)) / (len(m) * (len(m) - 1))  # noqa: E731
    assert F.mmd2(a, b, bandwidth=1.5) == pytest.approx(off(k(a, a)) + off(k(b, b)) - 2 * k(a, b).mean())
    assert F.mmd2(5 * a, 5 * b) == pytest.approx(F.mmd2(a, b))


def test_collapsed_features_are_refused():
    with pytest.raises(UserError, match="collapsed"):
        F.mmd2(np.full((4, 3), 0.1), np.full((5, 3), 0.1))


def test_energy_distance_of_two_points_each():
    a, b = np.array([[0.0], [1.0]]), np.array([[10.0], [12.0]])
    assert F.energy_distance(a, b) == pytest.approx(2 * 10.5 - 1 - 2)


def test_knn_distance_and_its_size_matching(rng):
    queries, references = rng.normal(size=(6, 3)), rng.normal(size=(15, 3))
    squared = np.sort(cdist(queries, references, "sqeuclidean"), axis=1)
    np.testing.assert_allclose(F.knn_distance(queries, references), squared[:, 0])
    np.testing.assert_allclose(F.knn_distance(queries, references, k=3), squared[:, :3].mean(1))
    np.testing.assert_allclose(F.knn_distance(queries, references, size=1), squared.mean(1))
    drawn = [F.knn_distance(queries, references[rng.permutation(15)[:5]], k=2) for _ in range(3000)]
    np.testing.assert_allclose(
        F.knn_distance(queries, references, k=2, size=5), np.mean(drawn, axis=0), rtol=0.06
    )


def test_erasing_that_changes_nothing_has_no_distance_however_often_it_is_drawn(rng):
    people, query = np.repeat(np.arange(40), 12), np.repeat(np.arange(40), 6)
    private, others, unseen = (rng.normal(size=(len(who), 5)) for who in (people, people, query))
    tables = {}
    for draws in (1, 4):
        erased = np.tile(others, (draws, 1)), np.tile(people, draws)
        drawn = {
            "private_train": (private, people),
            "private_erased": erased,
            "reconstructions": (unseen, query),
        }
        tables[draws] = F.distance_table(F.FeatureSets(drawn), defence="none")
    pd.testing.assert_frame_equal(tables[1], tables[4], atol=1e-9)
    vote = F.per_identity(tables[4], pair="reconstructions->erased_or_private", measure="nearest_set_vote")
    energy = F.per_identity(tables[4], pair="reconstructions->private_erased", measure="energy_distance")
    assert abs(vote.mean() - 0.5) < 0.06 and abs(energy.mean()) < 0.1


def test_nearest_set_vote(rng):
    one_law = F.nearest_set_vote(*(rng.normal(size=(n, 3)) for n in (400, 300, 60)), size=50)
    assert one_law.mean() == pytest.approx(0.5, abs=0.1)
    erased, private = rng.normal(size=(40, 3)) + 50, rng.normal(size=(10, 3))
    np.testing.assert_allclose(F.nearest_set_vote(erased + 0.1, erased, private), 1.0)
    np.testing.assert_allclose(F.nearest_set_vote(private + 0.1, erased, private), 0.0, atol=1e-12)


def test_nearest_set_vote_matches_subsampling_and_splits_ties(rng):
    queries, first, second = (rng.normal(size=(n, 2)) for n in (5, 12, 8))
    drawn = []
    for _ in range(3000):
        a, b = first[rng.permutation(12)[:4]], second[rng.permutation(8)[:4]]
        drawn.append(cdist(queries, a).min(1) < cdist(queries, b).min(1))
    np.testing.assert_allclose(
        F.nearest_set_vote(queries, first, second, size=4), np.mean(drawn, axis=0), atol=0.04
    )
    np.testing.assert_allclose(F.nearest_set_vote(queries, first, first), 0.5)


def test_two_sample_auc(rng):
    a, b = rng.normal(size=(60, 8)), rng.normal(size=(90, 8))
    assert F.two_sample_auc(a, b) == pytest.approx(0.5, abs=0.2)
    assert F.two_sample_auc(a, b + 3) > 0.98


def test_separation_equals_sklearn(rng):
    x, identity = classes(rng, gap=1.5)
    assert F.silhouette(x, identity).mean() == pytest.approx(silhouette_score(x, identity))
    assert F.davies_bouldin(x, identity).mean() == pytest.approx(davies_bouldin_score(x, identity))
    names, means = F.class_means(x, identity)
    margin = F.ncm_margin(x, identity, classes=names, means=means)
    right = NearestCentroid().fit(x, identity).predict(x) == identity
    assert 0 < right.mean() < 1
    np.testing.assert_array_equal(margin > 0, right)
    assert F.ncm_accuracy(x, identity, classes=names, means=means) == right.mean()


def test_fisher_ratio_and_ncm_margin_known():
    x = np.array([[-1.0], [1.0], [9.0], [11.0]])
    identity = np.array([3, 3, 5, 5])
    assert F.fisher_ratio(x, identity).mean() == pytest.approx(25 / 2)
    margin = F.ncm_margin(x, identity, classes=np.array([3, 5]), means=np.array([[0.0], [10.0]]))
    np.testing.assert_allclose(margin, [1, 0.8, 0.8, 1])
    wrong = F.ncm_margin(
        np.array([[8.0]]), np.array([3]), classes=np.array([3, 5]), means=np.array([[0.0], [10.0]])
    )
    np.testing.assert_allclose(wrong, [-0.6])


def test_logit_margin_is_the_distance_to_the_boundary(rng):
    weight, bias = rng.normal(size=(4, 3)), rng.normal(size=4)
    x = rng.normal(size=(50, 3))
    logits = x @ weight.T + bias
    labels = logits.argmax(1)
    distance = F.logit_margin(logits, labels, weight=weight)
    assert (distance > 0).all()
    directions = rng.normal(size=(4000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    inside = (x[:, None] + 0.999 * distance[:, None, None] * directions) @ weight.T + bias
    np.testing.assert_array_equal(inside.argmax(2), np.broadcast_to(labels[:, None], (50, 4000)))
    outside = (x[:, None] + 1.1 * distance[:, None, None] * directions) @ weight.T + bias
    assert (outside.argmax(2) != labels[:, None]).any(1).all()
    assert (F.logit_margin(logits, (labels + 1) % 4, weight=weight) < 0).all()


def test_neighbour_ratio_known():
    references, owner = np.array([[0.0], [4.0]]), np.array([0, 1])
    ratio = F.neighbour_ratio(
        np.array([[1.0]]), np.array([0]), references=references, reference_identity=owner
    )
    np.testing.assert_allclose(ratio, [1 / 3])


def test_separation_table_rises_with_separation_and_ignores_scale(rng):
    state = rng.bit_generator.state
    tables = []
    for gap, factor in ((1.0, 1.0), (8.0, 1.0), (8.0, 50.0)):
        rng.bit_generator.state = state
        x, identity = classes(rng, gap=gap)
        x = factor * x
        half = np.arange(len(x)) % 2 == 0
        weight = rng.normal(size=(4, 6))
        table = F.separation_table(
            (x[half], identity[half]),
            (x[~half], identity[~half]),
            defence="none",
            logits=x[~half] @ weight.T,
            weight=weight,
        )
        assert set(table.groupby("measure").size()) == {4}
        tables.append(table.groupby("measure")["value"].mean())
    up = ["silhouette", "ncm_margin", "ncm_accuracy", "fisher_ratio"]
    assert (tables[1][up] > tables[0][up]).all()
    assert (
        tables[1][["davies_bouldin", "neighbour_ratio"]] < tables[0][["davies_bouldin", "neighbour_ratio"]]
    ).all()
    np.testing.assert_allclose(tables[2], tables[1], rtol=1e-6)


def test_new_identity_is_refused():
    with pytest.raises(UserError, match="align the sets"):
        F.ncm_margin(np.zeros((1, 1)), np.array([9]), classes=np.array([0, 1]), means=np.eye(2)[:, :1])


SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])


def test_hull_iou_and_containment_of_squares():
    first, second = F.hull(np.vstack([SQUARE, [[0.5, 0.5]]])), F.hull(SQUARE + [0.5, 0])
    assert len(first) == 5
    assert F.iou(first, second) == pytest.approx(0.5 / 1.5)
    assert F.iou(first, first) == pytest.approx(1)
    assert F.containment(SQUARE + [0.5, 0], first) == pytest.approx(0.5)


def test_hull_trim_drops_an_outlier(rng):
    points = np.vstack([rng.normal(size=(50, 2)), [[100.0, 100]]])
    assert F.hull(points).max() == 100
    assert F.hull(points, trim=0.9).max() < 5
    with pytest.raises(UserError, match="span an area"):
        F.hull(np.zeros((5, 2)))


def test_hull_overlap_depends_on_size_and_has_a_null(rng):
    points, fresh = rng.normal(size=(2, 3000, 2))
    small, large = (F.hull_overlap(points, fresh, size=n, repeats=100, trim=1.0) for n in (30, 200))
    assert small.first_in_second.mean() == pytest.approx(0.75, abs=0.04)
    assert large.first_in_second.mean() == pytest.approx(0.955, abs=0.02)
    null = F.split_half_overlap(points, size=30, repeats=100)
    same = F.hull_overlap(points, fresh, size=30, repeats=100)
    assert same.iou.mean() == pytest.approx(null.iou.mean(), abs=0.05)
    apart = F.hull_overlap(points, fresh + 20, size=30, repeats=10)
    assert apart.iou.max() == 0 and apart.second_in_first.max() == 0
    single = F.hull_overlap(SQUARE, SQUARE + [0.5, 0], repeats=2, trim=1.0)
    np.testing.assert_allclose(single.iou, 1 / 3)
    np.testing.assert_allclose(single.overlap, 0.5)


def test_pca2_finds_the_plane(rng):
    plane = rng.normal(size=(200, 2)) * [5, 2]
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0][:, :2]
    projection = F.pca2(plane @ rotation.T + 3)
    assert projection.explained.sum() == pytest.approx(1)
    points = projection.apply(plane @ rotation.T + 3)
    np.testing.assert_allclose(cdist(points, points), cdist(plane, plane), atol=1e-8)


def test_lda2_separates(rng):
    x, identity = classes(rng, per_class=30, gap=4.0)
    points = F.lda2(x, identity).apply(x)
    assert silhouette_score(points, identity) > 0.5
    with pytest.raises(UserError, match="3 classes"):
        F.lda2(x[:60], identity[:60])


def test_tsne_two_seeds(rng):
    sets = {"private_train": rng.normal(size=(20, 5)), "reconstructions": rng.normal(size=(15, 5)) + 30}
    embeddings = F.tsne(sets)
    assert list(embeddings) == [0, 1]
    for points in embeddings.values():
        assert {name: rows.shape for name, rows in points.items()} == {
            "private_train": (20, 2),
            "reconstructions": (15, 2),
        }
        assert silhouette_score(np.vstack(list(points.values())), [0] * 20 + [1] * 15) > 0.5
    assert not np.allclose(embeddings[0]["private_train"], embeddings[1]["private_train"])


UNSEEN = ("private_held_out", "held_out_erased")


def feature_sets(rng, *, at_erased: bool, factor: float = 1.0) -> F.FeatureSets:
    """Three people; erased features are shifted by 4, reconstructions follow them or the private ones."""
    count, width = 3, 5
    means = 30 * rng.normal(size=(count, width))
    shift = np.array([4.0, 0, 0, 0, 0])

    def draw(n, offset):
        identity = np.repeat(np.arange(count), n)
        return factor * (means[identity] + offset + rng.normal(size=(len(identity), width))), identity

    return F.FeatureSets(
        {
            "private_train": draw(15, 0),
            "private_held_out": draw(5, 0),
            "private_erased": draw(45, shift),
            "held_out_erased": draw(15, shift),
            "reconstructions": draw(8, shift if at_erased else 0),
            "prior_samples": (factor * 100 * rng.normal(size=(10, width)), np.full(10, -1)),
        }
    )


@pytest.mark.parametrize("at_erased", [True, False])
def test_the_claim_is_read_from_the_numbers(rng, at_erased):
    table = F.distance_table(feature_sets(rng, at_erased=at_erased), defence="re(0.1,0.4)")
    assert list(table.columns) == ["identity", "defence", "pair", "measure", "value"]
    claims = F.claim_differences(table)
    distances = claims[claims["measure"] != "nearest_set_vote"]["difference"]
    votes = claims[claims["measure"] == "nearest_set_vote"]["difference"]
    assert len(distances) == 3 * len(F.MEASURES) and len(votes) == 3
    assert (distances < 0).all() if at_erased else (distances > 0).all()
    assert (votes > 0.3).all() if at_erased else (votes < -0.3).all()
    middle = claims[claims["measure"] == "nearest_set_vote"]["private"]
    ends = [F.per_identity(table, pair=f"{q}->erased_or_private", measure="nearest_set_vote") for q in UNSEEN]
    np.testing.assert_allclose(middle, sum(ends) / 2)
    ratio = F.relative_distance(table)["ratio"]
    assert ratio.mean() > 1.7 if at_erased else 0.6 < ratio.mean() < 1.5
    leakage = F.scaled_leakage(table)
    assert list(leakage.index) == [0, 1, 2]
    assert (leakage < 1).all() if at_erased else (leakage > 0.95).all()
    prior = F.per_identity(table, pair="prior_samples->private_train", measure="knn_distance")
    assert (prior > 10).all()


def test_distances_are_scale_free():
    one, thousand = (
        F.distance_table(
            feature_sets(np.random.default_rng(1), at_erased=True, factor=factor), defence="none"
        )
        for factor in (1.0, 1000.0)
    )
    np.testing.assert_allclose(one["value"], thousand["value"], rtol=1e-3, atol=1e-5)


def test_mmd_by_identity(rng):
    sets = feature_sets(rng, at_erased=False)
    value, p = F.mmd_by_identity(sets, first="private_held_out", second="private_train", permutations=199)
    assert abs(value) < 0.1 and p > 0.02
    value, p = F.mmd_by_identity(sets, first="private_erased", second="private_train", permutations=199)
    assert value > 0.1 and p == pytest.approx(1 / 200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private": (np.zeros((2, 3)), np.zeros(2))}, "rename it"),
        ({"private_held_out": (np.zeros((2, 3)), np.zeros(3))}, "align the identities"),
        ({"private_held_out": (np.zeros((2, 4)), np.zeros(2))}, "use one layer"),
        ({"private_held_out": (np.full((2, 3), np.nan), np.zeros(2))}, "NaN"),
    ],
)
def test_bad_sets_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        F.FeatureSets({"private_train": (np.zeros((2, 3)), np.zeros(2)), **change})


def test_missing_pairs_and_bad_sizes_are_refused(rng):
    x, identity = classes(rng)
    table = F.distance_table(F.FeatureSets({"private_train": (x, identity)}), defence="none")
    with pytest.raises(UserError, match="add these feature sets"):
        F.claim_differences(table)
    with pytest.raises(UserError, match="size between 1 and 48"):
        F.knn_distance(x, x, size=49)
    with pytest.raises(UserError, match="size between 3"):
        F.hull_overlap(x[:, :2], x[:10, :2], size=11)


def test_separation_is_measured_around_training_means(rng):
    train, test = classes(rng, per_class=40), classes(np.random.default_rng(7), per_class=40)
    means = F.class_means(*train)
    own, given = (F.fisher_ratio(*test, training=training) for training in (None, means))
    assert own == pytest.approx(given, rel=0.2) and not np.array_equal(own, given)
    far = (means[0], means[1] + 100.0)
    assert (F.davies_bouldin(*test, training=far) > F.davies_bouldin(*test, training=means)).all()


def test_one_unseen_photo_a_person_leaves_the_silhouette_out(rng):
    train, test = classes(rng, per_class=6), classes(np.random.default_rng(7), per_class=1)
    table = F.separation_table(train, test, defence="none")
    assert "silhouette" not in set(table["measure"]) and "fisher_ratio" in set(table["measure"])
    assert np.isfinite(table["value"]).all()
