"""Notebook 17: the referee's number counted in another way, and a gap in the ensemble that it must notice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lib.attacks.referee import Chosen, Member, Verdict
from lib.attacks.referee.flags import ROLES, SEEDS, ensemble_incomplete
from lib.reports import referee_report
from lib.reports.workbook import Workbook
from lib.stages import success


def counted_again(book: Workbook, found: Mapping[str, Verdict]) -> bool:
    """Whether the number of every model is the share of people of whom the main evaluator recognises the one
    reconstruction, of all members', that the target is surest of."""
    main, runs = next(iter(book.setup.evaluators)), referee_report.runs(book)
    for model, verdict in found.items():
        members = sorted(
            (run for run in runs if run.defence == model), key=lambda run: referee_report.member(run).label
        )
        sure = np.concatenate([referee_report.confidence(run).numpy() for run in members], axis=1)
        hits = np.concatenate([outcome.hits[main].numpy() for outcome in success.measure(members)], axis=1)
        recognised = hits[np.arange(len(hits)), sure.argmax(1)]
        if not np.isclose(recognised.mean(), verdict.accuracy.value):
            return False
    return True


def notices_a_missing_seed(book: Workbook) -> bool:
    """Whether an ensemble with every attack under two seeds is complete, and is not once the second seed of any one
    kind of attack is left out."""
    attacks = dict.fromkeys(replace(referee_report.member(run), seed=0) for run in referee_report.runs(book))
    whole = [replace(attack, seed=seed) for attack in attacks for seed in range(SEEDS)]
    parts = [[one for one in whole if one.role != role or one.seed == 0] for role in ROLES]
    return not _incomplete(whole) and all(map(_incomplete, parts))


def _incomplete(members: Sequence[Member]) -> bool:
    """Whether the flag is raised for an ensemble of these members."""
    nobody = torch.zeros(len(members), 0)
    return bool(ensemble_incomplete(Chosen(tuple(members), nobody, nobody.long())).raised)
