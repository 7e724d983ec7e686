"""Do the private classes stay separated? Class means from training images, scores on held-out clean ones.

All measures are free of the feature scale. Raw separation grows with training length: compare models at
matched training accuracy too.
"""

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics import silhouette_samples

from lib.errors import UserError


def class_means(features: np.ndarray, identity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted identities (K,) and their mean features (K, d) from features (N, d)."""
    classes, index, counts = np.unique(identity, return_inverse=True, return_counts=True)
    means = np.zeros((len(classes), np.shape(features)[1]))
    np.add.at(means, index, np.asarray(features, dtype=np.float64))
    return classes, means / counts[:, None]


def _rows(identity: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Index of each identity in the sorted classes."""
    index = np.searchsorted(classes, identity)
    if len(classes) < 2:
        raise UserError(f"expected at least 2 classes, got {len(classes)}; separation needs a rival")
    if (index >= len(classes)).any() or (classes[np.minimum(index, len(classes) - 1)] != identity).any():
        raise UserError("expected held-out identities among the training ones, got a new one; align the sets")
    return index


def silhouette(features: np.ndarray, identity: np.ndarray, *, metric: str = "euclidean") -> np.ndarray:
    """Silhouette (b - a) / max(a, b) of each row in [-1, 1], up is better: (N,). Low for many classes."""
    return silhouette_samples(np.asarray(features, dtype=np.float64), identity, metric=metric)


def _around(
    features: np.ndarray, identity: np.ndarray, training: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The class of each row among those present, and their means (K, d): those of ``training`` (classes, means) if
    given, else the rows' own."""
    shown, index = np.unique(identity, return_inverse=True)
    classes, means = training or class_means(features, identity)
    return index, means[_rows(shown, classes)]


def davies_bouldin(
    features: np.ndarray, identity: np.ndarray, *, training: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """max over l of (s_k + s_l) / ||mu_k - mu_l|| for each identity (K,), down is better; the mean is the
    index. ``training``: :func:`class_means` of the training rows, else mu are the rows' own."""
    index, means = _around(features, identity, training)
    spread = np.bincount(index, np.linalg.norm(features - means[index], axis=1)) / np.bincount(index)
    between = cdist(means, means)
    np.fill_diagonal(between, np.inf)
    return ((spread[:, None] + spread) / between).max(1)


def fisher_ratio(
    features: np.ndarray, identity: np.ndarray, *, training: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """||mu_k - mu||^2 / tr S_w for each identity (K,), up is better; the mean is tr S_b / tr S_w.

    Classes weigh equally; S_w is the mean of the class covariances around ``training``
    (:func:`class_means` of the training rows), else around the rows' own means, where a class needs 2 rows.
    """
    index, means = _around(features, identity, training)
    squares = np.bincount(index, ((features - means[index]) ** 2).sum(1))
    freedom = np.bincount(index) - (training is None)
    if not freedom.any():
        raise UserError("expected at least 2 rows in some class, got 1 in each; use more held-out images")
    within = (squares[freedom > 0] / freedom[freedom > 0]).mean()
    return ((means - means.mean(0)) ** 2).sum(1) / within


def ncm_margin(
    features: np.ndarray, identity: np.ndarray, *, classes: np.ndarray, means: np.ndarray
) -> np.ndarray:
    """(min over l != y of ||f - mu_l|| - ||f - mu_y||) / mean distance between means, for each row: (N,).

    Positive where the nearest class mean is the right one.
    """
    index = _rows(np.asarray(identity), classes)
    distance = cdist(np.asarray(features, dtype=np.float64), means)
    rows = np.arange(len(index))
    own = distance[rows, index]
    distance[rows, index] = np.inf
    return (distance.min(1) - own) / pdist(means).mean()


def ncm_accuracy(
    features: np.ndarray, identity: np.ndarray, *, classes: np.ndarray, means: np.ndarray
) -> float:
    """Share of rows whose nearest class mean is their own."""
    return float((ncm_margin(features, identity, classes=classes, means=means) > 0).mean())


def logit_margin(logits: np.ndarray, labels: np.ndarray, *, weight: np.ndarray) -> np.ndarray:
    """Signed distance in feature space to the boundary of the own class region, for each row: (N,).

    min over l != y of (z_y - z_l) / ||w_y - w_l|| with logits (N, C), labels (N,) and the head's weight (C,
    d): positive where the classifier is right. In feature units; divide by the mean distance between class
    means to compare two networks.
    """
    logits, weight = np.asarray(logits, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    labels = np.asarray(labels)
    if logits.shape[1] != len(weight) or labels.min() < 0 or labels.max() >= len(weight):
        raise UserError(
            f"expected logits, labels and weight of one head, got {logits.shape[1]} logits, labels up to "
            f"{labels.max()} and {len(weight)} weight rows; take them from one classifier"
        )
    rows = np.arange(len(labels))
    gap = logits[rows, labels][:, None] - logits
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = gap / cdist(weight, weight)[labels]
    distance[rows, labels] = np.inf
    return distance.min(1)


def neighbour_ratio(
    features: np.ndarray, identity: np.ndarray, *, references: np.ndarray, reference_identity: np.ndarray
) -> np.ndarray:
    """Distance to the nearest reference of the same class / of another class, for each row: (N,). Below 1 is
    good.

    Features (N, d) held out, references (M, d) private training features.
    """
    _rows(np.asarray(identity), np.unique(reference_identity))
    distance = cdist(np.asarray(features, dtype=np.float64), np.asarray(references, dtype=np.float64))
    same = np.asarray(identity)[:, None] == np.asarray(reference_identity)[None]
    intra = np.where(same, distance, np.inf).min(1)
    return intra / np.where(same, np.inf, distance).min(1)


def separation_table(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    defence: str,
    logits: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> pd.DataFrame:
    """All separation measures of one model per identity: columns identity, defence, measure, value.

    ``train`` and ``test`` are (features, identity). With the logits of the test rows and the head's
    ``weight`` also ``logit_margin``, in units of the mean distance between class means; no ``silhouette``
    where nobody has two test rows. The mean over identities is the measure.
    """
    features, identity = np.asarray(test[0], dtype=np.float64), np.asarray(test[1])
    classes, means = class_means(*train)
    repeated = len(np.unique(identity)) < len(identity)
    per_row = {
        **({"silhouette": silhouette(features, identity)} if repeated else {}),
        "ncm_margin": ncm_margin(features, identity, classes=classes, means=means),
        "neighbour_ratio": neighbour_ratio(
            features, identity, references=train[0], reference_identity=train[1]
        ),
    }
    per_row["ncm_accuracy"] = (per_row["ncm_margin"] > 0).astype(float)
    if logits is not None and weight is not None:
        per_row["logit_margin"] = logit_margin(logits, identity, weight=weight) / pdist(means).mean()
    shown, index, counts = np.unique(identity, return_inverse=True, return_counts=True)
    per_identity = {name: np.bincount(index, values) / counts for name, values in per_row.items()}
    per_identity["davies_bouldin"] = davies_bouldin(features, identity, training=(classes, means))
    per_identity["fisher_ratio"] = fisher_ratio(features, identity, training=(classes, means))
    return pd.concat(
        [
            pd.DataFrame({"identity": shown, "defence": defence, "measure": name, "value": values})
            for name, values in per_identity.items()
        ],
        ignore_index=True,
    )
