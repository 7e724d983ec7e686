"""What was reconstructed, per image and per identity. Intervals come later, from :mod:`lib.statistics`."""

from lib.evaluation.attack_accuracy import (
    IdentityMeans,
    PanelVote,
    corrected_accuracy,
    hits,
    identity_means,
    pairwise_kappa,
    panel_vote,
)
from lib.evaluation.frechet import frechet_distance, frechet_from_moments, frechet_null
from lib.evaluation.judge import judge
from lib.evaluation.kid import KernelDistance, kernel, kernel_distance, squared_mmd
from lib.evaluation.knn_distance import (
    KnnDistances,
    distance_to_classes,
    knn_distances,
    nearest_same_class,
    scaled_leakage,
    stranger_distance,
)
from lib.evaluation.prdc import Prdc, prdc, prdc_per_class
from lib.evaluation.references import balanced_references
from lib.evaluation.verification import (
    Scores,
    gallery_scores,
    genuine_and_impostor,
    matches,
    proxy_false_positives,
    rank_one,
    threshold_at,
)

__all__ = [
    "IdentityMeans",
    "KernelDistance",
    "KnnDistances",
    "PanelVote",
    "Prdc",
    "Scores",
    "balanced_references",
    "corrected_accuracy",
    "distance_to_classes",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_null",
    "gallery_scores",
    "genuine_and_impostor",
    "hits",
    "identity_means",
    "judge",
    "kernel",
    "kernel_distance",
    "knn_distances",
    "matches",
    "nearest_same_class",
    "pairwise_kappa",
    "panel_vote",
    "prdc",
    "prdc_per_class",
    "proxy_false_positives",
    "rank_one",
    "scaled_leakage",
    "squared_mmd",
    "stranger_distance",
    "threshold_at",
]
