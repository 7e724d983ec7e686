"""Image priors: what a face looks like, learned from public people only. All kinds behind one interface."""

from lib.priors.augment import augment
from lib.priors.conditional_gan import ConditionalGan, ConditionalSpec
from lib.priors.conditional_training import ConditionalGanConfig, train_conditional_gan
from lib.priors.eigenfaces import Eigenfaces, EigenfacesConfig
from lib.priors.gan import GanConfig, train_gan
from lib.priors.interface import Block, Prior, clamp_through
from lib.priors.inversion_gan import DcganSpec, InversionGan
from lib.priors.inversion_training import InversionGanConfig, train_inversion_gan
from lib.priors.registry import PRIORS, TRAINERS, Trainer, prior_from_state
from lib.priors.stylegan import Discriminator, Generator, StyleSpec, spec_for
from lib.priors.styleprior import StylePrior

__all__ = [
    "PRIORS",
    "TRAINERS",
    "Block",
    "ConditionalGan",
    "ConditionalGanConfig",
    "ConditionalSpec",
    "DcganSpec",
    "Discriminator",
    "Eigenfaces",
    "EigenfacesConfig",
    "GanConfig",
    "Generator",
    "InversionGan",
    "InversionGanConfig",
    "Prior",
    "StylePrior",
    "StyleSpec",
    "Trainer",
    "augment",
    "clamp_through",
    "prior_from_state",
    "spec_for",
    "train_conditional_gan",
    "train_gan",
    "train_inversion_gan",
]
