"""Two-dimensional projections for pictures, and hull overlap with matched sizes and a null.

Overlaps are computed in PCA only. t-SNE preserves neither distances nor areas and has no map for new points:
never compute a hull, an overlap or a distance in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.manifold import TSNE

from lib.errors import UserError


@dataclass(frozen=True)
class Projection:
    """An affine map to the plane: ``(x - mean) @ axes``, mean (d,), axes (d, 2), explained variance shares
    (2,)."""

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Features (n, d) to points (n, 2)."""
        return (np.asarray(features, dtype=np.float64) - self.mean) @ self.axes

    def apply_all(self, sets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every named feature array (n, d) to points (n, 2)."""
        return {name: self.apply(features) for name, features in sets.items()}


def pca2(*fit: np.ndarray, seed: int = 0) -> Projection:
    """First two principal axes of the stated sets (each (n, d)), size-matched by subsampling, to be applied
    to all.

    ``explained`` is the share of the fitted variance on each axis. Signs are fixed: the largest loading is
    positive.
    """
    size = min(len(rows) for rows in fit)
    if size * len(fit) < 3:
        raise UserError(f"expected at least 3 rows to fit, got {size} in the smallest set; use more images")
    generator = np.random.default_rng(seed)
    pooled = np.concatenate(
        [np.asarray(rows, dtype=np.float64)[generator.permutation(len(rows))[:size]] for rows in fit]
    )
    pca = PCA(2, svd_solver="full").fit(pooled)
    axes = pca.components_.T
    signs = np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    return Projection(mean=pca.mean_, axes=axes * signs, explained=pca.explained_variance_ratio_)


def lda2(features: np.ndarray, identity: np.ndarray) -> Projection:
    """Two shrunk linear discriminant axes of private training features (N, d): the class-separation picture.

    ``explained`` is each axis's share of the between-class variance. Needs at least 3 classes.
    """
    if len(np.unique(identity)) < 3:
        raise UserError(f"expected at least 3 classes, got {len(np.unique(identity))}; show more people")
    features = np.asarray(features, dtype=np.float64)
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=2)
    model.fit(features, identity)
    return Projection(
        mean=features.mean(0), axes=model.scalings_[:, :2], explained=model.explained_variance_ratio_
    )


def tsne(
    sets: Mapping[str, np.ndarray], *, seeds: Sequence[int] = (0, 1), perplexity: float = 30.0
) -> dict[int, dict[str, np.ndarray]]:
    """Joint t-SNE of named sets (each (n, d)) after PCA to at most 50: ``{seed: {name: points (n, 2)}}``.

    The perplexity is lowered below a third of the rows where there are few. The start is PCA plus the seed's
    order of rows, so two seeds show what is an accident of the optimisation.
    """
    names = list(sets)
    pooled = np.concatenate([np.asarray(sets[name], dtype=np.float64) for name in names])
    if len(pooled) < 10:
        raise UserError(f"expected at least 10 rows, got {len(pooled)}; use more images")
    reduced = PCA(min(50, len(pooled) - 1, pooled.shape[1]), svd_solver="full").fit_transform(pooled)
    bounds = np.cumsum([len(sets[name]) for name in names])[:-1]
    embeddings = {}
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(reduced))
        model = TSNE(
            perplexity=min(perplexity, (len(reduced) - 1) / 3),
            init="pca",
            learning_rate="auto",
            max_iter=1000,
            early_exaggeration=12,
            metric="euclidean",
            random_state=seed,
        )
        points = np.empty((len(reduced), 2))
        points[order] = model.fit_transform(reduced[order])
        embeddings[seed] = dict(zip(names, np.split(points, bounds), strict=True))
    return embeddings


def _trim(points: np.ndarray, share: float) -> np.ndarray:
    """The deepest share of the points (n, 2) by Mahalanobis depth."""
    keep = max(3, int(np.ceil(share * len(points))))
    if keep >= len(points):
        return points
    centred = points - points.mean(0)
    distance = ((centred @ np.linalg.pinv(centred.T @ centred)) * centred).sum(1)
    return points[np.argpartition(distance, keep - 1)[:keep]]


def _corners(points: np.ndarray, trim: float) -> np.ndarray:
    """Corners (m, 2) of the hull of the deepest points (n, 2), counter-clockwise."""
    try:
        kept = _trim(points, trim)
        return kept[ConvexHull(kept).vertices]
    except QhullError as error:
        raise UserError(
            f"expected at least 3 points that span an area, got {len(points)} on a line; use more images"
        ) from error


def _edges(corners: np.ndarray) -> np.ndarray:
    return np.roll(corners, -1, axis=0) - corners


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _area(corners: np.ndarray) -> float:
    return 0.5 * float(_cross(corners, np.roll(corners, -1, axis=0)).sum())


def _inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Which points (n, 2) lie in or on the convex polygon: (n,)."""
    slack = 1e-9 * np.abs(corners - corners.mean(0)).max() ** 2
    return (_cross(_edges(corners), points[:, None] - corners) >= -slack).all(1)


def _shared_area(first: np.ndarray, second: np.ndarray) -> float:
    """Area two convex polygons share: the hull of the corners inside the other one and of the crossings."""
    along, across = _edges(first)[:, None], _edges(second)[None]
    offset = second[None] - first[:, None]
    parallel = np.abs(_cross(along, across)) < 1e-12 * _area(first)
    slope = np.where(parallel, 1.0, _cross(along, across))
    at, other = _cross(offset, across) / slope, _cross(offset, along) / slope
    meet = ~parallel & (at >= 0) & (at <= 1) & (other >= 0) & (other <= 1)
    crossings = (first[:, None] + at[..., None] * along)[meet]
    region = np.concatenate([first[_inside(first, second)], second[_inside(second, first)], crossings])
    try:
        return float(ConvexHull(region).volume) if len(region) > 2 else 0.0
    except QhullError:  # they touch in a corner or along an edge
        return 0.0


def hull(points: np.ndarray, *, trim: float = 1.0, size: int | None = None, seed: int = 0) -> np.ndarray:
    """Corners (m, 2) of the convex hull of points (n, 2), closed (first = last).

    ``trim`` keeps the deepest share (.9 leaves outliers out); ``size`` draws that many points first, as hulls
    of different n must not be compared.
    """
    points = np.asarray(points, dtype=np.float64)
    if size is not None and size < len(points):
        points = points[np.random.default_rng(seed).choice(len(points), size, replace=False)]
    corners = _corners(points, trim)
    return np.concatenate([corners, corners[:1]])


def _open(corners: np.ndarray) -> np.ndarray:
    """Counter-clockwise corners without the closing one, whatever the caller's order."""
    return _corners(np.asarray(corners, dtype=np.float64), 1.0)


def containment(points: np.ndarray, corners: np.ndarray) -> float:
    """Share of points (n, 2) inside or on the convex polygon with the given corners (m, 2)."""
    return float(_inside(np.asarray(points, dtype=np.float64), _open(corners)).mean())


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Area of the intersection over area of the union of two convex polygons given by corners (m, 2)."""
    first, second = _open(first), _open(second)
    shared = _shared_area(first, second)
    return shared / (_area(first) + _area(second) - shared)


@dataclass(frozen=True)
class HullOverlap:
    """Hull overlap over repeated size-matched draws, each (repeats,).

    ``first_in_second``: share of the first set inside the second's hull; ``second_in_first``; ``iou``;
    ``overlap``: intersection / smaller area. ``size``: points a set in each draw.
    """

    first_in_second: np.ndarray
    second_in_first: np.ndarray
    iou: np.ndarray
    overlap: np.ndarray
    size: int


def _overlaps(a: np.ndarray, b: np.ndarray, trim: float) -> HullOverlap:
    rows = []
    for points_a, points_b in zip(a, b, strict=True):
        hull_a, hull_b = _corners(points_a, trim), _corners(points_b, trim)
        area_a, area_b, shared = _area(hull_a), _area(hull_b), _shared_area(hull_a, hull_b)
        rows.append(
            (
                _inside(points_a, hull_b).mean(),
                _inside(points_b, hull_a).mean(),
                shared / (area_a + area_b - shared),
                shared / min(area_a, area_b),
            )
        )
    return HullOverlap(*np.array(rows).T, size=a.shape[1])


def hull_overlap(
    first: np.ndarray,
    second: np.ndarray,
    *,
    size: int | None = None,
    repeats: int = 200,
    trim: float = 0.9,
    seed: int = 0,
) -> HullOverlap:
    """Overlap of the hulls of two point sets (n, 2), both subsampled to ``size`` (default: the smaller),
    repeatedly."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    size = min(len(first), len(second)) if size is None else size
    if not 3 <= size <= min(len(first), len(second)):
        raise UserError(
            f"expected a size between 3 and {min(len(first), len(second))}, got {size}; match the smaller set"
        )
    generator = np.random.default_rng(seed)
    draws = [
        rows[generator.permuted(np.tile(np.arange(len(rows)), (repeats, 1)), axis=1)[:, :size]]
        for rows in (first, second)
    ]
    return _overlaps(*draws, trim)


def split_half_overlap(
    points: np.ndarray, *, size: int | None = None, repeats: int = 200, trim: float = 0.9, seed: int = 0
) -> HullOverlap:
    """The null of :func:`hull_overlap`: two disjoint random draws of ``size`` (default n // 2) from one set
    (n, 2).

    Compare at the same size: hulls of few points overlap less even under one law.
    """
    points = np.asarray(points, dtype=np.float64)
    size = len(points) // 2 if size is None else size
    if not 3 <= size <= len(points) // 2:
        raise UserError(f"expected a size between 3 and {len(points) // 2}, got {size}; use more images")
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(len(points)), (repeats, 1)), axis=1)
    return _overlaps(points[order[:, :size]], points[order[:, size : 2 * size]], trim)
