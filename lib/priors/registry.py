"""Which class a stored prior belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lib.errors import UserError
from lib.priors.eigenfaces import Eigenfaces
from lib.priors.interface import Prior
from lib.priors.styleprior import StylePrior

PRIORS: dict[str, type[Prior]] = {kind.name: kind for kind in (Eigenfaces, StylePrior)}


def prior_from_state(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Prior:
    """The prior that ``prior.state()`` and ``prior.meta()`` describe, whatever its kind.

    Raises:
        UserError: an unknown kind, or tensors that do not fit.
    """
    kind = meta.get("name")
    if kind not in PRIORS:
        raise UserError(f"prior: expected one of {', '.join(PRIORS)}, got {kind!r}; this file holds no prior")
    return PRIORS[kind].from_state(tensors, meta)
