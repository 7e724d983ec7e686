"""One training loop for targets, judges and all defences."""

from lib.training.augment import augment
from lib.training.interface import Augmentation, Defence, Recipe, View
from lib.training.loop import TrainingResult, accuracy, predict, train_classifier

__all__ = [
    "Augmentation",
    "Defence",
    "Recipe",
    "TrainingResult",
    "View",
    "accuracy",
    "augment",
    "predict",
    "train_classifier",
]
