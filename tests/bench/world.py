"""What both sides attack: a target, a StyleGAN prior, two judges and private photos."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.attacks.ppa import PpaBudget
from lib.models import build_classifier
from lib.priors import StylePrior, StyleSpec
from lib.priors.stylegan import build_networks
from lib.runtime import device, generator
from lib.setups import load_setup
from lib.stages import priors, targets


@dataclass(frozen=True)
class World:
    """Networks, labels and photos; nothing here is changed by a run.

    Attributes:
        evaluator: gives attack accuracy, feature distance, Fréchet distance and PRDC; in the published
            pipeline two networks (Inception-v3 of the evaluator and of FID) do what it does here.
        verifier: gives the second feature distance, as FaceNet does there.
        photos: (P, 3, S, S) uint8, the same number for each label; ``photo_labels`` (P,) ascending.
    """

    name: str
    target: nn.Module
    evaluator: nn.Module
    verifier: nn.Module
    prior: StylePrior
    labels: list[int]
    photos: Tensor
    photo_labels: Tensor


def shipped_world(people: int, photos: int) -> World:
    """The undefended ``lfw64`` target, the StyleGAN prior and the judges that come with the repository.

    The private photos do not come with it. Noise of their size takes their place: it costs the same, and only
    the distances to it mean nothing.
    """
    setup = load_setup("lfw64")
    return _world(
        "lfw64",
        targets.target(setup, "none", 0).model,
        targets.judge(setup, "main").model,
        targets.judge(setup, "verifier").model,
        priors.load(setup, "stylegan"),
        people,
        photos,
    )


def small_world(people: int, photos: int = 4) -> World:
    """Random networks of the size of the ``digits`` setup: for tests and for memory, where what they have
    learnt changes nothing."""
    setup = load_setup("digits")
    size = setup.image_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        networks = [
            build_classifier(spec, people, size).eval()
            for spec in (setup.target.network, setup.evaluators["main"].network, setup.verifier.network)
        ]
    spec = StyleSpec(**setup.priors["stylegan"]["networks"])
    return _world("digits", *networks, StylePrior(*build_networks(spec, seed=1)), people, photos)


def budget_for(world: World, **changes: object) -> PpaBudget:
    """MIDRE's budget with the step size that the setup gives to its StyleGAN (w has another scale)."""
    constants = load_setup(world.name).attacks["ppa"]["stylegan"]
    return PpaBudget(**{**constants, **changes})


def _world(
    name: str,
    target: nn.Module,
    evaluator: nn.Module,
    verifier: nn.Module,
    prior: StylePrior,
    people: int,
    photos: int,
) -> World:
    where = device()
    labels = list(range(people))
    count, size = people * photos, prior.image_size
    noise = generator(0, "bench", "photos")
    return World(
        name,
        target.to(where),
        evaluator.to(where),
        verifier.to(where),
        prior.to(where),
        labels,
        torch.randint(0, 256, (count, 3, size, size), generator=noise, dtype=torch.uint8),
        torch.tensor(labels).repeat_interleave(photos),
    )
