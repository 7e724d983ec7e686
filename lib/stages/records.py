"""Records: what the tables say of a target or an attack, kept when its networks and images are gone.

A target takes minutes to hours and megabytes, an attack's images more; what is measured of them is a few bits per
person or photo. These stages hold no more than that, so they are committed (``results/records``), and a study that
outgrows one machine or one day goes on from what is there instead of training everything anew.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib import evaluation, store
from lib.robustness import log_odds
from lib.setups import Setup
from lib.stages import inversion, targets
from lib.stages.inversion import Attack
from lib.store import Stage

SPLITS = ("train", "validation", "test")
TRAINING = ("steps", "diagnostics", "history", "validation_accuracy", "seconds")
"""What is kept of a target's own metadata."""


@dataclass(frozen=True)
class Answers:
    """A target's answers about the private photos, and what is known of its training.

    Attributes:
        right, right_top5: split -> (N,) bool: whether the first, or one of the first five, answers is the person.
        log_odds: split -> (N,) of the true person, :func:`lib.robustness.log_odds`.
        labels: split -> (N,) whose photos they are.
        training: ``steps``, ``history`` and ``diagnostics`` of its training.
    """

    right: dict[str, Tensor]
    right_top5: dict[str, Tensor]
    log_odds: dict[str, Tensor]
    labels: dict[str, Tensor]
    training: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.training["steps"]


def source(attack: Attack) -> Stage:
    """The images that an attack's records are of."""
    return inversion.reconstruction_stage(attack, attack.target_stage())


def judged_stage(kind: str, attack: Attack, *, version: int = 1) -> Stage:
    """Of a record of what all judges say of an attack."""
    setup, images = attack.setup, source(attack)
    roles = (*setup.evaluators, "verifier") if setup.has_photos else ()
    params = {
        "setup": setup.name,
        "judges": list(setup.evaluators),
        "false_accept_rate": setup.false_accept_rate,
    }
    upstream = (images.key, *(targets.judge_stage(setup, role).key for role in roles))
    return Stage(kind, f"{images.label}, {kind}", params, upstream, version=version)


def answers_stage(target: Stage) -> Stage:
    """Of a target's stage."""
    params = {"setup": target.params.get("setup", "")}
    return Stage("answers", f"{target.label}, its answers", params, (target.key,))


def answers(setup: Setup, defence: str, seed: int, multiple: float | None = None) -> Answers:
    """Load them, or ask the target (which is trained if need be)."""
    network = targets.target_stage(setup, defence, seed, multiple or targets.headline(setup, defence))
    return _answers(setup, network, lambda: targets.target(setup, defence, seed, multiple))


def answers_of(attack: Attack) -> Answers:
    """Of the target that is attacked."""
    return answers(attack.setup, attack.defence, attack.training_seed, attack.multiple)


def _answers(setup: Setup, network: Stage, load: Any) -> Answers:
    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        trained = load()
        tensors: dict[str, Tensor] = {}
        for split, seen in inversion.judge_photos(setup, trained, "target").items():
            logits = seen.logits["target"]
            for top in (1, 5):
                right = evaluation.hits(logits, seen.labels, k=min(top, logits.shape[1]))
                tensors[f"{split}.top{top}"] = right
            tensors[f"{split}.log_odds"] = log_odds(logits, seen.labels).float()
            tensors[f"{split}.labels"] = seen.labels
        return tensors, {"training": {name: trained.meta[name] for name in TRAINING if name in trained.meta}}

    found = store.get(answers_stage(network), make, of=network)
    kinds = ("top1", "top5", "log_odds", "labels")
    parts = ({split: found.tensors[f"{split}.{kind}"] for split in SPLITS} for kind in kinds)
    return Answers(*parts, found.meta["training"])


def pack(rows: Any) -> Tensor:
    """JSON values as bytes, small; NaN is allowed."""
    return torch.frombuffer(bytearray(zlib.compress(json.dumps(rows).encode(), 9)), dtype=torch.uint8)


def unpack(packed: Tensor) -> Any:
    """Inverse of :func:`pack`."""
    return json.loads(zlib.decompress(packed.numpy().tobytes()))
