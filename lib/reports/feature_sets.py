"""Feature sets of notebook 07: a target's penultimate features of photos, erased photos and reconstructions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lib.data import Images
from lib.defences import build
from lib.features import FeatureSets
from lib.reports.workbook import Workbook
from lib.runtime import device, generator
from lib.stages import inversion, measures, targets
from lib.stages.inversion import Attack
from lib.training import predict

DRAWS = 4  # erasing draws per private photo


def feature_sets(
    book: Workbook, defence: str, *, erased_like: str, seed: int | None = None, budget: str | None = None
) -> FeatureSets:
    """Penultimate features of one target: private train, held-out and erased photos, reconstructions,
    prior samples.

    Args:
        erased_like: the defence whose erasing law makes the erased photos (also for NoDef).
        budget: of the attack; None is the study's.
    """
    attack = book.attack(defence, seed, budget=budget)
    trained = attack.target()
    photos = inversion.judge_photos(book.setup, trained, "target")
    judged = inversion.judge_reconstructions(attack)
    made = inversion.reconstruct(attack)
    kept = measures.kept_index(made.selected, made.latents.shape[1])
    aimed = judged["reconstructions"].labels[kept]
    sets = {
        "private_train": (photos["train"].features["target"], photos["train"].labels),
        "private_held_out": (photos["test"].features["target"], photos["test"].labels),
        "private_erased": _erased_features(attack, trained, book.world.train, erased_like),
        "held_out_erased": _erased_features(attack, trained, book.world.test, erased_like),
        "reconstructions": (judged["reconstructions"].features["target"][kept], aimed),
        "prior_samples": (judged["prior_samples"].features["target"][kept], aimed),
    }
    return FeatureSets({name: (x.numpy(), y.numpy()) for name, (x, y) in sets.items()})


def _erased_features(
    attack: Attack, trained: targets.Trained, images: Images, erased_like: str
) -> tuple[Tensor, Tensor]:
    """Draw by draw, in the order of the photos; what is fixed is hidden where the network's own training hid it."""
    (defence,) = build(erased_like, attack.setup.defences)
    again = defence.law.location in ("random", "toroidal")  # a fixed place gives the same photo each time
    index = torch.arange(len(images)).repeat(DRAWS if again else 1)
    photos = images.take(index)
    stream = generator(measures.SEED, "erased features")
    pixels = defence.source(photos.float(), index, attack.training_seed)
    view = defence.input(pixels, index, stream)
    pixels = view(pixels) if view else pixels
    shown = replace(photos, pixels=pixels.mul(255).round().byte())
    return predict(trained.model.to(device()), shown, device=device())[0], photos.labels
