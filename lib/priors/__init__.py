"""Image priors: what a face looks like, learned from public people only. Two kinds behind one interface."""

from lib.priors.augment import augment
from lib.priors.eigenfaces import Eigenfaces
from lib.priors.gan import GanConfig, generator_from_checkpoint, train_gan
from lib.priors.interface import Block, Prior, clamp_through
from lib.priors.registry import PRIORS, TRAINERS, Trainer, prior_from_state
from lib.priors.stylegan import Discriminator, Generator, StyleSpec, spec_for
from lib.priors.styleprior import StylePrior

__all__ = [
    "PRIORS",
    "TRAINERS",
    "Block",
    "Discriminator",
    "Eigenfaces",
    "GanConfig",
    "Generator",
    "Prior",
    "StylePrior",
    "StyleSpec",
    "Trainer",
    "augment",
    "clamp_through",
    "generator_from_checkpoint",
    "prior_from_state",
    "spec_for",
    "train_gan",
]
