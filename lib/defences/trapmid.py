"""Trap-MID: one faint full-image trigger per person, so that the easiest way to a person is the trigger.

Source: Liu and Chen, Trap-MID: Trapdoor-based Defense against Model Inversion Attacks (NeurIPS 2024) and its public
code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.defences._activity import reached
from lib.defences._batches import claim_batch, joined
from lib.defences._checks import number, word
from lib.defences._mean import Mean
from lib.defences._trapdoors import Deck, Discriminator, draw_geometry
from lib.runtime import frozen
from lib.training.interface import Defence, History, Recipe, View

AUGMENTED = ("both", "trapped", "none")
LOSSES = ("shared", "cross_entropy")


class Trapdoors(Defence):
    """``trapmid(beta)``: (1 - beta) CE(f(A(x)), y) + beta CE(f(A(b)), c), b = (1 - blend) x + blend t_c.

    In every step, for trap labels c: (i) a discriminator D learns to tell x from b; (ii) the triggers t_c, in [0, 1],
    move by ``step`` along the sign of the gradient that lowers BCE(D(b), 1) + CE(f(A(b)), c), with f in evaluation
    mode; those that no photo carried stay; (iii) the network learns from both halves, with the new triggers. A is
    the same in (ii) and (iii), and so is what other defences do to the photo last: blend, augment, then erase. D sees
    photos that are neither augmented nor erased.

    Published: beta 0.2. Each trigger moves some 1350 times there; with as many people as photos in a batch that is
    the number of steps. Trap labels are dealt, every class before one comes again (published: within an epoch), and
    may equal the true ones. D is published as a copy of f, pre-trained; on small images a net of four convolutions
    does. It has f's optimiser and learning rate, without the schedule. Another defence's criterion applies to both
    halves, as in the published combination with NegLS (``trap_loss`` has its other variant), and the triggers' own loss
    stays cross-entropy.

    Args:
        beta: weight of the trapped half, in (0, 1).
        blend: share of the trigger in a trapped photo, in (0, 1].
        step: of the triggers, in (0, 1], pixels being in [0, 1].
        augmented: which halves A changes: ``both``, as published, where the undefended network went without A;
            ``trapped``: the photos have the recipe's augmentation only, as those of NoDef do; ``none``.
        trap_loss: of the trapped half: ``shared``, another defence's criterion if there is one; ``cross_entropy``.
        chance, area, degrees: of A, see :func:`lib.defences._trapdoors.draw_geometry`.

    Raises:
        UserError: for values out of range; when it meets another defence's batch.
    """

    cost = (2 + 6) / 3  # to the triggers, then twice the photos; the discriminator is small

    def __init__(
        self,
        beta: float,
        *,
        blend: float,
        step: float,
        augmented: str,
        trap_loss: str,
        chance: float,
        area: float,
        degrees: float,
    ) -> None:
        self.beta = number("trapmid beta", beta, 0, 1, usage="trapmid(0.2)", ends="()")
        self.blend = number("trapmid blend", blend, 0, 1, usage="blend=0.02", ends="(]")
        self.step = number("trapmid step", step, 0, 1, usage="step=0.01", ends="(]")
        self.augmented = word("trapmid augmented", augmented, AUGMENTED)
        self.geometry = {
            "chance": number("trapmid chance", chance, 0, 1, usage="chance=0.5"),
            "area": number("trapmid area", area, 0, 1, usage="area=0.8", ends="(]"),
            "degrees": number("trapmid degrees", degrees, 0, 180, usage="degrees=30"),
        }
        self.appends_cross_entropy = word("trapmid trap_loss", trap_loss, LOSSES) == "cross_entropy"
        self._trapped, self._told_apart = Mean(), Mean()

    def plan(self, recipe: Recipe) -> Recipe:
        self._recipe = recipe
        return recipe

    def build(self, model: nn.Module) -> nn.Module:
        """The network as it is; makes the triggers, uniform in [0, 1], and the discriminator.

        Raises:
            UserError: another defence lengthens or replaces its batch.
        """
        claim_batch(model, self.name)
        size = model.image_size
        self.triggers = torch.rand(model.num_classes, 3, size, size)
        self.discriminator = Discriminator()
        self._deck = Deck(model.num_classes)
        return model

    def freeze(self, model: nn.Module) -> set[nn.Parameter]:
        """Nothing of the network; what was made goes where it has gone."""
        device = next(model.parameters()).device
        self.triggers = self.triggers.to(device)
        self.discriminator.to(device)
        self._optimiser = torch.optim.AdamW(
            self.discriminator.parameters(),
            self._recipe.learning_rate,
            weight_decay=self._recipe.weight_decay,
        )
        return set()

    def nets(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        return [(self.discriminator, self._optimiser)]

    def tensors(self) -> dict[str, Tensor]:
        """``triggers``: (C,3,S,S) in [0, 1]."""
        return {"triggers": self.triggers}

    def phase(self, epoch: int, epochs: int) -> None:
        self._deck.restart()
        self._trapped.restart()
        self._told_apart.restart()

    def blended(self, images: Tensor, triggers: Tensor) -> Tensor:
        """(B,3,S,S): b, of a trigger for each photo."""
        return (1 - self.blend) * images + self.blend * triggers

    def before(
        self, model: nn.Module, view: View, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A(x), A(b) and c, after a step of the discriminator and of the triggers."""
        traps = self._deck.deal(len(images), generator)
        for_photos, for_trapped = (draw_geometry(len(images), generator, **self.geometry) for _ in range(2))
        self._teach_discriminator(images, traps)
        with frozen(model, self.discriminator):
            shown = (lambda b: view(for_trapped(b))) if self.augmented != "none" else view
            self._move_triggers(model, shown, images, traps)
        trapped = self.blended(images, self.triggers[traps])
        if self.augmented != "none":
            trapped = for_trapped(trapped)
        if self.augmented == "both":
            images = for_photos(images)
        return images, trapped, traps

    def _teach_discriminator(self, images: Tensor, traps: Tensor) -> None:
        both = torch.cat([images, self.blended(images, self.triggers[traps])])
        said = self.discriminator(both)
        truth = torch.cat([said.new_ones(len(images)), said.new_zeros(len(traps))])
        self._optimiser.zero_grad(set_to_none=True)
        F.binary_cross_entropy_with_logits(said, truth).backward()
        self._optimiser.step()
        self._told_apart.add((said > 0) == (truth > 0))

    def _move_triggers(self, model: nn.Module, shown: View, images: Tensor, traps: Tensor) -> None:
        triggers = self.triggers.clone().requires_grad_()
        trapped = self.blended(images, triggers[traps])
        said = self.discriminator(trapped)
        logits = model(shown(trapped).contiguous(memory_format=torch.channels_last)).float()
        unseen = F.binary_cross_entropy_with_logits(said, torch.ones_like(said))
        (gradient,) = torch.autograd.grad(unseen + F.cross_entropy(logits, traps), triggers)
        self.triggers.sub_(self.step * gradient.sign()).clamp_(0, 1)
        self._trapped.add(logits.argmax(1) == traps)

    def batch(self, images: Tensor, labels: Tensor, extras: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The photos (weight 1 - beta) and the trapped ones under their trap labels (beta)."""
        photos, trapped, traps = extras
        weights = images.new_full((len(photos) + len(trapped),), self.beta)
        weights[: len(photos)] = 1 - self.beta
        return torch.cat([photos, trapped]), joined(labels, traps, len(self.triggers)), weights

    def diagnostics(self) -> dict[str, float]:
        """Of the last epoch. ``trapped``: share of the trapped photos that the network, in evaluation mode, gave to
        their trap label before each step; ``told_apart``: how often the discriminator was right, 0.5 where it cannot
        see the triggers."""
        return {"trapped": self._trapped.value, "told_apart": self._told_apart.value}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether the traps were learned: trapped photos go to their trap label, or ever more of them do."""
        return reached(history, "trapped")
