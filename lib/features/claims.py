"""Do reconstructions move away from private and towards erased features? Per identity, before any interval.

Every function returns values aligned by identity; lib.statistics puts intervals on them, clustered by
identity.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from lib.errors import UserError
from lib.features.distances import (
    energy_distance,
    knn_distance,
    median_bandwidth,
    mmd2,
    mmd_statistics,
    nearest_set_vote,
    permutation_p,
    squared_shift,
    within_scale,
    within_whitening,
)
from lib.features.sets import FeatureSets

MEASURES = ("squared_shift", "squared_mahalanobis_shift", "mmd2", "energy_distance", "knn_distance")
"""Distances of :func:`distance_table`, all scale-free: shifts, squared, and energy distance in units of the
private within-class spread, KNN distance as share of the mean squared distance within a private class."""

PAIRS = (
    ("reconstructions", "private_train"),
    ("reconstructions", "private_erased"),
    ("reconstructions", "private_held_out"),
    ("private_held_out", "private_train"),
    ("private_held_out", "private_erased"),
    ("private_erased", "private_train"),
    ("held_out_erased", "private_train"),
    ("held_out_erased", "private_erased"),
    ("prior_samples", "private_train"),
    ("prior_samples", "private_erased"),
)
REPEATED = {"private_erased": "private_train", "held_out_erased": "private_held_out"}
"""Sets that may hold several draws of every photo of another, draw by draw. Draws of one photo lie near each other: as
rows of one set they would make it look denser, and nearer to others, than its law is, so a measure is computed with one
draw a photo and averaged over the draws."""
VOTERS = ("reconstructions", "private_held_out", "held_out_erased", "prior_samples")


def pair_name(query: str, reference: str) -> str:
    """Name of a pair of sets in the tables, ``query->reference`` (the KNN distance has a direction)."""
    return f"{query}->{reference}"


def distance_table(sets: FeatureSets, *, defence: str) -> pd.DataFrame:
    """All distances of one model: columns identity, defence, pair, measure, value.

    Pairs are ``query->reference``; rows exist where both sets have that identity (2 rows at least for MMD and
    energy distance). Measures: :data:`MEASURES` for each pair; ``knn_distance`` of
    ``other_classes->private_train``; ``nearest_set_vote`` of ``query->erased_or_private`` (share nearer to
    erased), whose null is the held-out queries. Means over the erasing draws (:data:`REPEATED`); shifts are of the
    means of every photo's draws. The number of references is that of the smaller of private_train and a draw of
    private_erased of the identity everywhere; one MMD bandwidth per identity. Identities without reconstructions are
    left out.
    """
    names = ("reconstructions",) if "reconstructions" in sets else ()
    identities = sets.identities(*names)
    if not len(identities):
        raise UserError("expected reconstructions of some private identity, got none; align the identities")
    scale = within_scale(*sets.sets["private_train"])
    if scale <= 0:
        raise UserError(
            "expected private features that vary within classes, got a spread of 0; check the network"
        )
    whitening = within_whitening(*sets.sets["private_train"])
    squared_unit = 2 * sets.width * scale**2
    rows: list[tuple[int, str, str, float]] = []
    for identity in identities.tolist():
        here = {name: sets.features(name, identity) for name in sets.sets}
        here = {name: features for name, features in here.items() if len(features)}
        draws = {
            name: _draws(features, len(here.get(REPEATED.get(name, name), features)))
            for name, features in here.items()
        }
        private, erased = here["private_train"], draws.get("private_erased")
        references = len(private) if erased is None else min(len(private), len(erased[0]))
        bandwidth = median_bandwidth(*(parts[0][:references] for parts in draws.values()))
        nearest = partial(_nearest, references=references, unit=squared_unit)

        for query, reference in PAIRS:
            if query not in here or reference not in here:
                continue
            pair = draws[query], draws[reference]
            means = [np.mean(parts, 0) for parts in pair]
            values = {
                "squared_shift": squared_shift(*means, scale=scale),
                "squared_mahalanobis_shift": squared_shift(*means, whitening=whitening),
                "knn_distance": _over_draws(nearest, *pair),
            }
            if min(len(part) for parts in pair for part in parts) > 1:
                values["mmd2"] = _over_draws(partial(mmd2, bandwidth=bandwidth), *pair)
                values["energy_distance"] = _over_draws(partial(energy_distance, scale=scale), *pair)
            rows += [(identity, pair_name(query, reference), name, value) for name, value in values.items()]
        others = sets.others(identity)
        if len(others):
            name = pair_name("other_classes", "private_train")
            rows.append((identity, name, "knn_distance", nearest(others, private)))
        for query in VOTERS if erased is not None else ():
            if query in here:
                value = _over_draws(nearest_set_vote, draws[query], erased, [private])
                rows.append((identity, pair_name(query, "erased_or_private"), "nearest_set_vote", value))
    table = pd.DataFrame(rows, columns=["identity", "pair", "measure", "value"])
    table.insert(1, "defence", defence)
    return table


def _draws(features: np.ndarray, photos: int) -> list[np.ndarray]:
    """Of rows (draws * photos, d), draw by draw, every draw (photos, d); one part where they are no whole draws."""
    draws, rest = divmod(len(features), photos)
    return [features] if rest else list(features.reshape(draws, photos, -1))


def _over_draws(measure: Callable[..., float | np.ndarray], *sets: list[np.ndarray]) -> float:
    """Mean of a measure over the draws of the sets; a set of one draw is compared with all of them."""
    draws = max(map(len, sets))
    return float(
        np.mean([np.mean(measure(*(parts[i % len(parts)] for parts in sets))) for i in range(draws)])
    )


def _nearest(queries: np.ndarray, photos: np.ndarray, *, references: int, unit: float) -> float:
    """Mean distance to the nearest of equally many references, or of all where there are fewer."""
    return knn_distance(queries, photos, size=min(references, len(photos))).mean() / unit


def per_identity(table: pd.DataFrame, *, pair: str, measure: str) -> pd.Series:
    """One measure of one pair of one model, indexed by identity. Raises where the table has none of it."""
    chosen = table[(table["pair"] == pair) & (table["measure"] == measure)]
    if chosen.empty:
        raise UserError(
            f"expected {measure} of {pair} in the distance table, got none; add these feature sets"
        )
    if chosen["identity"].duplicated().any():
        raise UserError(
            f"expected one model in the table, got {chosen['defence'].unique()}; select one first"
        )
    return chosen.set_index("identity")["value"].sort_index()


def claim_differences(table: pd.DataFrame) -> pd.DataFrame:
    """The claim, per identity: columns identity, defence, measure, erased, private, difference.

    ``difference`` = D(reconstructions, erased) - D(reconstructions, private) for each of :data:`MEASURES`:
    negative where reconstructions lie nearer to erased than to private features. For ``nearest_set_vote`` the
    two columns are the vote and the middle between those of unseen clean and unseen erased photos, which are its scale:
    positive where reconstructions are more like the erased ones. (A half is no null: unseen photos are farther from
    either set than its own, so that those erased may vote for "clean".)
    """
    parts = []
    for defence, model in table.groupby("defence", sort=False):
        for measure in MEASURES:
            columns = {
                "erased": per_identity(model, pair="reconstructions->private_erased", measure=measure),
                "private": per_identity(model, pair="reconstructions->private_train", measure=measure),
            }
            parts.append(pd.DataFrame(columns).dropna().assign(defence=defence, measure=measure))
        vote, clean, erased = (
            per_identity(model, pair=pair_name(query, "erased_or_private"), measure="nearest_set_vote")
            for query in ("reconstructions", "private_held_out", "held_out_erased")
        )
        votes = pd.DataFrame({"erased": vote, "private": (clean + erased) / 2}).dropna()
        parts.append(votes.assign(defence=defence, measure="nearest_set_vote"))
    result = pd.concat(parts).rename_axis("identity").reset_index()
    result["difference"] = result["erased"] - result["private"]
    return result[["identity", "defence", "measure", "erased", "private", "difference"]]


def relative_distance(table: pd.DataFrame, *, measure: str = "knn_distance") -> pd.DataFrame:
    """D(reconstructions, private) against D(held-out, private): identity, defence, value, reference, ratio.

    Ratio 1 = as near as an unseen photo of the person. Comparable between models: "away from private" means a
    larger ratio under the defence than under NoDef on the same identities. NaN where the reference is not
    positive (the unbiased measures may be).
    """
    parts = []
    for defence, model in table.groupby("defence", sort=False):
        columns = {
            "value": per_identity(model, pair="reconstructions->private_train", measure=measure),
            "reference": per_identity(model, pair="private_held_out->private_train", measure=measure),
        }
        parts.append(pd.DataFrame(columns).dropna().assign(defence=defence))
    result = pd.concat(parts).rename_axis("identity").reset_index()
    result["ratio"] = result["value"] / result["reference"].where(result["reference"] > 0)
    return result[["identity", "defence", "value", "reference", "ratio"]]


def scaled_leakage(table: pd.DataFrame) -> pd.Series:
    """(d_other - d) / (d_other - d_test) per identity for one model, from KNN distances to size-matched
    references.

    d: reconstructions to the person's private images; d_test: unseen photos to the same; d_other: other
    private people's images to the same. 0 = a stranger, 1 = an unseen real photo. NaN where d_other <=
    d_test.
    """
    d = per_identity(table, pair="reconstructions->private_train", measure="knn_distance")
    test = per_identity(table, pair="private_held_out->private_train", measure="knn_distance")
    other = per_identity(table, pair="other_classes->private_train", measure="knn_distance")
    return (other - d) / (other - test).where(other > test)


def mmd_by_identity(
    sets: FeatureSets, *, first: str, second: str, permutations: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean over identities of the squared MMD between two sets, and its p value by permutation within
    identities.

    Tests whether the two sets have one law for every person. Erasing draws of one photo count as separate
    rows: for a valid p value pass one draw per photo.
    """
    generator = np.random.default_rng(seed)
    values = [
        mmd_statistics(a, b, bandwidth=None, permutations=permutations, generator=generator)
        for identity in sets.identities(first, second).tolist()
        for a, b in [(sets.features(first, identity), sets.features(second, identity))]
        if min(len(a), len(b)) > 1
    ]
    if not values:
        raise UserError(f"expected identities with 2 rows in {first} and {second}, got none; use more images")
    mean = np.mean(values, axis=0)
    return float(mean[0]), permutation_p(mean)
