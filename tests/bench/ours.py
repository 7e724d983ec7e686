"""The library's own pipeline: the attack, then one look of every judge at images and photos."""

from __future__ import annotations

from unittest import mock

import torch

from lib import attacks, evaluation
from lib.attacks import ppa, search
from lib.attacks.ppa import PpaBudget
from tests.bench.clock import Clock
from tests.bench.measures import Outcome, accuracy, mean_prdc
from tests.bench.world import World


def run(world: World, budget: PpaBudget, *, seed: int, clock: Clock) -> Outcome:
    """Attack and judge all labels of the world, measure for measure what the published pipeline computes.

    The photos' features are charged in full to this run, though they are stored for all attacks of a setup.
    """
    with (
        mock.patch.object(search, "search", clock.around("search", search.search)),
        mock.patch.object(ppa, "refine", clock.around("optimise", ppa.refine)),
        mock.patch.object(ppa, "select", clock.around("select", ppa.select)),
    ):
        found = attacks.get("ppa").invert(world.target, world.prior, world.labels, budget=budget, seed=seed)
    judges = {"evaluator": world.evaluator, "verifier": world.verifier}
    with clock.phase("references"):
        photos = {name: seen[0] for name, seen in evaluation.judge(world.photos, judges).items()}
    with clock.phase("judge"):
        seen = evaluation.judge(found.latents.flatten(0, 1), judges, synthesise=world.prior.synthesise)
        everyone = found.labels.repeat_interleave(budget.candidates)
        rows = torch.arange(len(found.labels))[:, None]
        kept = (rows * budget.candidates + found.selected).flatten()
        features, logits = seen["evaluator"]
        fake, labels = features[kept], everyone[kept]
        measures = accuracy(logits, everyone, "_all") | accuracy(logits[kept], labels)
        measures["frechet"] = evaluation.frechet_distance(photos["evaluator"], fake)
        classes = evaluation.prdc_per_class(photos["evaluator"], world.photo_labels, fake, labels)
        measures |= mean_prdc(list(classes.values()))
        for name in judges:
            distance = evaluation.nearest_same_class(
                seen[name][0][kept], labels, photos[name], world.photo_labels
            )
            measures[f"distance_{name}"] = distance.mean().item()
    return Outcome(found.initial, found.latents, found.selected, found.confidence, measures)
