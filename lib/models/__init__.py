"""Networks behind one door: images in [0,1] in, penultimate features and logits out."""

from lib.models.classifier import Classifier, build_classifier, classifier_from, load_weights
from lib.models.external import ExternalClassifier, load_external
from lib.models.folding import folded
from lib.models.stages import Stages, stages_of

__all__ = [
    "Classifier",
    "ExternalClassifier",
    "Stages",
    "build_classifier",
    "classifier_from",
    "folded",
    "load_external",
    "load_weights",
    "stages_of",
]
