"""AT-AT: anti-adversarial training, a network that obeys small targeted perturbations.

Source: Anti-Adversarial Training (ICLR 2026) and its public code. The account: what inversion follows are robust
features, so a network should learn from the others, the reverse of adversarial training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lib.defences._activity import reached
from lib.defences._adversarial import Adversarial
from lib.defences._batches import joined, main_classes
from lib.defences._checks import number, word
from lib.errors import UserError
from lib.training.interface import History, View, probabilities

TARGETS = ("others", "next")


class AntiAdversarialTraining(Adversarial):
    """``atat(eps)``: CE(f(x), y) + weight CE(f(x'), y'), x' = PGD from x towards a random other person y'.

    Published: eps 5e-4, steps of 1e-4, 5 of them, on a scale of [-1, 1]; pixels here are in [0, 1], so eps 5e-4
    moves them by at most 2.5e-4, that is 0.064 of 255 levels. The code's losses are sums over the batch; ours are
    means, of the same ratio. Its photos x and x' pass the network one after the other; ours are one batch, with common
    batch statistics, and there is no option for the other. Another defence's view applies to both halves: PGD sees the
    mask that the network is trained behind, and has no gradient inside. Its criterion applies to the photos alone: what
    NegLS leaves without a lower bound would make the network obey without end.

    x' is crafted in fp32 and trained on in fp32, also where the loop would train in bf16.

    Args:
        eps: largest change of a pixel, in [1e-6, 2].
        weight: of the second term, 0 or more.
        targets: ``others``: y' is uniform over the other people. ``next``, the public code's: it draws over all and
            takes the next one where it drew y, which gives y + 1 twice its share.
        steps, step, bn_inner: see :class:`lib.defences._adversarial.Adversarial`.

    Raises:
        UserError: for values out of range; when it meets fewer than two people or another defence's batch.
    """

    appends_cross_entropy = True

    def __init__(
        self, eps: float, *, weight: float, targets: str, steps: int, step: float, bn_inner: str
    ) -> None:
        super().__init__(eps, steps=steps, step=step, bn_inner=bn_inner, targeted=True)
        self.targets = word("atat targets", targets, TARGETS)
        self.weight = number("atat weight", weight, 0, 1e3, usage="weight=0.08")
        self._classes = 0

    def build(self, model: nn.Module) -> nn.Module:
        if model.num_classes < 2:
            raise UserError(f"{self.name}: expected at least 2 people, got {model.num_classes}; add some")
        self._classes = model.num_classes
        return super().build(model)

    def before(
        self, model: nn.Module, view: View, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(x', y')."""
        draw = others if self.targets == "others" else all_or_next
        targets = draw(labels, self._classes, generator)
        return self.craft(model, view, images, targets, generator), targets

    @staticmethod
    def acted(history: History) -> bool:
        """Whether the network learned to obey: moved photos go to their target, or ever more of them do."""
        return reached(history, "success")

    def batch(self, images: Tensor, labels: Tensor, extras: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The photos (weight 1) and the moved ones under their targets."""
        moved, targets = extras
        weights = images.new_ones(len(images) + len(moved))
        weights[len(images) :] = self.weight
        return torch.cat([images, moved]), joined(labels, targets, self._classes), weights


def others(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """(B,) int64: for each photo a class drawn uniformly from those it is not, mixed photos none of theirs."""
    allowed = probabilities(labels, torch.empty(0, classes, device=labels.device)) == 0
    allowed = allowed | ~allowed.any(1, keepdim=True)  # a photo of everybody
    return torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]


def all_or_next(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """(B,) int64: a class drawn uniformly from all, the next one where it is the photo's own."""
    own = main_classes(labels)
    drawn = torch.randint(classes, own.shape, generator=generator, device=own.device)
    return torch.where(drawn == own, (drawn + 1) % classes, drawn)
