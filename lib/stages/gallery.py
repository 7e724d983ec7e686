"""Private photos enrolled with a verifier: whose face a reconstruction is, by a judge of faces, not of classes."""

from __future__ import annotations

from torch import Tensor

from lib import evaluation
from lib.setups import Setup
from lib.stages import inversion, targets
from lib.stages.inversion import Judged


class Gallery:
    """Private training photos enrolled with a verifier, as many for everybody, and its threshold, fixed on
    natural impostors.

    Attributes:
        photos: the private photos of ``train`` and ``test``, seen by the verifier of this name.
    """

    def __init__(self, photos: dict[str, Judged], verifier: str, *, false_accept_rate: float) -> None:
        self.photos, self.verifier = photos, verifier
        train, test = photos["train"], photos["test"]
        index = evaluation.balanced_references(train.labels)
        self.enrolled, self.people = train.features[verifier][index], train.labels[index]
        scores = evaluation.gallery_scores(test.features[verifier], self.enrolled, self.people)
        _, impostor = evaluation.genuine_and_impostor(scores, test.labels)
        self.threshold = evaluation.threshold_at(impostor, false_accept_rate=false_accept_rate)

    def verdicts(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``verifier_match`` at the false-accept rate and ``verifier_rank1_accuracy``, (N,) bool."""
        scores = evaluation.gallery_scores(features, self.enrolled, self.people)
        return {
            "verifier_match": evaluation.matches(scores, labels, threshold=self.threshold),
            "verifier_rank1_accuracy": evaluation.rank_one(scores, labels),
        }


def of_setup(setup: Setup) -> Gallery:
    """The gallery of the setup's own verifier."""
    photos = inversion.judge_photos(setup, targets.judge(setup, "verifier"), "verifier")
    return Gallery(photos, "verifier", false_accept_rate=setup.false_accept_rate)
