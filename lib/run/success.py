"""What a judge says of an attack, per identity: the raw material of paired comparisons between attacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lib import evaluation, statistics
from lib.run import inversion, measures
from lib.run.inversion import Attack
from lib.statistics import Interval, PairedComparison

JUDGES = ("main", "panel_majority", "verifier")


def right(attack: Attack, judge: str = "main", what: str = "reconstructions") -> tuple[Tensor, Tensor]:
    """(N,) bool and (N,) labels: which of the kept ``reconstructions``, or of the ``prior_samples`` they began
    as, an evaluator takes for the person, or the ``verifier`` matches with them."""
    made = inversion.reconstruct(attack)
    kept = measures.kept_index(made.selected, made.latents.shape[1])
    seen = measures.take(inversion.judge_reconstructions(attack)[what], kept)
    if judge == "verifier":
        gallery = measures.gallery(attack.setup)
        return gallery.verdicts(seen.features["verifier"], seen.labels)["verifier_match"], seen.labels
    return measures.accuracy_hits(attack.setup, seen)[judge]["top1"], seen.labels


def per_person(attack: Attack, judge: str = "main", what: str = "reconstructions") -> np.ndarray:
    """(K,) share of each person's kept reconstructions, people in ascending order."""
    hits, labels = right(attack, judge, what)
    return evaluation.identity_means(hits.double(), labels).mean.numpy()


def over_seeds(attacks: Sequence[Attack], judge: str = "main", what: str = "reconstructions") -> np.ndarray:
    """(K,) mean over the attack seeds of one model and attack."""
    return np.stack([per_person(attack, judge, what) for attack in attacks]).mean(0)


def mean(attacks: Sequence[Attack], judge: str = "main", what: str = "reconstructions") -> Interval:
    """Over people, attack seeds averaged before."""
    values = over_seeds(attacks, judge, what)
    return statistics.clustered_mean(values, np.arange(len(values)), seed=measures.SEED)


def compare(first: Sequence[Attack], second: Sequence[Attack], judge: str = "main") -> PairedComparison:
    """First minus second, paired by person."""
    return statistics.compare_paired(over_seeds(first, judge), over_seeds(second, judge), seed=measures.SEED)


def gain(attacks: Sequence[Attack], judge: str = "main") -> Interval:
    """Over the prior samples that they began as, paired by person."""
    after, before = over_seeds(attacks, judge), over_seeds(attacks, judge, "prior_samples")
    return statistics.compare_paired(after, before, seed=measures.SEED).difference


def passes(attacks: Sequence[Attack]) -> float:
    """Images through the target per person, forward and backward alike; mean over seeds."""
    costs = [inversion.reconstruct(attack).cost for attack in attacks]
    return float(np.mean([cost["target_forward"] + cost["target_backward"] for cost in costs]))
