"""Constants that stage keys do not see are pinned: a changed one would make other networks under old keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from lib import attacks
from lib.defences import constants
from lib.training import Recipe
from lib.training.distil import Student

TRAINING = "target_stage and judge_stage in lib/run/targets.py"
ATTACKS = "reconstruction_stage in lib/run/inversion.py"
BUDGETS = {
    "brep": "216002d3a1e3fd7f",
    "gmi": "d8207615d33425a7",
    "ifgmi": "1225d40c16b7baf9",
    "kedmi": "43ab2a2b27d0770b",
    "lomma_gmi": "92c0f62296af9cb9",
    "lomma_kedmi": "7d9de980acbccfc3",
    "mirror": "527d4cfccb8ab037",
    "mirror_genetic": "37ed3a95d490a8a5",
    "plgmi": "e882bd5eed9d2dc6",
    "ppa": "cdc4a9f6ea75e894",
    "rlb": "f77167c13ae8e0b6",
}


def test_every_attack_is_pinned():
    assert set(BUDGETS) == set(attacks.names())


def defaults(kind: type) -> dict:
    """The default of every field that has one, nested dataclasses as dictionaries."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            found[field.name] = dataclasses.asdict(made) if dataclasses.is_dataclass(made) else made
    return found


@pytest.mark.parametrize(
    ("values", "digest", "where"),
    [
        (constants("re"), "b7e66f4acf4dab2d", TRAINING),
        (constants("fe"), "dd21a4b81a37420f", TRAINING),
        (defaults(Recipe), "35277037e01a8585", TRAINING),
        (defaults(Student), "75d7d1421dbbaa2b", "stages in lib/run/students.py"),
        *((defaults(attacks.get(name).Budget), digest, ATTACKS) for name, digest in BUDGETS.items()),
    ],
    ids=["re.yaml", "fe.yaml", "Recipe", "Student", *(f"{name} budget" for name in BUDGETS)],
)
def test_constants_outside_the_keys_are_unchanged(values, digest, where):
    found = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    assert found == digest, (
        "a changed constant makes other networks under old keys: bump the stage version "
        f"({where}) and pin the new digest, {found}"
    )
