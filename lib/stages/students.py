"""Stages of the students that LOMMA distils from a target on public photos."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict

from torch import Tensor

from lib import store
from lib.erasing import ErasingLaw
from lib.errors import UserError
from lib.models import Classifier, classifier_from
from lib.runtime import device
from lib.setups import Setup
from lib.setups.schema import from_dict
from lib.stages import priors
from lib.stages.progress import report
from lib.stages.targets import Trained
from lib.store import Stage
from lib.training.distil import Student, answers, distil

SEED = 0


def configs(setup: Setup) -> list[Student]:
    """Raises: UserError for a setup without students."""
    if not setup.students:
        raise UserError(f"{setup.name}: expected students for LOMMA, got none; add `students:` to the setup")
    return [from_dict(Student, part, f"{setup.name}.students") for part in setup.students]


def stages(setup: Setup, target: Stage, *, law: ErasingLaw | None = None) -> list[Stage]:
    """One per student of the setup; ``law``: how the public photos are erased first."""
    found = []
    for i, config in enumerate(configs(setup)):
        params = {"setup": setup.name, "seed": SEED + i, **asdict(config)}
        label = f"{target.label.replace(' target', '')} student {i + 1}"
        if law is not None:
            params["erased"] = asdict(law)
            label += " of erased faces"
        found.append(Stage("student", label, params, (target.key,)))
    return found


def load(setup: Setup, target: Trained, *, law: ErasingLaw | None = None) -> tuple[Classifier, ...]:
    """Load or distil them all; the photos are erased, and the target answers, once for all of them."""

    @functools.cache
    def photos() -> Tensor:
        return priors.public_photos(setup, law)

    @functools.cache
    def ask(mirrored: bool) -> Tensor:
        return answers(target.model.to(device()), photos(), device(), mirrored=mirrored)

    return tuple(
        _load(target, stage, config, photos, ask)
        for stage, config in zip(stages(setup, target.stage, law=law), configs(setup), strict=True)
    )


def _load(
    target: Trained,
    stage: Stage,
    config: Student,
    photos: Callable[[], Tensor],
    ask: Callable[[bool], Tensor],
) -> Classifier:
    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        student, history = distil(
            photos(),
            target.model.to(device()),
            config=config,
            seed=stage.params["seed"],
            device=device(),
            checkpoint=checkpoint,
            callback=lambda row: report(stage.label, int(row["step"]), config.steps),
            ask=ask,
        )
        spec = {name: getattr(student, name) for name in ("spec", "num_classes", "image_size")}
        return dict(student.state_dict()), {**spec, "history": history}

    artifact = store.get(stage, make)
    return classifier_from(artifact.tensors, artifact.meta).to(device()).eval()
