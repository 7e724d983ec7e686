"""Stages of the attacks other than inversion: evasion and the backdoor of a target; both records."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from lib import store
from lib.data import Images, load_world
from lib.defences import restore
from lib.robustness import Backdoor, Evasion, evade, poison, stamp
from lib.robustness.evasion import ATTACKS
from lib.runtime import device, frozen
from lib.setups import Setup
from lib.setups.schema import from_dict
from lib.stages import targets
from lib.stages.inversion import Attack
from lib.stages.progress import expected
from lib.stages.targets import Trained
from lib.store import Stage

SEED = 0
BATCH = 256


def evasion_budget(setup: Setup) -> Evasion:
    """The setup's, over the defaults."""
    return from_dict(Evasion, setup.robustness.get("evasion", {}), f"{setup.name}.robustness.evasion")


def backdoor_plan(setup: Setup) -> Backdoor:
    """The setup's, over the defaults."""
    return from_dict(Backdoor, setup.robustness.get("backdoor", {}), f"{setup.name}.robustness.backdoor")


# --- evasion ------------------------------------------------------------------------------------------


def evasion_stage(attack: Attack) -> Stage:
    """Of the record."""
    source, budget = attack.target_stage(), evasion_budget(attack.setup)
    params = {"setup": attack.setup.name, "seed": SEED, **asdict(budget)}
    return Stage("evasion", f"{source.label}, evaded", params, (source.key,))


def evasion(attack: Attack) -> tuple[dict[str, dict[float, Tensor]], Tensor]:
    """Evade the target that an inversion attack is about.

    Returns:
        Of :func:`lib.robustness.evade`, and whose photos they are (N,).
    """
    budget = evasion_budget(attack.setup)

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        photos = first_photos(load_world(attack.setup).test, budget.photos)
        model = attack.target().model.to(device())
        found = evade(model, photos.float(), photos.labels, budget=budget, seed=SEED)
        tensors = {f"{name}.{radius:g}": right for name, by in found.items() for radius, right in by.items()}
        return tensors | {"labels": photos.labels}, {}

    tensors = dict(store.get(evasion_stage(attack), make).tensors)
    labels, found = tensors.pop("labels"), {}
    for name, right in tensors.items():
        kind, _, radius = name.partition(".")
        found.setdefault(kind, {})[float(radius)] = right
    return {kind: dict(sorted(found[kind].items())) for kind in ("clean", *ATTACKS)}, labels


def first_photos(images: Images, count: int) -> Images:
    """The first ``count`` photos of everybody, person by person."""
    index = [(images.labels == k).nonzero()[:count, 0] for k in range(len(images.names))]
    return images.take(torch.cat(index))


# --- the backdoor -------------------------------------------------------------------------------------


def poisoned_stage(attack: Attack) -> Stage:
    """The same target trained on poisoned photos."""
    source, plan = attack.target_stage(), backdoor_plan(attack.setup)
    params = source.params | {"backdoor": asdict(plan), "backdoor_seed": SEED}
    return Stage("poisoned", source.label.replace(" target ", " poisoned target "), params, source.upstream)


def poisoned_target(attack: Attack) -> Trained:
    """Load or train it."""
    setup, stage = attack.setup, poisoned_stage(attack)

    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        world = load_world(setup)
        planted = poison(world.train, backdoor_plan(setup), seed=SEED)
        tensors, meta, _ = targets.train_target(setup, stage, world, planted.images, checkpoint)
        return tensors, {**meta, "poisoned": planted.count}

    seconds = expected(stage, lambda: targets.training_seconds(setup, stage, setup.target))
    artifact = store.get(stage, make, seconds=seconds)
    return Trained(restore(artifact.tensors, artifact.meta), stage, artifact.meta)


def backdoor_stage(attack: Attack) -> Stage:
    """Of the record."""
    target, params = (
        attack.target_stage(),
        {"setup": attack.setup.name, **asdict(backdoor_plan(attack.setup))},
    )
    return Stage("backdoor", f"{target.label}, backdoor", params, (poisoned_stage(attack).key, target.key))


def backdoor(attack: Attack) -> dict[str, Tensor]:
    """What the poisoned and the unpoisoned target say of unseen photos.

    Returns:
        ``right`` (N,): the poisoned target's natural accuracy; ``labels`` (N,); per place ``opened.<place>`` and
        ``before.<place>`` (M,): whether other people's stamped photos are taken for the person aimed at by the
        poisoned and by the unpoisoned target, and ``people.<place>`` (M,) whose photos they are.
    """
    plan = backdoor_plan(attack.setup)

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        test = load_world(attack.setup).test
        poisoned, clean = poisoned_target(attack), attack.target()
        tensors = {"right": answers(poisoned, test) == test.labels, "labels": test.labels}
        for place, aim in plan.aims(len(test.names)).items():
            others = test.take(test.labels != aim)
            stamped = Images(stamp(others.pixels, place, side=plan.side), others.labels, others.names)
            tensors |= {
                f"opened.{place}": answers(poisoned, stamped) == aim,
                f"before.{place}": answers(clean, stamped) == aim,
                f"people.{place}": others.labels,
            }
        return tensors, {}

    return store.get(backdoor_stage(attack), make).tensors


@torch.inference_mode()
def answers(trained: Trained, images: Images) -> Tensor:
    """(N,) what a network takes photos for."""
    model = trained.model.to(device())
    with frozen(model):
        parts = [
            model(part.to(device()).float() / 255).argmax(1).cpu() for part in images.pixels.split(BATCH)
        ]
    return torch.cat(parts).clone()
