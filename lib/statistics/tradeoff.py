"""Privacy against utility (metrics specification, section 7).

The paper's ratio changes sign, has a pole and assumes a linear exchange rate; the four measures here
replace it. Natural accuracy is better up, attack accuracy (AttAcc) better down, both fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sklearn

from lib.errors import UserError
from lib.statistics.bootstrap import RESAMPLES, identity_weights, percentile_interval, zero_event_bound
from lib.statistics.curves import frontier_attack, hypervolume, matched_attack
from lib.statistics.inputs import Floats, check_level, finite
from lib.statistics.interval import Interval
from lib.statistics.paired import detectable_difference


@dataclass(frozen=True)
class Points:
    """Models of one family (strengths of a defence, checkpoints of NoDef) on the same identities.

    Args:
        attack: per-identity AttAcc, (P, K), or (S, P, K) for S training seeds.
        accuracy: per-identity natural accuracy, (P, C) or (S, P, C). With C = K the columns must be the
            same people in the same order and are resampled together; with C != K (only some are attacked)
            they are resampled apart.
        photos: (C,) test photos of each identity: accuracy is then micro; None: macro.
    """

    attack: Floats
    accuracy: Floats
    photos: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("attack", "accuracy"):
            array = np.asarray(getattr(self, name), dtype=np.float64)
            array = finite(array[None] if array.ndim == 2 else array, name, ndim=3)
            if array.min() < 0 or array.max() > 1:
                raise UserError(f"{name}: expected fractions in [0, 1], got {array.min()} to {array.max()}")
            object.__setattr__(self, name, array)
        if self.attack.shape[:2] != self.accuracy.shape[:2]:
            raise UserError(
                f"points: expected equally many seeds and models in attack {self.attack.shape[:2]} and "
                f"accuracy {self.accuracy.shape[:2]}; align them"
            )
        photos = np.ones(self.accuracy.shape[2]) if self.photos is None else finite(self.photos, "photos")
        if photos.shape != (self.accuracy.shape[2],) or photos.min() <= 0:
            raise UserError(
                f"photos: expected {self.accuracy.shape[2]} positive counts, got shape {photos.shape}; "
                "count the test photos"
            )
        object.__setattr__(self, "photos", photos)

    @property
    def identities(self) -> int:
        """Number of attacked identities K."""
        return self.attack.shape[2]

    @property
    def chance(self) -> float:
        """Of naming a person by guessing among all C."""
        return 1 / self.accuracy.shape[2]

    def means(self) -> tuple[Floats, Floats]:
        """Natural accuracy (P,) and AttAcc (P,) over seeds and identities."""
        accuracy = self.accuracy @ self.photos / self.photos.sum()
        return accuracy.mean(0), self.attack.mean((0, 2))


@dataclass(frozen=True)
class Matched:
    """``attack``: AttAcc at natural accuracy NoDef - ``loss``; ``gain``: NoDef's AttAcc minus it. Both are
    all NaN if no point of the defence keeps that accuracy ("not reached"); ``reached``: share of resamples
    in which one does, which the limits are conditional on."""

    loss: float
    attack: Interval
    gain: Interval
    reached: float


@dataclass(frozen=True)
class Advantage:
    """``advantage``: AttAcc of NoDef's frontier at the defence's accuracy minus the defence's AttAcc, > 0 in
    favour of the defence; ``frontier``: that frontier value; ``accuracy``: the defence's natural accuracy;
    ``extrapolated``: it is less accurate than any NoDef checkpoint, so that F there is a guess (above them all F at
    NoDef's best serves, which a still more accurate NoDef would not undercut); ``detectable``: the true advantage that
    would be found with 80 % power."""

    advantage: Interval
    frontier: float
    accuracy: float
    extrapolated: bool
    detectable: float


def advantage_over_frontier(
    defence: Points,
    frontier: Points,
    *,
    chance: float | None,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> list[Advantage]:
    """Advantage of each defence point over NoDef's own frontier: 0 = no better than a weaker model.

    Identities are resampled for both jointly, and with them natural accuracies and the fit; training seeds,
    where there are several, are resampled for each apart. Where no resample differs (no attack reaches
    anybody, say) the interval is the value plus or minus :func:`lib.statistics.zero_event_bound`.

    Args:
        defence: P models. frontier: NoDef checkpoints (five or so). chance: see :func:`frontier_attack`.

    Raises:
        UserError: if the two have different identities.
    """
    check_level(level, resamples)
    rng = np.random.default_rng(seed)
    (accuracy, attack), (known_accuracy, known_attack) = _resample([defence, frontier], resamples, rng)
    # The inputs are finite by now; scikit-learn's checks would take most of the time of 2000 small fits.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        drawn = zip(known_accuracy, known_attack, accuracy, strict=True)
        samples = np.stack([frontier_attack(x, y, at, chance=chance) for x, y, at in drawn])
    samples -= attack
    here, there = defence.means(), frontier.means()
    fitted = frontier_attack(*there, here[0], chance=chance)
    result = []
    for i, at in enumerate(here[0]):
        interval = _advantage_interval(fitted[i] - here[1][i], samples[:, i], defence.identities, level)
        outside = at < there[0].min()
        detectable = detectable_difference(interval.standard_error(level=level), level=level)
        result.append(Advantage(interval, float(fitted[i]), float(at), bool(outside), detectable))
    return result


def matched_loss(
    defence: Points,
    nodef: Points,
    *,
    seed: int,
    losses: Sequence[float] = (0.0, 0.01, 0.03, 0.05),
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> list[Matched]:
    """AttAcc of a defence's sweep at NoDef's natural accuracy minus each loss (fractions: 0.01 = one point).

    The best qualifying member counts: with NoDef among them the gain over it is never negative, whatever the sweep.

    Args:
        defence: the strength sweep (include NoDef as strength 0 if it counts). nodef: one model.

    Raises:
        UserError: if ``nodef`` is not one model or the identities differ.
    """
    check_level(level, resamples)
    if nodef.attack.shape[1] != 1:
        raise UserError(
            f"matched loss: expected one NoDef model, got {nodef.attack.shape[1]}; pass the headline one"
        )
    drawn = _resample([defence, nodef], resamples, np.random.default_rng(seed))
    (accuracy, attack), (base_accuracy, base_attack) = drawn
    here, (base, base_att) = defence.means(), (float(part[0]) for part in nodef.means())
    result = []
    for loss in losses:
        value = matched_attack(*here, base - loss)
        targets = base_accuracy[:, 0] - loss
        samples = np.array([matched_attack(*row) for row in zip(accuracy, attack, targets, strict=True)])
        reached = float(np.isfinite(samples).mean())
        # Limits of a value that does not exist would be read as if it did.
        kept = samples if np.isfinite(value) else np.full_like(samples, np.nan)
        size = defence.identities
        result.append(
            Matched(
                float(loss),
                percentile_interval(value, kept, n=size, level=level),
                percentile_interval(base_att - value, base_attack[:, 0] - kept, n=size, level=level),
                reached,
            )
        )
    return result


def hypervolume_interval(
    points: Points,
    *,
    reference: tuple[float, float],
    ideal: tuple[float, float] | None = None,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """:func:`hypervolume` of a sweep, bootstrapped over identities and seeds; its corners stay fixed."""
    check_level(level, resamples)
    ((accuracy, attack),) = _resample([points], resamples, np.random.default_rng(seed))
    value = float(hypervolume(*points.means(), reference=reference, ideal=ideal))
    samples = hypervolume(accuracy, attack, reference=reference, ideal=ideal)
    return percentile_interval(value, samples, n=points.identities, level=level)


def dominance_probability(first: Points, second: Points, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """(P, Q) share of paired resamples in which model i of ``first`` dominates model j of ``second``:
    no worse in accuracy and AttAcc and better in one."""
    drawn = _resample([first, second], resamples, np.random.default_rng(seed))
    (accuracy, attack), (other_accuracy, other_attack) = drawn
    gain = accuracy[:, :, None] - other_accuracy[:, None]
    cut = other_attack[:, None] - attack[:, :, None]
    return ((gain >= 0) & (cut >= 0) & ((gain > 0) | (cut > 0))).mean(0)


def _advantage_interval(value: float, samples: Floats, people: int, level: float) -> Interval:
    if people > 1 and np.ptp(samples) < 1e-12:
        bound = zero_event_bound(people, level=level)
        return Interval(float(value), max(-1.0, value - bound), min(1.0, value + bound), people)
    return percentile_interval(value, samples, n=people, level=level)


def _resample(
    families: list[Points], resamples: int, rng: np.random.Generator
) -> list[tuple[Floats, Floats]]:
    """Accuracy and AttAcc (B, P) of each family under common draws of people and its own draws of seeds; a model of
    several families has the draws of the first."""
    people, owners = families[0].identities, families[0].accuracy.shape[2]
    for other in families[1:]:
        if (other.identities, other.accuracy.shape[2]) != (people, owners):
            raise UserError(
                f"points: expected the same {people} attacked and {owners} private identities, got "
                f"{other.identities} and {other.accuracy.shape[2]}; attack and test the same people"
            )
        if not np.array_equal(other.photos, families[0].photos):
            raise UserError("points: expected the same test photos of each identity; use one test split")
    weights = identity_weights(people, resamples, rng)
    owner_weights = weights if owners == people else identity_weights(owners, resamples, rng)
    result, known = [], {}
    for family in families:
        counted = owner_weights * family.photos
        seeds = len(family.attack)
        own = identity_weights(seeds, resamples, rng) / seeds
        models = [
            family.attack[:, p].tobytes() + family.accuracy[:, p].tobytes()
            for p in range(family.attack.shape[1])
        ]
        drawn_seeds = np.stack([known.setdefault(model, own) for model in models], 2)
        accuracy = np.einsum("bc,spc->bsp", counted, family.accuracy) / counted.sum(1)[:, None, None]
        attack = np.einsum("bk,spk->bsp", weights, family.attack) / people
        result.append(tuple((drawn_seeds * part).sum(1) for part in (accuracy, attack)))
    return result
