"""Constants that stage keys do not see are pinned: a changed one would make other networks under old keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from lib.attacks.gmi import GmiBudget
from lib.attacks.ppa import PpaBudget
from lib.defences import constants
from lib.training import Recipe

TRAINING = "target_stage and judge_stage in lib/run/targets.py"
ATTACKS = "reconstruction_stage in lib/run/inversion.py"


def defaults(kind: type) -> dict:
    """The default of every field that has one, nested dataclasses as dictionaries."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = dataclasses.asdict(field.default_factory())
    return found


@pytest.mark.parametrize(
    ("values", "digest", "where"),
    [
        (constants("re"), "b7e66f4acf4dab2d", TRAINING),
        (constants("fe"), "dd21a4b81a37420f", TRAINING),
        (defaults(Recipe), "35277037e01a8585", TRAINING),
        (defaults(PpaBudget), "cdc4a9f6ea75e894", ATTACKS),
        (defaults(GmiBudget), "d8207615d33425a7", ATTACKS),
    ],
    ids=["re.yaml", "fe.yaml", "Recipe", "PPA budget", "GMI budget"],
)
def test_constants_outside_the_keys_are_unchanged(values, digest, where):
    found = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    assert found == digest, (
        "a changed constant makes other networks under old keys: bump the stage version "
        f"({where}) and pin the new digest, {found}"
    )
