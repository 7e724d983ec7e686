"""One number with an interval, and whether it is established."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from lib import statistics
from lib.attacks.referee import descent, flags, judges
from lib.attacks.referee.ensemble import Chosen, Entry, Member
from lib.attacks.referee.flags import Curve, Diagnostic, Flag
from lib.errors import UserError
from lib.statistics import Interval

SEED = 0


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on. What is None could not be had; its flag says so.

    Attributes:
        entries, chosen: of :func:`lib.attacks.referee.ensemble.combine`.
        hits: evaluator -> member -> (K, m) bool, whether it takes a reconstruction for the person; the first
            evaluator is the main one.
        verifier: member -> (K, m) bool, matches. prior_verifier: the same of the prior samples they began as.
        target_right, evaluator_right, photo_labels: (N,) hits on real test photos, by the target and the main
            evaluator, and whose photos they are.
        curves: :attr:`Member.search` -> (passes, per-identity success (K,)) under growing budgets.
        diagnostic: of the defence.
        adapted: whether the adaptive members' ingredients address what the defence does; True where there is none.
    """

    entries: Mapping[Member, Entry]
    chosen: Chosen
    hits: Mapping[str, Mapping[Member, Tensor]]
    verifier: Mapping[Member, Tensor] | None = None
    prior_verifier: Mapping[Member, Tensor] | None = None
    target_right: Tensor | None = None
    evaluator_right: Tensor | None = None
    photo_labels: Tensor | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    diagnostic: Diagnostic | None = None
    adapted: bool = True


@dataclass(frozen=True)
class Verdict:
    """What the referee says of one target.

    Attributes:
        accuracy: AttAcc of the best reconstruction per identity, by the main evaluator, over identities.
        right: (K,) bool, whether the main evaluator takes an identity's best reconstruction for it.
        members: a row per member: ``attack, sees, target_confidence, attack_accuracy, chosen`` (identities
            whose reconstruction counts).
        flags: all checks.
    """

    accuracy: Interval
    right: np.ndarray
    members: pd.DataFrame
    flags: tuple[Flag, ...]

    @property
    def established(self) -> bool:
        """Whether every flag is clear."""
        return all(flag.raised is False for flag in self.flags)

    @property
    def is_floor(self) -> bool:
        """Whether it is not established, and all doubts are that more may leak."""
        return not self.established and all(flag.raised is False or flag.floor for flag in self.flags)

    @property
    def outcome(self) -> str:
        if self.established:
            return "established"
        return "not established, a floor: more may leak" if self.is_floor else "not established"

    def sentence(self) -> str:
        """The verdict in words."""
        if self.established:
            return f"AttAcc {self.accuracy.percent()}."
        raised = [flag.name for flag in self.flags if flag.raised]
        reasons = raised + [f"{flag.name} (open)" for flag in self.flags if flag.raised is None]
        return f"{self.outcome}; AttAcc {self.accuracy.percent()}; {'; '.join(reasons)}."

    def table(self) -> pd.DataFrame:
        """A row per flag: ``state, value, limit, finding``."""
        rows = [
            {"flag": f.name, "state": f.state, "value": f.value, "limit": f.limit, "finding": f.sentence}
            for f in self.flags
        ]
        return pd.DataFrame(rows).set_index("flag")


def judge(evidence: Evidence) -> Verdict:
    """The verdict on some evidence.

    Raises:
        UserError: no evaluator, or a judge that has not seen every reconstruction.
    """
    if not evidence.hits:
        raise UserError("referee: expected the hits of at least one evaluator, got none; judge the entries")
    chosen, entries = evidence.chosen, evidence.entries
    seen = {**evidence.hits, "verifier": evidence.verifier, "verifier before": evidence.prior_verifier}
    for role, values in seen.items():
        if values is not None:
            _check(role, values, entries)
    counted = {role: chosen.pick(hits) for role, hits in evidence.hits.items()}
    main = next(iter(counted))
    alone = {
        member: evidence.hits[main][member].gather(1, chosen.image[i][:, None])[:, 0]
        for i, member in enumerate(chosen.members)
    }
    people = np.arange(len(counted[main]))
    accuracy = statistics.clustered_mean(counted[main].double(), people, seed=SEED)
    verified = evidence.verifier is not None and evidence.prior_verifier is not None
    raised = (
        flags.ensemble_incomplete(chosen, adapted=evidence.adapted),
        descent.still_falling(entries, chosen),
        flags.confidence_not_reached(chosen),
        flags.diagnostic_inactive(evidence.diagnostic),
        flags.black_box_beats_white_box(chosen),
        judges.member_alone_leaks_more(counted[main], alone),
        judges.judge_disagrees_on_photos(
            evidence.target_right, evidence.evaluator_right, evidence.photo_labels
        ),
        judges.evaluators_disagree(counted),
        flags.collapsed(entries, chosen),
        flags.not_saturated(evidence.curves, chosen),
        judges.verifier_not_above_prior(
            chosen.pick(evidence.verifier) if verified else None,
            chosen.pick(evidence.prior_verifier) if verified else None,
        ),
    )
    return Verdict(accuracy, counted[main].numpy(), _members(chosen, alone), raised)


def _check(role: str, values: Mapping[Member, Tensor], entries: Mapping[Member, Entry]) -> None:
    for member, entry in entries.items():
        shape = tuple(values[member].shape) if member in values else "none"
        if shape != tuple(entry.images.shape[:2]):
            raise UserError(
                f"referee: expected {tuple(entry.images.shape[:2])} answers of {role} about {member.label}, got "
                f"{shape}; show it every reconstruction"
            )


def _members(chosen: Chosen, alone: Mapping[Member, Tensor]) -> pd.DataFrame:
    rows = []
    for i, member in enumerate(chosen.members):
        rows.append(
            {
                "attack": member.label,
                "sees": member.sees,
                "target_confidence": float(chosen.confidence[i].mean()),
                "attack_accuracy": float(alone[member].double().mean()),
                "chosen": int((chosen.member == i).sum()),
            }
        )
    return pd.DataFrame(rows).set_index("attack")
