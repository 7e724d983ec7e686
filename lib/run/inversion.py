"""Stages of an attack: the prior, the reconstructions, and what every judge says of them."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib import attacks, evaluation, store
from lib.attacks import Reconstructions
from lib.data import Images, load_world
from lib.data.world import data_stage
from lib.errors import UserError
from lib.models import build_classifier
from lib.priors import Eigenfaces, GanConfig, Prior, StylePrior, prior_from_state, train_gan
from lib.run import targets
from lib.run.progress import expected, report
from lib.run.targets import Trained
from lib.runtime import device
from lib.setups import Setup
from lib.setups.schema import from_dict
from lib.store import Stage

PRIOR_SEED = 0
GUESSED_PEOPLE = 62  # of LFW with 20 photos
PROBE_COMPONENTS = 256


# --- priors -------------------------------------------------------------------------------------------


def prior_stage(setup: Setup, kind: str) -> Stage:
    """An image prior trained on the public photos: ``eigenfaces`` or ``stylegan``."""
    if kind not in setup.priors:
        raise UserError(f"{setup.name}: no prior {kind!r}; expected one of {', '.join(setup.priors)}")
    # All constants of a GAN, not only those the setup names: a changed default is another prior.
    constants = asdict(gan_config(setup)) if kind == "stylegan" else setup.priors[kind]
    params = {"setup": setup.name, "prior": kind, "seed": PRIOR_SEED, **constants}
    return Stage("prior", f"{setup.name} prior {kind}", params, (data_stage(setup).key,))


def prior(setup: Setup, kind: str) -> Prior:
    """Load or train a prior."""
    artifact = prior_artifact(setup, kind)
    return prior_from_state(artifact.tensors, artifact.meta).to(device())


def prior_artifact(setup: Setup, kind: str) -> store.Artifact:
    """The prior's stage with its training history."""
    stage = prior_stage(setup, kind)

    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        public = load_world(setup).public.pixels
        if kind == "eigenfaces":
            made: Prior = Eigenfaces.fit(public, **setup.priors[kind])
            return made.state(), made.meta()
        config = gan_config(setup)
        generator, discriminator, history = train_gan(
            public,
            config=config,
            seed=PRIOR_SEED,
            device=device(),
            checkpoint=checkpoint,
            callback=lambda row: report(stage.label, int(row["step"]), config.steps),
        )
        made = StylePrior(generator, discriminator)
        return made.state(), {**made.meta(), "history": history, "steps": config.steps}

    return store.get(stage, make, seconds=expected(stage, lambda: prior_seconds(setup, kind)))


def gan_config(setup: Setup) -> GanConfig:
    return from_dict(GanConfig, setup.priors["stylegan"], f"{setup.name}.priors.stylegan")


def prior_seconds(setup: Setup, kind: str) -> float:
    """Expected seconds on this machine, from a few steps; 0 if the prior is there."""
    if store.exists(prior_stage(setup, kind)) or kind == "eigenfaces":
        return 0.0
    config = dataclasses.replace(gan_config(setup), steps=2)
    images = torch.zeros(config.batch, 3, setup.image_size, setup.image_size, dtype=torch.uint8)
    began = time.perf_counter()
    train_gan(images, config=config, seed=0, device=device())
    return (time.perf_counter() - began) / config.steps * gan_config(setup).steps


# --- reconstructions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """One attack on one target: everything that names a row of results.

    Attributes:
        multiple: training length of the target; None is its headline.
    """

    setup: Setup
    defence: str
    training_seed: int
    attack: str
    prior: str
    budget: str
    attack_seed: int
    multiple: float | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The budget's constants: the prior's own, then the named budget's."""
        budgets = self.setup.attacks.get(self.attack, {})
        return {**budgets.get(self.prior, {}), **self.setup.budget(self.attack, self.budget)}

    def target(self) -> Trained:
        return targets.target(self.setup, self.defence, self.training_seed, self.multiple)


def reconstruction_stage(attack: Attack, target: Stage) -> Stage:
    params = {
        "setup": attack.setup.name,
        "attack": attack.attack,
        "budget": attack.values,
        "seed": attack.attack_seed,
    }
    label = (
        f"{target.label.replace(' target', '')} {attack.attack} {attack.prior} "
        f"{attack.budget} attack seed {attack.attack_seed}"
    )
    upstream = (target.key, prior_stage(attack.setup, attack.prior).key)
    return Stage("reconstructions", label, params, upstream)


def reconstruct(attack: Attack) -> Reconstructions:
    """Load or make the reconstructions of all identities."""
    trained = attack.target()
    stage = reconstruction_stage(attack, trained.stage)

    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        method = attacks.get(attack.attack)
        found = method.invert(
            trained.model.to(device()),
            prior(attack.setup, attack.prior),
            list(range(trained.model.num_classes)),
            budget=method.budget(**attack.values),
            seed=attack.attack_seed,
            checkpoint=checkpoint,
            callback=lambda row: report(f"{stage.label}, {row['stage']}", row["done"], row["total"]),
        )
        return found.to_tensors(), found.meta()

    artifact = store.get(stage, make, seconds=expected(stage, lambda: attack_seconds(attack, trained.model)))
    return Reconstructions.from_tensors(artifact.tensors, artifact.meta)


_SECONDS: dict[str, float] = {}


def attack_seconds(attack: Attack, target: nn.Module | None = None) -> float:
    """Expected seconds of an attack here, from a short one on ``target`` (while it is not trained: on a network
    of its kind) through an eigenface prior; a GAN takes longer."""
    setup, method = attack.setup, attacks.get(attack.attack)
    size = setup.image_size
    key = repr((setup.target.network, size, getattr(target, "num_classes", 0), attack.attack, attack.values))
    if key not in _SECONDS:
        if target is None and setup.is_external:
            target = targets.given_network(setup)
        elif target is None:
            target = build_classifier(setup.target.network, people_of(setup), size)
        target, people = target.to(device()), target.num_classes
        budget = method.budget(**attack.values)
        few: dict[str, Any] = {"steps": 2, "views": 2}
        if hasattr(budget, "pool"):
            few["pool"] = budget.candidates
        if hasattr(budget, "realism"):
            few["realism"] = "auto"  # eigenfaces have no critic
        noise = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (300, 3, size, size), generator=noise, dtype=torch.uint8)
        faces = Eigenfaces.fit(images, components=min(PROBE_COMPONENTS, 3 * size * size)).to(device())
        labels, short = list(range(min(budget.chunk, 4, people))), dataclasses.replace(budget, **few)
        for _ in range(2):  # the first one warms up
            found = method.invert(target, faces, labels, budget=short, seed=0)
        full, done = (b.candidates * (b.steps * 1.5 + b.views / 2) for b in (budget, short))
        _SECONDS[key] = found.cost["seconds"] / done * full * people
    return _SECONDS[key]


def people_of(setup: Setup) -> int:
    """How many people there are to attack: counted where the photos are decoded, else as the setup names them,
    else :data:`GUESSED_PEOPLE`, a guess."""
    photos = store.find(data_stage(setup))
    if photos is not None:
        return photos.meta["counts"]["train"][1]
    return len(setup.data.private.classes) or GUESSED_PEOPLE


# --- judging ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What each network says of some images.

    Attributes:
        features, logits: by judge, (N,d) and (N,C).
        labels: (N,) the aimed or true identity.
    """

    features: dict[str, Tensor]
    logits: dict[str, Tensor]
    labels: Tensor


def judges(setup: Setup) -> dict[str, Trained]:
    """The evaluators and the verifier; nobody without private photos."""
    if not setup.has_photos:
        return {}
    return {role: targets.judge(setup, role) for role in (*setup.evaluators, "verifier")}


def judge_reconstructions(attack: Attack) -> dict[str, Judged]:
    """``reconstructions`` (all K n candidates, identity-major) and ``prior_samples`` (the latents they
    started from) as seen by the target, every evaluator and the verifier; one synthesis per latent."""
    trained, panel = attack.target(), judges(attack.setup)
    made = reconstruct(attack)
    source = reconstruction_stage(attack, trained.stage)
    params = {"setup": attack.setup.name, "judges": list(panel)}
    upstream = (source.key, *(member.stage.key for member in panel.values()))
    stage = Stage("judged", f"{source.label}, judged", params, upstream)

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        where = device()
        networks = {"target": trained.model, **{role: member.model for role, member in panel.items()}}
        for network in networks.values():
            network.to(where)
        faces = prior(attack.setup, attack.prior)
        tensors: dict[str, Tensor] = {}
        for name, latents in (("reconstructions", made.latents), ("prior_samples", made.initial)):
            seen = evaluation.judge(latents.flatten(0, 1), networks, synthesise=faces.synthesise)
            for role, (features, logits) in seen.items():
                tensors[f"{name}.{role}.features"] = features.half()
                if role != "verifier":
                    tensors[f"{name}.{role}.logits"] = logits.half()
        return tensors, {}

    tensors = store.get(stage, make).tensors
    count = made.latents.shape[1]
    labels = made.labels.repeat_interleave(count)
    return {name: _judged(tensors, name, labels) for name in ("reconstructions", "prior_samples")}


def photos_stage(setup: Setup, network: Stage, role: str) -> Stage:
    label = f"{setup.name} photos seen by {network.label.removeprefix(setup.name + ' ')}"
    return Stage("photos", label, {"setup": setup.name, "role": role}, (network.key,))


def judge_photos(setup: Setup, trained: Trained, role: str) -> dict[str, Judged]:
    """The private photos of each split as seen by one network."""
    stage = photos_stage(setup, trained.stage, role)

    def sets() -> dict[str, Images]:
        world = load_world(setup)
        return {"train": world.train, "validation": world.validation, "test": world.test}

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        tensors: dict[str, Tensor] = {}
        model = trained.model.to(device())
        for split, photos in sets().items():
            features, logits = evaluation.judge(photos.pixels, {role: model})[role]
            tensors[f"{split}.{role}.features"] = features
            if role != "verifier":  # its classes are other people
                tensors[f"{split}.{role}.logits"] = logits
            tensors[f"{split}.labels"] = photos.labels
        return tensors, {}

    tensors = store.get(stage, make).tensors
    return {s: _judged(tensors, s, tensors[f"{s}.labels"]) for s in ("train", "validation", "test")}


def _judged(tensors: dict[str, Tensor], name: str, labels: Tensor) -> Judged:
    parts: dict[str, dict[str, Tensor]] = {"features": {}, "logits": {}}
    for key, tensor in tensors.items():
        head, _, rest = key.partition(".")
        role, _, what = rest.rpartition(".")
        if head == name and what in parts:
            parts[what][role] = tensor.float()
    return Judged(parts["features"], parts["logits"], labels)


@torch.inference_mode()
def synthesise(setup: Setup, kind: str, latents: Tensor, *, batch: int = 64) -> Tensor:
    """(N,3,S,S) in [0,1] on the CPU."""
    faces = prior(setup, kind)
    return torch.cat([faces.synthesise(part.float().to(device())).cpu() for part in latents.split(batch)])
