"""Distances between two feature sets in full dimension.

Size matching is exact instead of simulated: where a measure depends on the number of points, ``size=m``
returns its expectation over all subsets of m points drawn without replacement, which a repeated subsampling
only estimates. Squared shift, MMD and energy distance are unbiased at every size, and need none.
"""

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import gammaln
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib.errors import UserError


def _pair(a: np.ndarray, b: np.ndarray, *, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(
            f"expected two sets (n, d) of equal d, got {a.shape} and {b.shape}; use one feature layer"
        )
    if min(len(a), len(b)) < least:
        raise UserError(f"expected at least {least} rows a set, got {len(a)} and {len(b)}; use more images")
    return a, b


def _squared_within(pooled: np.ndarray) -> np.ndarray:
    """Squared distances among the rows (n, d) by one matrix product, which is fast where d is large.

    Centred first, so that rounding stays far below the spread; nearest neighbours use cdist for their ties.
    """
    centred = pooled - pooled.mean(0)
    norms = (centred**2).sum(1)
    squared = np.maximum(norms[:, None] + norms - 2 * centred @ centred.T, 0)
    np.fill_diagonal(squared, 0)
    return squared


def _size(size: int | None, *available: int) -> int:
    limit = min(available)
    if size is not None and not 1 <= size <= limit:
        raise UserError(f"expected a size between 1 and {limit}, got {size}; match it to the smallest set")
    return limit if size is None else size


def _centred(features: np.ndarray, identity: np.ndarray) -> tuple[np.ndarray, int]:
    """Features minus their class mean, and the degrees of freedom N - K."""
    features = np.asarray(features, dtype=np.float64)
    classes, index, counts = np.unique(identity, return_inverse=True, return_counts=True)
    if len(features) <= len(classes):
        raise UserError(
            f"expected more rows than classes, got {len(features)} and {len(classes)}; add images"
        )
    means = np.zeros((len(classes), features.shape[1]))
    np.add.at(means, index, features)
    return features - (means / counts[:, None])[index], len(features) - len(classes)


def within_scale(features: np.ndarray, identity: np.ndarray) -> float:
    """sqrt(tr S_w / d): root mean square within-class deviation per feature, S_w pooled over classes."""
    centred, freedom = _centred(features, identity)
    return float(np.sqrt((centred**2).sum() / freedom / centred.shape[1]))


def within_whitening(features: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """S_w^(-1/2) (d, d) with S_w shrunk by Ledoit-Wolf: ``x @ W`` has Mahalanobis distances as Euclidean
    ones."""
    centred, _ = _centred(features, identity)
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    if values.min() <= 0:
        raise UserError("expected features that vary within classes, got none; the classes have collapsed")
    return (vectors / np.sqrt(values)) @ vectors.T


def squared_shift(
    a: np.ndarray, b: np.ndarray, *, scale: float = 1.0, whitening: np.ndarray | None = None
) -> float:
    """||mean(a) - mean(b)||^2 / scale^2; with ``whitening`` from :func:`within_whitening`, the Mahalanobis shift.

    a (n, d), b (m, d), independent rows. What sampling alone adds, tr S_a / n + tr S_b / m, is taken off: unbiased at
    every size, so that sets of different n and spread compare, and slightly negative now and then. Average before
    taking a root. Of a set of one row the spread is not known; nothing is taken off for it.
    """
    a, b = _pair(a, b)
    if whitening is not None:
        a, b = a @ whitening, b @ whitening
    squared = ((a.mean(0) - b.mean(0)) ** 2).sum()
    squared -= sum(rows.var(0, ddof=1).sum() / len(rows) for rows in (a, b) if len(rows) > 1)
    return float(squared / scale**2)


def median_bandwidth(*sets: np.ndarray) -> float:
    """Median distance between two different rows of the pooled sets: one bandwidth for a family of
    comparisons."""
    pooled = np.concatenate([np.asarray(rows, dtype=np.float64) for rows in sets])
    if len(pooled) < 2:
        raise UserError(f"expected at least 2 pooled rows, got {len(pooled)}; use more images")
    bandwidth = float(np.median(np.sqrt(_squared_within(pooled)[np.triu_indices(len(pooled), 1)])))
    if bandwidth <= 1e-9 * np.abs(pooled).max():  # equal rows, up to rounding
        raise UserError("expected rows that differ, got a median distance of 0; the features have collapsed")
    return bandwidth


def _block_means(values: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Off-diagonal mean within a, within b, and mean between, for each row of memberships ``first`` (p,
    n)."""
    values = values - np.diag(np.diag(values))
    second = 1.0 - first
    count_a, count_b = first.sum(1), second.sum(1)
    to_first = first @ values
    aa = (to_first * first).sum(1) / (count_a * (count_a - 1))
    ab = (to_first * second).sum(1) / (count_a * count_b)
    bb = ((second @ values) * second).sum(1) / (count_b * (count_b - 1))
    return aa, bb, ab


def _mmd2(kernel: np.ndarray, first: np.ndarray) -> np.ndarray:
    aa, bb, ab = _block_means(kernel, first)
    return aa + bb - 2 * ab


def mmd_statistics(
    a: np.ndarray,
    b: np.ndarray,
    *,
    bandwidth: float | None,
    permutations: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Squared MMD of (a, b), then of ``permutations`` relabelled pairs: (1 + permutations,)."""
    a, b = _pair(a, b, least=2)
    pooled = np.concatenate([a, b])
    width = median_bandwidth(a, b) if bandwidth is None else bandwidth
    kernel = np.exp(-_squared_within(pooled) / (2 * width**2))
    first = np.zeros((permutations + 1, len(pooled)))
    first[:, : len(a)] = 1.0
    first[1:] = generator.permuted(first[1:], axis=1)
    return _mmd2(kernel, first)


def mmd2(a: np.ndarray, b: np.ndarray, *, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with an RBF kernel (Gretton et al. 2012, eq. 3).

    Kernel exp(-||x-y||^2 / (2 bandwidth^2)), bandwidth the median pooled distance by default; diagonals left
    out, so the expectation is 0 for equal laws and the value may be slightly negative. Scale-free by its
    bandwidth.
    """
    return float(
        mmd_statistics(a, b, bandwidth=bandwidth, permutations=0, generator=np.random.default_rng(0))[0]
    )


def mmd_test(
    a: np.ndarray, b: np.ndarray, *, bandwidth: float | None = None, permutations: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Squared MMD and its permutation p value, (1 + number at least as large) / (1 + permutations)."""
    values = mmd_statistics(
        a, b, bandwidth=bandwidth, permutations=permutations, generator=np.random.default_rng(seed)
    )
    return float(values[0]), permutation_p(values)


def permutation_p(values: np.ndarray) -> float:
    """p value of values[0] among its permutations values[1:]; rounding never decides a tie."""
    return float((values >= values[0] - 1e-12).mean())


def energy_distance(a: np.ndarray, b: np.ndarray, *, scale: float = 1.0) -> float:
    """2 E||a-b|| - E||a-a'|| - E||b-b'|| as an unbiased U-statistic (Szekely & Rizzo 2013), divided by scale.

    Expectation 0 for equal laws; may be slightly negative. ``scale`` in feature units makes it comparable.
    """
    a, b = _pair(a, b, least=2)
    pooled = np.concatenate([a, b])
    first = np.zeros((1, len(pooled)))
    first[:, : len(a)] = 1.0
    aa, bb, ab = _block_means(np.sqrt(_squared_within(pooled)), first)
    return float((2 * ab - aa - bb)[0] / scale)


def _log_choose(n: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    n, k = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(k, dtype=np.float64))
    possible = (k >= 0) & (k <= n)
    top = np.where(possible, n, 0)
    bottom = np.where(possible, k, 0)
    value = gammaln(top + 1) - gammaln(bottom + 1) - gammaln(top - bottom + 1)
    return np.where(possible, value, -np.inf)


def _rank_weights(count: int, size: int, k: int) -> np.ndarray:
    """Weight of the i-th nearest of ``count`` in the mean of the k nearest of a random subset of ``size``."""
    rank = np.arange(count)[:, None]
    order = np.arange(k)[None]
    log = (
        _log_choose(rank, order)
        + _log_choose(count - 1 - rank, size - 1 - order)
        - _log_choose(np.array(count), np.array(size))
    )
    return np.exp(log).sum(1) / k


def knn_distance(
    queries: np.ndarray, references: np.ndarray, *, k: int = 1, size: int | None = None
) -> np.ndarray:
    """Mean squared Euclidean distance of each query (n, d) to its k nearest references (m, d): (n,).

    The minimum shrinks as m grows; ``size`` gives its expectation over random subsets of that many
    references.
    """
    queries, references = _pair(queries, references)
    size = _size(size, len(references))
    if not 1 <= k <= size:
        raise UserError(f"expected k between 1 and {size} references, got {k}; lower k")
    ordered = np.sort(cdist(queries, references, "sqeuclidean"), axis=1)
    return ordered @ _rank_weights(len(references), size, k)


def _count_nearer(near: np.ndarray, far: np.ndarray, *, ties: bool) -> np.ndarray:
    """For each row and each of the sorted ``near`` (n, a), how many of the sorted ``far`` (n, b) are smaller:
    (n, a).

    With ``ties`` equal ones count too: a stable sort keeps the set that is put first in front.
    """
    joined = np.concatenate([far, near] if ties else [near, far], axis=1)
    order = np.argsort(joined, axis=1, kind="stable")
    from_far = order < far.shape[1] if ties else order >= near.shape[1]
    return np.cumsum(from_far, axis=1)[~from_far].reshape(near.shape)


def nearest_set_vote(
    queries: np.ndarray, first: np.ndarray, second: np.ndarray, *, size: int | None = None
) -> np.ndarray:
    """Probability that a query's nearest neighbour is in ``first`` rather than ``second``, sets size-matched:
    (n,).

    Queries (n, d), sets (a, d) and (b, d). Exact over all pairs of random subsets of ``size`` (default the
    smaller set) points; ties, such as an image that was not erased, count a half. The mean is the share of
    the vote: .5 where the sets have one law, 1 where the queries lie at ``first``.
    """
    queries, first = _pair(queries, first)
    _, second = _pair(queries, second)
    size = _size(size, len(first), len(second))
    near = np.sort(cdist(queries, first, "sqeuclidean"), axis=1)
    far = np.sort(cdist(queries, second, "sqeuclidean"), axis=1)
    closer = _count_nearer(near, far, ties=False)
    closer_or_equal = _count_nearer(near, far, ties=True)
    total = _log_choose(np.array(len(second)), np.array(size))
    survives = 0.5 * (
        np.exp(_log_choose(len(second) - closer, size) - total)
        + np.exp(_log_choose(len(second) - closer_or_equal, size) - total)
    )
    share = survives @ _rank_weights(len(first), size, 1)
    return share.clip(0.0, 1.0)  # sums of exponentials of log factorials round


def two_sample_auc(
    a: np.ndarray, b: np.ndarray, *, folds: int = 5, components: int = 20, seed: int = 0
) -> float:
    """Cross-validated area under the ROC curve of logistic regression a against b on PCA features.

    .5 = the sets cannot be told apart. The larger set is subsampled to the smaller; rows must be independent
    images (several erasing draws of one photo are not).
    """
    a, b = _pair(a, b, least=folds)
    generator = np.random.default_rng(seed)
    size = min(len(a), len(b))
    a, b = (rows[generator.choice(len(rows), size, replace=False)] for rows in (a, b))
    train = 2 * size - -(-2 * size // folds)
    model = make_pipeline(
        StandardScaler(),
        PCA(min(components, train, a.shape[1]), svd_solver="full"),
        LogisticRegression(max_iter=1000),
    )
    scores = cross_val_score(
        model,
        np.concatenate([a, b]),
        np.repeat([1, 0], size),
        scoring="roc_auc",
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
    )
    return float(scores.mean())
