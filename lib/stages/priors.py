"""Stages of image priors: from public photos alone, from erased ones, or against one target."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lib import store
from lib.data import load_world
from lib.data.world import data_stage
from lib.erasing import ErasingLaw, erase
from lib.errors import UserError
from lib.priors import PRIORS, TRAINERS, Eigenfaces, EigenfacesConfig, Prior, prior_from_state
from lib.runtime import device, generator
from lib.setups import Setup
from lib.setups.schema import from_dict
from lib.stages.progress import expected, report
from lib.stages.targets import Trained
from lib.store import Stage

SEED = 0
ERASED_BATCH = 1000
STEPS, PHOTOS = 2, 300  # of a stand-in
_SECONDS: dict[str, float] = {}


def config(setup: Setup, kind: str) -> Any:
    """All constants of a prior, the setup's over the defaults.

    Raises:
        UserError: an unknown kind, an unknown constant or a value that means nothing.
    """
    if kind not in PRIORS:
        raise UserError(
            f"{setup.name}.priors: expected some of {', '.join(PRIORS)}, got {kind!r}; correct it"
        )
    constants = (setup.priors | setup.target_priors)[kind]
    shape = TRAINERS[kind].Config if kind in TRAINERS else EigenfacesConfig
    return from_dict(shape, constants, f"{setup.name}.priors.{kind}")


def stage(setup: Setup, kind: str, *, law: ErasingLaw | None = None, target: Stage | None = None) -> Stage:
    """The stage of a prior.

    Args:
        kind: of ``setup.priors``, or of ``setup.target_priors`` with the ``target`` it is trained against.
        law: how the public photos are erased first; None: not at all.
    """
    known = setup.priors | setup.target_priors
    if kind not in known:
        raise UserError(f"{setup.name}: no prior {kind!r}; expected one of {', '.join(known)}")
    # All constants of a GAN, not only those the setup names: a changed default is another prior.
    constants = asdict(config(setup, kind)) if kind in TRAINERS else known[kind]
    params = {"setup": setup.name, "prior": kind, "seed": SEED, **constants}
    label, upstream = f"{setup.name} prior {kind}", [data_stage(setup).key]
    if law is not None:
        params["erased"] = asdict(law)
        label += " of erased faces"
    if kind in setup.target_priors:
        if target is None:
            raise UserError(f"prior {kind}: expected the target it is trained against, got none; name it")
        label = target.label.replace(" target", "") + label.removeprefix(setup.name)
        upstream.append(target.key)
    return Stage("prior", label, params, tuple(upstream))


def artifact(
    setup: Setup, kind: str, *, law: ErasingLaw | None = None, target: Trained | None = None
) -> store.Artifact:
    """Load or train; with the training history."""
    made_as = stage(setup, kind, law=law, target=target.stage if target else None)

    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        public = public_photos(setup, law)
        if kind == "eigenfaces":
            made: Prior = Eigenfaces.fit(public, **setup.priors[kind])
            return made.state(), made.meta()
        constants = config(setup, kind)
        common = dict(
            config=constants,
            seed=SEED,
            device=device(),
            checkpoint=checkpoint,
            callback=lambda row: report(made_as.label, int(row["step"]), constants.steps),
        )
        made, history = _train(kind, public, target.model.to(device()) if target else None, common)
        return made.state(), {**made.meta(), "history": history, "steps": constants.steps}

    network = target.model if target else None
    return store.get(made_as, make, seconds=expected(made_as, lambda: seconds(setup, kind, network)))


def load(setup: Setup, kind: str, *, law: ErasingLaw | None = None, target: Trained | None = None) -> Prior:
    """Load or train a prior."""
    found = artifact(setup, kind, law=law, target=target)
    return prior_from_state(found.tensors, found.meta).to(device())


def public_photos(setup: Setup, law: ErasingLaw | None) -> Tensor:
    """(N,3,S,S) uint8, each erased once by ``law`` if there is one."""
    public = load_world(setup).public.pixels
    if law is None:
        return public
    stream = generator(SEED, "erased public photos")
    parts = (erase(part.float() / 255, law, generator=stream)[0] for part in public.split(ERASED_BATCH))
    return torch.cat([part.mul(255).round().byte() for part in parts])


def seconds(setup: Setup, kind: str, target: nn.Module | None = None) -> float:
    """Expected seconds of training on this machine, from a few steps; against a target, on one like it."""
    if kind == "eigenfaces":
        return 0.0
    key = repr((setup.name, setup.image_size, kind, config(setup, kind)))
    if key not in _SECONDS:
        began = time.perf_counter()
        stand_in(setup, kind, target)
        _SECONDS[key] = (time.perf_counter() - began) / STEPS * config(setup, kind).steps
    return _SECONDS[key]


def stand_in(setup: Setup, kind: str, target: nn.Module | None = None) -> Prior:
    """A prior of this kind that has learnt nothing, to measure time and memory with."""
    size = setup.image_size
    if kind == "eigenfaces":
        noise = torch.randint(0, 256, (PHOTOS, 3, size, size), generator=generator(SEED), dtype=torch.uint8)
        few = min(setup.priors[kind]["components"], PHOTOS - 1)
        return Eigenfaces.fit(noise, **setup.priors[kind] | {"components": few}).to(device())
    constants = dataclasses.replace(config(setup, kind), steps=STEPS)
    images = torch.zeros(max(constants.batch, 64), 3, size, size, dtype=torch.uint8)
    given = target if kind in setup.target_priors else None
    return _train(kind, images, given, dict(config=constants, seed=SEED, device=device()))[0].to(device())


def _train(kind: str, public: Tensor, target: nn.Module | None, common: dict) -> tuple[Prior, list[dict]]:
    *networks, history = TRAINERS[kind].train(public, target, **common)
    return PRIORS[kind](*networks), history
