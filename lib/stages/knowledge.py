"""What an attacker of the study has: public photos, the published erasing law, students."""

from __future__ import annotations

from lib import attacks
from lib.attacks import Knowledge
from lib.attacks.knowledge import blind
from lib.data import load_world
from lib.defences import build
from lib.erasing import ErasingLaw
from lib.setups import Setup
from lib.stages import priors, students
from lib.stages.targets import Trained

CONTROL = "re(0.1,0.4)"  # whose law adaptive attacks use on targets that were not trained on erased images


def law_of(setup: Setup, defence: str) -> ErasingLaw:
    """The erasing law of a defence; of one that erases nothing, RE's, as a control."""
    for text in (defence, CONTROL):
        for part in build(text, setup.defences):
            if hasattr(part, "law"):
                return part.law
    raise AssertionError(CONTROL)


def believed_law(setup: Setup, defence: str) -> ErasingLaw:
    """What the attacker erases public photos by: :func:`law_of`, with what nobody outside can know made random."""
    return blind(law_of(setup, defence))


def knowledge(setup: Setup, attack: str, defence: str, trained: Trained) -> Knowledge:
    """What the named attack needs, and nothing else."""
    method = attacks.get(attack)
    law = law_of(setup, defence) if "law" in method.needs else None
    believed = believed_law(setup, defence) if "students" in method.erases else None
    given: dict = {"law": law}
    if "public" in method.needs:
        given["public"] = load_world(setup).public.pixels
    if "students" in method.needs:
        given["students"] = students.load(setup, trained, law=believed)
    if believed:
        given["erased"] = priors.public_photos(setup, believed)
    return Knowledge(**given)
