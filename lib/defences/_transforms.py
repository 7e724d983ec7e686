"""What the data augmentations that serve as controls share: torchvision's transforms inside named streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lib.defences._checks import number
from lib.defences._mean import Mean
from lib.errors import UserError
from lib.training.interface import Defence, History, View, probabilities


@contextlib.contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """torchvision draws from the CPU's global stream; within, that stream follows from ``generator``, and
    afterwards it is as it was."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Mixing(Defence):
    """Base of the controls that mix each photo, and its label, with another of the batch.

    Args:
        transform: torchvision's, of images (B,3,S,S) and labels.
        alpha: of the Beta distribution that the share comes from, above 0.
    """

    def __init__(self, transform: Any, alpha: float) -> None:
        name = type(self).__module__.rpartition(".")[2]
        self.alpha = number(f"{name} alpha", alpha, 0, 1e3, usage=f"{name}(1)", ends="(]")
        self._transform = transform
        self._classes = 0
        self._moved = Mean()

    def build(self, model: nn.Module) -> nn.Module:
        """Leaves the network alone.

        Raises:
            UserError: it stands behind a defence that weighs the rows of its own batch, whose weights mixing would
                undo.
        """
        other = getattr(model, "weighed_by", None)
        if other:
            raise UserError(
                f"{self.name}: expected to stand before {other}, whose rows it would mix; write it first"
            )
        self._classes = model.num_classes
        return model

    def phase(self, epoch: int, epochs: int) -> None:
        self._moved.restart()

    def before(
        self, model: nn.Module, view: View, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Photos and label distributions (B,C), mixed by one share per batch."""
        q = probabilities(labels, images.new_empty(0, self._classes))
        with drawing_from(generator):
            mixed, mixed_labels = self._transform(alpha=self.alpha)(images, q)
        self._moved.add((q - mixed_labels).clamp_min(0).sum(1))
        return mixed, mixed_labels

    def batch(self, images: Tensor, labels: Tensor, extras: Any) -> tuple[Tensor, Tensor, Tensor]:
        mixed, mixed_labels = extras
        return mixed, mixed_labels, images.new_ones(len(mixed))

    def diagnostics(self) -> dict[str, float]:
        """``moved``: mean share of a photo's label that went to another person, in the last epoch."""
        return {"moved": self._moved.value}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether labels were mixed."""
        return history[-1]["moved"] > 0
