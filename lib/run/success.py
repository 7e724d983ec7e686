"""What the judges say of an attack, per identity: the raw material of paired comparisons between attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lib import statistics
from lib.run import gallery, inversion, measures
from lib.run.gallery import Gallery
from lib.run.inversion import Attack
from lib.statistics import Interval, PairedComparison

VERIFIER = "verifier"


@dataclass(frozen=True)
class Outcome:
    """One attack run, as every judge sees what it kept.

    Attributes:
        hits: judge (every evaluator, ``panel_majority``, ``panel_unanimous``, ``verifier``) to (K, m) bool: which
            kept reconstructions it takes for the person; people in ascending order.
        before: the same of the prior samples that they began as.
        people: (K,) the identities attacked, ascending.
        cost: of :class:`lib.attacks.Reconstructions`, per person.
    """

    attack: Attack
    hits: dict[str, Tensor]
    before: dict[str, Tensor]
    people: np.ndarray
    cost: dict[str, float]

    @property
    def passes(self) -> float:
        return passes_of(self.cost)

    def per_person(self, judge: str = "main") -> np.ndarray:
        """(K,) share of each person's kept reconstructions."""
        return _shares(self.hits[judge])

    def per_person_before(self, judge: str = "main") -> np.ndarray:
        """(K,) share of the prior samples they began as."""
        return _shares(self.before[judge])


def measure(attacks: Sequence[Attack]) -> list[Outcome]:
    """Outcomes of attacks on one setup, in their order; each is read from the store once."""
    enrolled = gallery.of_setup(attacks[0].setup) if attacks else None
    return [_outcome(attack, enrolled) for attack in attacks]


def _outcome(attack: Attack, enrolled: Gallery) -> Outcome:
    made, judged = inversion.reconstruct(attack), inversion.judge_reconstructions(attack)
    kept = measures.kept_index(made.selected, made.latents.shape[1])
    hits, before = (
        _verdicts(attack, measures.take(judged[what], kept), enrolled, made.selected.shape)
        for what in ("reconstructions", "prior_samples")
    )
    return Outcome(attack, hits, before, made.labels.numpy(), made.cost)


def _verdicts(
    attack: Attack, seen: inversion.Judged, enrolled: Gallery, shape: tuple[int, ...]
) -> dict[str, Tensor]:
    found = {role: hits["top1"] for role, hits in measures.accuracy_hits(attack.setup, seen).items()}
    found[VERIFIER] = enrolled.verdicts(seen.features[VERIFIER], seen.labels)["verifier_match"]
    return {judge: hits.view(shape) for judge, hits in found.items()}


def _shares(hits: Tensor) -> np.ndarray:
    return hits.double().mean(1).numpy()


def passes_of(cost: dict[str, float]) -> float:
    """Images through the target per person, forward and backward alike."""
    return cost["target_forward"] + cost["target_backward"]


# --- over the attack seeds of one model and attack -----------------------------------------------------


def over_seeds(outcomes: Sequence[Outcome], judge: str = "main") -> np.ndarray:
    """(K,) mean over attack seeds."""
    return np.stack([outcome.per_person(judge) for outcome in outcomes]).mean(0)


def mean(outcomes: Sequence[Outcome], judge: str = "main") -> Interval:
    """Over people, attack seeds averaged before."""
    values = over_seeds(outcomes, judge)
    return statistics.clustered_mean(values, np.arange(len(values)), seed=measures.SEED)


def compare(first: Sequence[Outcome], second: Sequence[Outcome], judge: str = "main") -> PairedComparison:
    """First minus second, paired by person, over the people that both attack (one may attack fewer)."""
    both = [np.isin(a[0].people, b[0].people) for a, b in ((first, second), (second, first))]
    values = (over_seeds(side, judge)[kept] for side, kept in zip((first, second), both, strict=True))
    return statistics.compare_paired(*values, seed=measures.SEED)


def gain(outcomes: Sequence[Outcome], judge: str = "main") -> Interval:
    """Over the prior samples that they began as, paired by person."""
    before = np.stack([outcome.per_person_before(judge) for outcome in outcomes]).mean(0)
    return statistics.compare_paired(over_seeds(outcomes, judge), before, seed=measures.SEED).difference


def passes(outcomes: Sequence[Outcome]) -> float:
    """Images through the target per person; mean over seeds."""
    return float(np.mean([outcome.passes for outcome in outcomes]))
