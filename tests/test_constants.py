"""Constants that stage keys do not see are pinned: a changed one would make other networks under old keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from lib import attacks
from lib.defences import constants, names
from lib.training import Recipe
from lib.training.distil import Student

TRAINING = "target_stage and judge_stage in lib/stages/targets.py"
ATTACKS = "reconstruction_stage in lib/stages/inversion.py"
DEFENCES = {
    "advtrain": "096cf01853d50fca",
    "atat": "a2c2e216b081a2a1",
    "bido_coco": "ce1a6dcc45185d18",
    "bido_hsic": "e6dc5b9f274e4c75",
    "crop": "4eae4c6938feebb5",
    "cutout": "34726a875501f371",
    "dpsgd": "416060f401e0ba81",
    "fe": "dd21a4b81a37420f",
    "groupnorm": "2d4e228896a4484c",
    "ls": "1b4ab8c46236e5ed",
    "mid": "810090915d3af1fc",
    "negls": "894f003efda33c6e",
    "re": "7dd9b2e43330972c",
    "rolss": "8cc8326438598a17",
    "ssf": "8cc8326438598a17",
    "tldmi": "56ba00b03c7680e4",
    "trapmid": "9eb57a5ab8017581",
    "tts": "dbfe20bb3a883677",
}
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
    "ppdg": "edd444f94197585b",
    "rlb": "f77167c13ae8e0b6",
}


def test_every_attack_is_pinned():
    assert set(BUDGETS) <= set(attacks.names()), "one's own may be beside them"


def test_every_defence_with_constants_is_pinned():
    assert set(DEFENCES) <= {name for name in names() if constants(name)}, "one's own may be beside them"


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
        *((constants(name), digest, TRAINING) for name, digest in DEFENCES.items()),
        (defaults(Recipe), "bce282e139c5f4fd", TRAINING),
        (defaults(Student), "75d7d1421dbbaa2b", "stages in lib/stages/students.py"),
        *((defaults(attacks.get(name).Budget), digest, ATTACKS) for name, digest in BUDGETS.items()),
    ],
    ids=[
        *(f"{name}.yaml" for name in DEFENCES),
        "Recipe",
        "Student",
        *(f"{name} budget" for name in BUDGETS),
    ],
)
def test_constants_outside_the_keys_are_unchanged(values, digest, where):
    found = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    assert found == digest, (
        "a changed constant makes other networks under old keys: bump the stage version "
        f"({where}) and pin the new digest, {found}"
    )
