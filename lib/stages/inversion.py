"""Stages of an attack: the reconstructions, and what every judge says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib import attacks, evaluation, store
from lib.attacks import Reconstructions
from lib.data import Images, load_world
from lib.data.world import data_stage
from lib.erasing import ErasingLaw
from lib.models import build_classifier
from lib.priors import Eigenfaces, Prior
from lib.runtime import device
from lib.setups import Setup
from lib.stages import priors, students, targets
from lib.stages.knowledge import believed_law, knowledge, law_of
from lib.stages.progress import expected, report
from lib.stages.targets import Trained
from lib.store import Stage

GUESSED_PEOPLE = 62  # of LFW with 20 photos
PROBE_COMPONENTS = 256
PROBE_CANDIDATES = 8


# --- reconstructions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """One attack on one target: everything that names a row of results.

    Attributes:
        multiple: training length of the target; None is its headline.
        people: attack this many identities, evenly spaced over all; None attacks all.
    """

    setup: Setup
    defence: str
    training_seed: int
    attack: str
    prior: str
    budget: str
    attack_seed: int
    multiple: float | None = None
    people: int | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The budget's constants: the prior's own, then the named budget's."""
        budgets = self.setup.attacks.get(attacks.get(self.attack).base, {})
        return {**budgets.get(self.prior, {}), **self.setup.budget(self.attack, self.budget)}

    @property
    def _prior_law(self) -> ErasingLaw | None:
        erased = "prior" in attacks.get(self.attack).erases
        return believed_law(self.setup, self.defence) if erased else None

    def prior_stage(self, target: Stage) -> Stage:
        return priors.stage(self.setup, self.prior, law=self._prior_law, target=target)

    def load_prior(self) -> Prior:
        """Load or train the prior it searches."""
        return priors.load(self.setup, self.prior, law=self._prior_law, target=self.target())

    @property
    def is_sized(self) -> bool:
        """Whether it is known how long its target is trained: nothing is trained to find out."""
        lengths = targets.multiples_of(self.setup, self.defence)
        if self.multiple or len(lengths) == 1:
            return True
        return store.exists(targets.selection_stage(self.setup, self.defence))

    def target_stage(self) -> Stage:
        """The target's, without loading or training it."""
        multiple = self.multiple or targets.headline(self.setup, self.defence)
        return targets.target_stage(self.setup, self.defence, self.training_seed, multiple)

    def target(self) -> Trained:
        return targets.target(self.setup, self.defence, self.training_seed, self.multiple)

    def labels(self, classes: int) -> list[int]:
        """The identities attacked, of a target of this many classes, ascending."""
        return evenly_spaced(classes, self.people or classes)


def evenly_spaced(classes: int, count: int) -> list[int]:
    """At most ``count`` class numbers, evenly spaced over all ``classes``, ascending."""
    return [int(k) for k in torch.linspace(0, classes - 1, min(count, classes)).round()]


def images_before(attack: Attack) -> int:
    """Public images that pass the target before the attack begins, for all its people together: statistics of its
    features."""
    there, _ = _counts(attack.setup).get("public", (math.inf, 0))
    return int(attacks.get(attack.attack).images(there))


def reconstruction_stage(attack: Attack, target: Stage) -> Stage:
    params = {
        "setup": attack.setup.name,
        "attack": attack.attack,
        "budget": attack.values,
        "seed": attack.attack_seed,
    }
    if attack.people:
        params["people"] = attack.people
    method = attacks.get(attack.attack)
    if "law" in method.needs:
        params["law"] = asdict(law_of(attack.setup, attack.defence))
    label = (
        f"{target.label.replace(' target', '')} {attack.attack} {attack.prior} "
        f"{attack.budget} attack seed {attack.attack_seed}{f', {attack.people} people' if attack.people else ''}"
    )
    upstream = [target.key, attack.prior_stage(target).key]
    if "students" in method.needs:
        upstream += [stage.key for stage in student_stages(attack, target)]
    return Stage("reconstructions", label, params, tuple(upstream), version=method.revision)


def student_stages(attack: Attack, target: Stage) -> list[Stage]:
    """Of the networks distilled from the target that the attack uses."""
    erased = "students" in attacks.get(attack.attack).erases
    law = believed_law(attack.setup, attack.defence) if erased else None
    return students.stages(attack.setup, target, law=law)


def reconstruct(attack: Attack) -> Reconstructions:
    """Load or make the reconstructions of all identities."""
    trained = attack.target()
    stage = reconstruction_stage(attack, trained.stage)

    def make(checkpoint: store.Checkpoint) -> tuple[dict, dict]:
        method = attacks.get(attack.attack)
        found = method.invert(
            trained.model.to(device()),
            attack.load_prior(),
            attack.labels(trained.model.num_classes),
            budget=method.budget(**attack.values),
            seed=attack.attack_seed,
            knowledge=knowledge(attack.setup, attack.attack, attack.defence, trained),
            checkpoint=checkpoint,
            callback=lambda row: report(f"{stage.label}, {row['stage']}", row["done"], row["total"]),
        )
        return found.to_tensors(), found.meta()

    artifact = store.get(stage, make, seconds=expected(stage, lambda: attack_seconds(attack, trained.model)))
    return Reconstructions.from_tensors(artifact.tensors, artifact.meta)


_PROBES: dict[str, tuple[float, int]] = {}
"""Seconds of a unit of PPA's work, and how many people the network tells apart, by network."""


def attack_seconds(attack: Attack, target: nn.Module | None = None) -> float:
    """Expected seconds of an attack here, from a few steps of PPA on ``target`` (while it is not trained: on a
    network of its kind) through an eigenface prior, scaled to the attack's passes; a GAN takes longer."""
    setup, method = attack.setup, attacks.get(attack.attack)
    key = repr((setup.target.network, setup.image_size, getattr(target, "num_classes", 0)))
    if key not in _PROBES:
        network = stand_in(setup) if target is None else target.to(device())
        _PROBES[key] = _probe(network, setup.image_size), network.num_classes
    unit, classes = _PROBES[key]
    work = method.budget(**attack.values).work * method.passes
    return unit * work * len(attack.labels(classes))


def _probe(network: nn.Module, size: int) -> float:
    """Seconds of a unit of PPA's work on a network for images of this size."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 3, size, size), generator=noise, dtype=torch.uint8)
    faces = Eigenfaces.fit(images, components=min(PROBE_COMPONENTS, 3 * size * size)).to(device())
    method = attacks.get("ppa")
    short = method.budget(candidates=PROBE_CANDIDATES, keep=1).short()
    labels = list(range(min(short.chunk, network.num_classes)))
    for _ in range(2):  # the first one warms up
        found = method.invert(network, faces, labels, budget=short, seed=0)
    return found.cost["seconds"] / short.work


def stand_in(setup: Setup) -> nn.Module:
    """A network of the target's kind, untrained unless it is given, to measure times on."""
    if setup.is_external:
        return targets.given_network(setup).to(device())
    return build_classifier(setup.target.network, people_of(setup), setup.image_size).to(device())


def people_of(setup: Setup) -> int:
    """How many people there are to attack: counted where the photos are decoded, else as the setup names them,
    else :data:`GUESSED_PEOPLE`, a guess."""
    _, people = _counts(setup).get("train", (0, len(setup.data.private.classes) or GUESSED_PEOPLE))
    return people


_COUNTS: dict[str, dict[str, list[int]]] = {}
"""Photos and people of every set, by the key of the decoded photos: their file is large and asked about by every row of
a table."""


def _counts(setup: Setup) -> dict[str, list[int]]:
    """Set to (photos, people); empty where the photos are not decoded."""
    stage = data_stage(setup)
    if stage.key not in _COUNTS:
        photos = store.find(stage)
        if photos is None:
            return {}
        _COUNTS[stage.key] = photos.meta["counts"]
    return _COUNTS[stage.key]


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


def judging(setup: Setup) -> list[str]:
    """The evaluators and the verifier; nobody without private photos."""
    return [*setup.evaluators, "verifier"] if setup.has_photos else []


def judges(setup: Setup) -> dict[str, Trained]:
    """The networks of :func:`judging`."""
    return {role: targets.judge(setup, role) for role in judging(setup)}


def judge_reconstructions(attack: Attack) -> dict[str, Judged]:
    """``reconstructions`` (all K n candidates, identity-major) and ``prior_samples`` (the latents they
    started from) as seen by the target, every evaluator and the verifier; one synthesis per latent."""
    made = reconstruct(attack)
    source = reconstruction_stage(attack, attack.target_stage())
    roles = judging(attack.setup)
    params = {"setup": attack.setup.name, "judges": roles}
    upstream = (source.key, *(targets.judge_stage(attack.setup, role).key for role in roles))
    stage = Stage("judged", f"{source.label}, judged", params, upstream)

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        where = device()
        panel = judges(attack.setup)
        networks = {"target": attack.target().model, **{role: t.model for role, t in panel.items()}}
        for network in networks.values():
            network.to(where)
        synthesise = attack.load_prior().synthesise
        tensors: dict[str, Tensor] = {}
        for name, latents in (("reconstructions", made.latents), ("prior_samples", made.initial)):
            if name == "reconstructions" and made.images is not None:
                seen = evaluation.judge(made.images.flatten(0, 1), networks)
            else:
                seen = evaluation.judge(latents.flatten(0, 1), networks, synthesise=synthesise)
            for role, (features, logits) in seen.items():
                tensors[f"{name}.{role}.features"] = features.half()
                if role != "verifier":
                    tensors[f"{name}.{role}.logits"] = logits.half()
        return tensors, {}

    tensors = store.get(stage, make, of=source).tensors
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

    tensors = store.get(stage, make, of=trained.stage).tensors
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
def pictures(attack: Attack, people: Sequence[int] | Tensor, candidates: Tensor) -> Tensor:
    """(k,m,3,S,S) in [0,1] on the CPU: of each of the ``people`` (k,) the final images ``candidates`` (k,m)."""
    made = reconstruct(attack)
    index = torch.as_tensor(people)[:, None] * made.latents.shape[1] + candidates
    images = made.render(index.flatten(), lambda latents: synthesise(attack.load_prior(), latents))
    return images.unflatten(0, index.shape)


@torch.inference_mode()
def starting_pictures(attack: Attack, latents: Tensor) -> Tensor:
    """(k,m,3,S,S) in [0,1] on the CPU: what the attack's prior makes of latents (k,m,d)."""
    faces = attack.load_prior()
    return synthesise(faces, latents.flatten(0, 1)).unflatten(0, latents.shape[:2])


@torch.inference_mode()
def synthesise(faces: Prior, latents: Tensor, *, batch: int = 64) -> Tensor:
    """(N,3,S,S) in [0,1] on the CPU."""
    return torch.cat([faces.synthesise(part.float().to(device())).cpu() for part in latents.split(batch)])
