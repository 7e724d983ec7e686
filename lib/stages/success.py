"""What the judges say of an attack, per identity: the raw material of paired comparisons between attacks; a record."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib import statistics, store
from lib.stages import gallery, inversion, measures, records
from lib.stages.exhibits import shown_people
from lib.stages.gallery import Gallery
from lib.stages.inversion import Attack
from lib.statistics import Interval, PairedComparison
from lib.store import Stage

VERIFIER = "verifier"
QUALITY = 95  # of the faces kept, as JPEG


@dataclass(frozen=True)
class Outcome:
    """One attack run, as every judge sees what it kept.

    Attributes:
        hits: judge (every evaluator, ``panel_majority``, ``panel_unanimous``, ``verifier``) to (K, m) bool: which
            kept reconstructions it takes for the person, those first that the target likes most; people in ascending
            order.
        before: the same of the prior samples that they began as.
        people: (K,) the identities attacked, ascending.
        faces: (k, 3, S, S) in [0, 1]: of the :func:`lib.stages.exhibits.shown_people`, the reconstruction that the
            target likes best; none of an attack that leaves some of them out.
        cost: of :class:`lib.attacks.Reconstructions`, per person. history: rows of its optimisation.
        of: which images these are (:func:`lib.store.content`), where that was kept.
    """

    attack: Attack
    hits: dict[str, Tensor]
    before: dict[str, Tensor]
    people: np.ndarray
    faces: Tensor
    cost: dict[str, float]
    history: list[dict[str, float]]
    of: str | None = None

    @property
    def passes(self) -> float:
        """Images through the target per person, forward and backward alike, with those that passed it before the
        attack began."""
        counted = self.cost["target_forward"] + self.cost["target_backward"]
        return counted + inversion.images_before(self.attack) / len(self.people)

    @property
    def kept(self) -> int:
        """Reconstructions of each person, m."""
        return next(iter(self.hits.values())).shape[1]

    def per_person(self, judge: str = "main", *, best: int | None = None) -> np.ndarray:
        """(K,) share of each person's kept reconstructions, or of those ``best`` ones that the target likes most."""
        return _shares(self.hits[judge][:, :best])

    def per_person_before(self, judge: str = "main") -> np.ndarray:
        """(K,) share of the prior samples they began as."""
        return _shares(self.before[judge])


def measure(attacks: Sequence[Attack]) -> list[Outcome]:
    """Outcomes of attacks, in their order, run if need be."""
    return [_outcome(attack) for attack in attacks]


def stage(attack: Attack) -> Stage:
    """Of the record."""
    return records.judged_stage("outcome", attack)


def is_there(attack: Attack) -> bool:
    """Whether an outcome is recorded, or needs no new attack."""
    made = inversion.reconstruction_stage(attack, attack.target_stage())
    return store.exists(stage(attack)) or store.exists(made)


def has_images(attack: Attack) -> bool:
    """Whether the reconstructions are there, and the network they are of."""
    target = attack.target_stage()
    return store.exists(target) and store.exists(inversion.reconstruction_stage(attack, target))


def _outcome(attack: Attack) -> Outcome:
    found = store.get(stage(attack), lambda _: _record(attack), of=records.source(attack))
    parts: dict[str, dict[str, Tensor]] = {"hits": {}, "before": {}}
    for name, tensor in found.tensors.items():
        kind, _, judge = name.partition(".")
        if kind in parts:
            parts[kind][judge] = tensor
    faces = _unpacked(found.tensors["faces"], attack.setup.image_size)
    people = found.tensors["people"].numpy()
    meta = found.meta
    return Outcome(attack, *parts.values(), people, faces, meta["cost"], meta["history"], meta.get("of"))


def _record(attack: Attack) -> tuple[dict[str, Tensor], dict[str, object]]:
    made, judged = inversion.reconstruct(attack), inversion.judge_reconstructions(attack)
    kept, enrolled = measures.kept_index(made.selected, made.latents.shape[1]), gallery.of_setup(attack.setup)
    tensors = {"people": made.labels, "faces": _packed(_best_faces(attack, made.labels, made.selected))}
    for kind, what in (("hits", "reconstructions"), ("before", "prior_samples")):
        verdicts = _verdicts(attack, measures.take(judged[what], kept), enrolled, made.selected.shape)
        tensors |= {f"{kind}.{judge}": right for judge, right in verdicts.items()}
    return tensors, {"cost": made.cost, "history": made.history}


def _best_faces(attack: Attack, people: Tensor, selected: Tensor) -> Tensor:
    """(k,3,S,S) of the shown people; (0,3,S,S) if the attack leaves some of them out."""
    shown = torch.tensor(shown_people(attack.target().model.num_classes))
    if not torch.isin(shown, people).all():
        return torch.zeros(0, 3, attack.setup.image_size, attack.setup.image_size)
    rows = torch.searchsorted(people, shown)
    return inversion.pictures(attack, rows, selected[rows, :1])[:, 0]


def _packed(faces: Tensor) -> Tensor:
    """Faces (k,3,S,S) in a row, as the bytes of a JPEG; empty for none."""
    if not len(faces):
        return torch.zeros(0, dtype=torch.uint8)
    row = torch.cat(list(faces.mul(255).round().byte()), 2).movedim(0, 2)
    file = io.BytesIO()
    Image.fromarray(row.numpy()).save(file, "JPEG", quality=QUALITY)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _unpacked(packed: Tensor, size: int) -> Tensor:
    """Inverse of :func:`_packed`."""
    if not len(packed):
        return torch.zeros(0, 3, size, size)
    row = np.asarray(Image.open(io.BytesIO(packed.numpy().tobytes()), formats=["JPEG"]).convert("RGB"))
    return torch.stack(torch.from_numpy(row.copy()).movedim(2, 0).float().div(255).split(size, 2))


def _verdicts(
    attack: Attack, seen: inversion.Judged, enrolled: Gallery, shape: tuple[int, ...]
) -> dict[str, Tensor]:
    found = {role: hits["top1"] for role, hits in measures.accuracy_hits(attack.setup, seen).items()}
    found[VERIFIER] = enrolled.verdicts(seen.features[VERIFIER], seen.labels)["verifier_match"]
    return {judge: hits.view(shape) for judge, hits in found.items()}


def _shares(hits: Tensor) -> np.ndarray:
    return hits.double().mean(1).numpy()


# --- over the attack seeds of one model and attack -----------------------------------------------------


def over_seeds(outcomes: Sequence[Outcome], judge: str = "main", *, best: int | None = None) -> np.ndarray:
    """(K,) mean over attack seeds, of what is kept or of the ``best`` of it."""
    return np.stack([outcome.per_person(judge, best=best) for outcome in outcomes]).mean(0)


def fewest(*sides: Sequence[Outcome]) -> int:
    """How many reconstructions of a person all sides have: the more an attack keeps, the worse is the last of them, so
    that attacks and budgets are compared by equally many (metrics specification, section 1)."""
    return min(outcome.kept for side in sides for outcome in side)


def mean(outcomes: Sequence[Outcome], judge: str = "main", *, people: np.ndarray | None = None) -> Interval:
    """Over people (all, or those given), attack seeds averaged before."""
    values = over_seeds(outcomes, judge)
    if people is not None:
        values = values[np.isin(outcomes[0].people, people)]
    return statistics.clustered_mean(values, np.arange(len(values)), seed=measures.SEED)


def shared_seeds(*sides: Sequence[Outcome]) -> set[int]:
    """Attack seeds that all sides have."""
    return set.intersection(*({one.attack.attack_seed for one in side} for side in sides))


def paired(*sides: Sequence[Outcome]) -> list[list[Outcome]]:
    """Each side's outcomes of the attack seeds that all have; all outcomes where they share none."""
    shared = shared_seeds(*sides)
    return [[one for one in side if not shared or one.attack.attack_seed in shared] for side in sides]


def compare(first: Sequence[Outcome], second: Sequence[Outcome], judge: str = "main") -> PairedComparison:
    """First minus second, paired by person, over the people that both attack (one may attack fewer), the best of what
    both keep and, where there are such, the attack seeds that both have."""
    first, second = paired(first, second)
    best = fewest(first, second)
    both = [np.isin(a[0].people, b[0].people) for a, b in ((first, second), (second, first))]
    values = (
        over_seeds(side, judge, best=best)[kept] for side, kept in zip((first, second), both, strict=True)
    )
    return statistics.compare_paired(*values, seed=measures.SEED)


def gain(outcomes: Sequence[Outcome], judge: str = "main") -> Interval:
    """Over the prior samples that they began as, paired by person."""
    before = np.stack([outcome.per_person_before(judge) for outcome in outcomes]).mean(0)
    return statistics.compare_paired(over_seeds(outcomes, judge), before, seed=measures.SEED).difference


def passes(outcomes: Sequence[Outcome]) -> float:
    """Images through the target per person; mean over seeds."""
    return float(np.mean([outcome.passes for outcome in outcomes]))
