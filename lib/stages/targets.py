"""Stages of trained networks: targets under attack, evaluators, verifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lib import store
from lib.data import Images, load_world
from lib.data.world import World, data_stage
from lib.defences import applied, build, canonical, parse, resolved, restore
from lib.errors import UserError
from lib.models import Classifier, ExternalClassifier, build_classifier, load_external
from lib.models.external import external_config
from lib.runtime import device
from lib.setups import NetworkConfig, Setup
from lib.setups.schema import from_dict
from lib.stages import starts
from lib.stages.progress import expected, report
from lib.store import Artifact, Stage
from lib.training import Recipe, train_classifier

PROBE_STEPS = 3
CONTROLS = ("early", "fewer", "small")  # what makes a weaker NoDef model


@dataclass(frozen=True)
class Trained:
    """A trained network with what is known of its training."""

    model: nn.Module
    stage: Stage
    meta: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.meta["steps"]


def recipe_of(config: NetworkConfig, setup: str) -> Recipe:
    return from_dict(Recipe, config.recipe, f"{setup}.recipe")


# --- targets ------------------------------------------------------------------------------------------


def target_stage(setup: Setup, defence: str, seed: int, multiple: float) -> Stage:
    """A target: one network, one defence, one seed, one training length (a multiple of the recipe's); of a
    given network, which has none of these, the network itself."""
    if setup.is_external:
        return _external_stage(setup, defence)
    name = canonical(defence, setup.defences)
    recipe = dict(setup.target.recipe)
    recipe["steps"] = round(recipe["steps"] * multiple)
    params: dict[str, Any] = {
        "setup": setup.name,
        "network": setup.target.network,
        "recipe": recipe,
        "defence": name,
        "seed": seed,
    }
    if overrides := applied(name, setup.defences):
        params["overrides"] = overrides
    upstream = [data_stage(setup).key]
    if (config := _target_config(setup, params)).pretrained:
        upstream.append(starts.pretraining_stage(setup, config, "target").key)
    label = f"{setup.name} target {name} x{multiple:g} seed {seed}"
    return Stage("target", label, params, tuple(upstream), version=1)


def _target_config(setup: Setup, params: dict[str, Any]) -> NetworkConfig:
    """What the parameters of a target's stage say of its training, with the pre-training its defence wants."""
    wanted = [made.pretraining for made in build(params["defence"], setup.defences) if made.pretraining]
    return NetworkConfig(
        params["network"],
        params["recipe"],
        params["defence"],
        pretrained=wanted[0] if wanted else None,
        seed=params["seed"],
    )


def target(setup: Setup, defence: str, seed: int, multiple: float | None = None) -> Trained:
    """Load or train a target; ``multiple`` defaults to the headline training length of the defence."""
    if setup.is_external:
        return _external(setup, defence)
    if multiple is None:
        multiple = headline(setup, defence)
    stage = target_stage(setup, defence, seed, multiple)
    name = stage.params["defence"]

    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        part = _part_of_nodef(name)
        if part in setup.snapshots and not store.exists(target_stage(setup, "none", seed, multiple)):
            target(setup, "none", seed, multiple)  # it leaves its points
            found = store.find(stage)
            if found is not None:
                return found.tensors, found.meta
        world = load_world(setup)
        marks = [mark for mark in setup.snapshots if mark < part]
        tensors, meta, points = train_target(setup, stage, world, world.train, checkpoint, marks)
        for mark, weights in points.items():
            early = target_stage(setup, f"early({mark:g})", seed, multiple)
            if not store.exists(early):
                store.put(early, weights, _until(meta, round(stage.params["recipe"]["steps"] * mark)))
        return tensors, meta

    artifact = store.get(
        stage, make, seconds=expected(stage, lambda: training_seconds(setup, stage, setup.target))
    )
    return Trained(restore(artifact.tensors, artifact.meta), stage, artifact.meta)


def _part_of_nodef(name: str) -> float:
    """How much of the NoDef run a target is: all of it, the share of a point of it, nothing of another's."""
    return float(name[len("early(") : -1]) if is_point(name) else float(name == "none")


def is_point(name: str) -> bool:
    """Whether a target is a checkpoint of the NoDef run, which leaves it without a training of its own."""
    return [term.name for term in parse(name)] == ["early"]


def _is_weaker(name: str) -> bool:
    """Whether a target is a NoDef model that was merely given less; they share NoDef's training length."""
    return all(term.name in CONTROLS for term in parse(name))


def _until(meta: dict[str, Any], steps: int) -> dict[str, Any]:
    """Metadata of a training as it stood after this many steps."""
    history = [row for row in meta["history"] if row["step"] <= steps]
    accuracies = [row["validation_accuracy"] for row in history if "validation_accuracy" in row]
    found = {**meta, "steps": steps, "history": history, "seconds": 0.0}
    found.pop("validation_accuracy", None)
    return found | ({"validation_accuracy": accuracies[-1]} if accuracies else {})


def train_target(
    setup: Setup,
    stage: Stage,
    world: World,
    photos: Images,
    checkpoint: store.Checkpoint,
    snapshots: list[float] | None = None,
) -> tuple[dict, dict, dict]:
    """Train as a target's stage says, on these photos: weights, metadata, and the weights at each snapshot."""
    config = _target_config(setup, stage.params)
    start = _pretrain(setup, config, world, "target", photos) if config.pretrained else None
    return _train(setup, config, photos, world.validation, checkpoint, stage.label, snapshots or [], start)


def multiples_of(setup: Setup, defence: str) -> list[float]:
    """The training lengths tried for a defence; those without a list of their own share another's."""
    return setup.multiples[_tried(setup, defence)]


def _tried(setup: Setup, defence: str) -> str:
    """The key of ``multiples`` that a defence's lengths are under."""
    name = canonical(defence, setup.defences)
    if _is_weaker(name):
        name = "none"
    keys = {canonical(key, setup.defences): key for key in setup.multiples}
    return keys.get(name, next(reversed(setup.multiples)))


def selection_stage(setup: Setup, defence: str) -> Stage:
    """Which training length is best by validation, on training seed 0."""
    name = _tried(setup, defence)
    lengths = setup.multiples[name]
    upstream = tuple(target_stage(setup, name, 0, m).key for m in lengths)
    params = {"setup": setup.name, "defence": name, "multiples": lengths}
    return Stage("selection", f"{setup.name} training length of {name}", params, upstream)


def selection(setup: Setup, defence: str) -> dict[str, Any]:
    """``multiple`` chosen and the validation accuracy at each length (seed 0)."""
    stage = selection_stage(setup, defence)

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        lengths = stage.params["multiples"]
        runs = [target(setup, stage.params["defence"], 0, m) for m in lengths]
        scores = [run.meta["validation_accuracy"] for run in runs]
        best = max(range(len(lengths)), key=lambda i: (scores[i], -lengths[i]))
        return {"validation_accuracy": torch.tensor(scores)}, {"multiple": lengths[best], "scores": scores}

    seconds = 0.0 if store.exists(stage) else _missing_seconds(setup, stage)
    return store.get(stage, make, seconds=seconds).meta


def headline(setup: Setup, defence: str) -> float:
    """The training length of the headline: the best by validation, ties to the shorter."""
    lengths = multiples_of(setup, defence)
    return lengths[0] if len(lengths) == 1 else selection(setup, defence)["multiple"]


def _missing_seconds(setup: Setup, stage: Stage) -> float:
    wanted = [target_stage(setup, stage.params["defence"], 0, m) for m in stage.params["multiples"]]
    return sum(training_seconds(setup, s, setup.target) for s in wanted if not store.exists(s))


# --- a given network -----------------------------------------------------------------------------------


_GIVEN: dict[str, ExternalClassifier] = {}


def _external_stage(setup: Setup, defence: str) -> Stage:
    """What names the given network: its files, how they are read and, where there are private photos, whose they
    are: they decide how its classes are numbered."""
    if canonical(defence, setup.defences) != "none":
        raise UserError(
            f"{setup.name}: the target is a given network, so there is nothing to train behind {defence!r}; "
            "ask for none"
        )
    params = {**setup.target.network, **external_config(setup.target.network).digests()}
    upstream = (data_stage(setup).key,) if setup.has_photos else ()
    return Stage("target", f"{setup.name} external target", params, upstream)


def _external(setup: Setup, defence: str) -> Trained:
    stage = _external_stage(setup, defence)
    if stage.key not in _GIVEN:
        model = given_network(setup)
        if setup.has_photos:
            model.number_like(load_world(setup).train.names)
        _GIVEN[stage.key] = model
    model = _GIVEN[stage.key]
    meta = {"steps": 0, "external": True, "detected": model.detected(), "names": model.class_names}
    return Trained(model, stage, meta)


def given_network(setup: Setup) -> ExternalClassifier:
    """The user's own classifier, its classes in its own order."""
    return load_external(image_size=setup.image_size, **setup.target.network)


# --- judges -------------------------------------------------------------------------------------------


def judge_stage(setup: Setup, role: str) -> Stage:
    """An evaluator (``main``, ``panel_1``, ...) or the ``verifier``."""
    config = _config(setup, role)
    params: dict[str, Any] = {"setup": setup.name, "role": role, **store.essentials(config)}
    if overrides := applied(config.defence, setup.defences):
        params["overrides"] = overrides
    kind = "verifier" if role == "verifier" else "evaluator"
    return Stage(kind, f"{setup.name} {role}", params, (data_stage(setup).key,), version=1)


def judge(setup: Setup, role: str) -> Trained:
    """Load or train an evaluator or the verifier."""
    stage, config = judge_stage(setup, role), _config(setup, role)

    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        world = load_world(setup)
        photos = world.train if role != "verifier" else world.verifier
        if photos is None:
            raise UserError(f"{setup.name}: no people are left for a verifier; set data.others.verifier")
        validation = world.validation if role != "verifier" else None
        start = _pretrain(setup, config, world, role, photos) if config.pretrained else None
        tensors, meta, _ = _train(setup, config, photos, validation, checkpoint, stage.label, [], start)
        return tensors, meta

    artifact = store.get(stage, make, seconds=expected(stage, lambda: training_seconds(setup, stage, config)))
    return Trained(restore(artifact.tensors, artifact.meta), stage, artifact.meta)


def _config(setup: Setup, role: str) -> NetworkConfig:
    if role == "verifier":
        return setup.verifier
    if role not in setup.evaluators:
        raise UserError(f"{setup.name}: no evaluator {role!r}; expected one of {', '.join(setup.evaluators)}")
    return setup.evaluators[role]


def _pretrain(setup: Setup, config: NetworkConfig, world: World, role: str, photos: Images) -> Artifact:
    """A network's start: its own body trained to tell apart people who are not private."""
    stage = starts.pretraining_stage(setup, config, role)

    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        others = starts.photos_for(setup, config, world)
        starts.try_surgery(setup, config, recipe_of(config, setup.name), photos)
        return _train(setup, starts.start_config(config), others, None, checkpoint, stage.label, [])[:2]

    return store.get(stage, make)


# --- training -----------------------------------------------------------------------------------------


def _train(
    setup: Setup,
    config: NetworkConfig,
    photos: Images,
    validation: Images | None,
    checkpoint: store.Checkpoint,
    label: str,
    snapshots: list[float],
    start: Artifact | None = None,
) -> tuple[dict, dict, dict]:
    recipe = recipe_of(config, setup.name)

    def make_model(planned: Recipe) -> Classifier:
        model = build_classifier(config.network, len(photos.names), setup.image_size, width=planned.width)
        if start is not None:
            starts.check_width(label, planned)
            body = {n.removeprefix("body."): t for n, t in start.tensors.items() if n.startswith("body.")}
            model.body.load_state_dict(body)
        return model

    result = train_classifier(
        make_model,
        photos,
        recipe=recipe,
        defences=build(config.defence, setup.defences),
        seed=config.seed,
        validation=validation,
        snapshots=snapshots,
        device=device(),
        checkpoint=checkpoint,
        callback=lambda row: report(label, row["step"], row["total"]),
    )
    model = result.model
    meta = {
        "spec": model.spec,
        "num_classes": model.num_classes,
        "image_size": model.image_size,
        "names": photos.names if setup.target.network is config.network else [],
        "photos": len(photos),
        "steps": recipe.steps,
        "history": result.history,
        "diagnostics": result.diagnostics,
        "defence": config.defence,
        "constants": resolved(config.defence, setup.defences),
    }
    if overrides := applied(config.defence, setup.defences):
        meta["overrides"] = overrides
    if result.history and "validation_accuracy" in result.history[-1]:
        meta["validation_accuracy"] = result.history[-1]["validation_accuracy"]
        meta["steps"] = int(result.history[-1]["step"])
    return model.state_dict(), meta, result.snapshots


_RATES: dict[str, float] = {}


def training_seconds(setup: Setup, stage: Stage, config: NetworkConfig) -> float:
    """Expected seconds on this machine, from a few steps of the same network; 0 if the stage is there or the
    network a given one."""
    if config.network.get("kind") == "external" or store.exists(stage):
        return 0.0
    recipe = stage.params["recipe"]
    key = repr((config.network, recipe.get("batch", 64), setup.image_size))
    if key not in _RATES:
        _RATES[key] = _seconds_per_step(setup, config, recipe.get("batch", 64))
    if stage.kind in ("target", "poisoned"):
        config = _target_config(setup, stage.params)
    extra = (config.pretrained or {}).get("steps", 0)
    cost = math.prod(defence.cost for defence in build(config.defence, setup.defences))
    return _RATES[key] * (cost * recipe["steps"] + extra)


def _seconds_per_step(setup: Setup, config: NetworkConfig, batch: int) -> float:
    import time

    size = setup.image_size
    pixels = torch.zeros(batch * PROBE_STEPS, 3, size, size, dtype=torch.uint8)
    photos = Images(pixels, torch.arange(len(pixels)) % 4, ["a", "b", "c", "d"])

    def run(steps: int) -> float:
        began = time.perf_counter()
        train_classifier(
            lambda planned: build_classifier(config.network, 4, size, width=planned.width),
            photos,
            recipe=Recipe(steps=steps, batch=batch),
            seed=0,
            device=device(),
        )
        return time.perf_counter() - began

    run(1)
    return (run(PROBE_STEPS + 1) - run(1)) / PROBE_STEPS
