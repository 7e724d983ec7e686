"""The feature sets of one network, aligned with identities."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.errors import UserError

SET_NAMES = (
    "private_train",
    "private_held_out",
    "private_erased",
    "held_out_erased",
    "reconstructions",
    "prior_samples",
)
"""Known sets: clean private training images, clean held-out ones, erased training images (several draws
each), erased held-out ones (the null of the nearest-set vote), reconstructions, generator samples before
optimisation."""

SHARED = -1
"""Identity of rows that belong to nobody (prior samples): they are compared with every identity."""


@dataclass(frozen=True)
class FeatureSets:
    """Penultimate features of one network for several image sets.

    ``sets[name] = (features (N, d) float32, identity (N,) int64)``; names from :data:`SET_NAMES`, of which
    ``private_train`` is required. "Other classes" of an identity are the private_train rows of all others.

    Raises :class:`UserError` for unknown names, misaligned shapes, unequal d or values that are not finite.
    """

    sets: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def __post_init__(self) -> None:
        if "private_train" not in self.sets:
            raise UserError(
                f"expected a set private_train, got {sorted(self.sets)}; add the private features"
            )
        clean, width = {}, None
        for name, (features, identity) in self.sets.items():
            if name not in SET_NAMES:
                raise UserError(f"expected a set name among {', '.join(SET_NAMES)}, got {name!r}; rename it")
            features = np.asarray(features, dtype=np.float32)
            identity = np.asarray(identity, dtype=np.int64)
            if features.ndim != 2 or identity.shape != features.shape[:1]:
                raise UserError(
                    f"expected {name} as features (N, d) with identity (N,), got {features.shape} and "
                    f"{identity.shape}; flatten the features and align the identities"
                )
            width = features.shape[1] if width is None else width
            if features.shape[1] != width:
                raise UserError(
                    f"expected {width} features in {name}, got {features.shape[1]}; use one layer"
                )
            if not np.isfinite(features).all():
                raise UserError(f"expected finite features, got NaN or infinity in {name}; check the network")
            clean[name] = (features, identity)
        object.__setattr__(self, "sets", clean)

    def __contains__(self, name: str) -> bool:
        return name in self.sets

    def features(self, name: str, identity: int | None = None) -> np.ndarray:
        """Rows of one set (n, d), of one identity if given; rows marked ``SHARED`` belong to every identity.

        A set that is absent, or has no rows of that identity, gives an empty array (0, d).
        """
        if name not in self.sets:
            return np.empty((0, self.width), dtype=np.float32)
        features, owner = self.sets[name]
        return features if identity is None else features[(owner == identity) | (owner == SHARED)]

    def others(self, identity: int) -> np.ndarray:
        """Private training features of all other identities, (n, d)."""
        features, owner = self.sets["private_train"]
        return features[owner != identity]

    def identities(self, *names: str) -> np.ndarray:
        """Sorted identities that have rows in private_train and in every named set, (K,)."""
        found = np.unique(self.sets["private_train"][1])
        for name in names:
            owner = self.sets[name][1] if name in self.sets else np.empty(0, dtype=np.int64)
            if not (owner == SHARED).any():
                found = np.intersect1d(found, owner)
        return found

    @property
    def width(self) -> int:
        """Number of features d."""
        return self.sets["private_train"][0].shape[1]
