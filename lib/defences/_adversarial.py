"""What the defences share that train on photos moved along the network's own gradient."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from lib.defences._batches import claim_batch, main_classes
from lib.defences._checks import number, whole, word
from lib.defences._mean import Mean
from lib.defences._pgd import held_statistics, perturbed
from lib.training.interface import Defence, View

INNER_STATISTICS = ("track", "hold")
SMALLEST_EPS = 1e-6  # a tenth of which is what fp32 can still tell apart near 1
UNIT = 0.5  # a length on the scale [-1, 1], in pixels in [0, 1]


class Adversarial(Defence):
    """Base: crafts photos by a few steps of PGD on the network as it is trained, through the step's view.

    Lengths are the publications', on a scale of [-1, 1]; pixels here are in [0, 1] and are moved half as far.

    Args:
        eps: largest change of a pixel, in [1e-6, 2].
        steps: of PGD. step: the size of one, as a share of eps.
        bn_inner: ``track``, as in the public code: the network is in training mode, and its batch norms collect
            the mean and variance of every inner pass, too. ``hold``: batch statistics, not collected.
        targeted: whether photos move towards the given labels instead of away.
    """

    exact = True  # bf16 rounds a photo by up to 0.002: a smaller perturbation would be lost, others would outgrow eps

    def __init__(self, eps: float, *, steps: int, step: float, bn_inner: str, targeted: bool) -> None:
        name = type(self).__module__.rpartition(".")[2]
        self.eps = number(f"{name} eps", eps, SMALLEST_EPS, 2, usage=f"{name}(0.001)")
        self.steps = whole(f"{name} steps", steps, 1, usage="steps=5")
        self.step = number(f"{name} step", step, 0, 2, usage="step=0.2", ends="(]")
        self.bn_inner = word(f"{name} bn_inner", bn_inner, INNER_STATISTICS)
        self.targeted = targeted
        trained = 6 if targeted else 3  # on the photos and the moved ones, or on the moved ones alone
        self.cost = (2 * self.steps + trained) / 3
        self._hit, self._began = Mean(), Mean()
        self._furthest = torch.zeros(())

    def build(self, model: nn.Module) -> nn.Module:
        """The network as it is.

        Raises:
            UserError: another defence lengthens or replaces its batch.
        """
        claim_batch(model, self.name)
        return model

    def phase(self, epoch: int, epochs: int) -> None:
        self._hit.restart()
        self._began.restart()

    def craft(
        self, model: nn.Module, view: View, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(B,3,S,S): the photos, moved. How many were hit is counted one step before the end, in a pass that is
        made anyway."""
        said: list[Tensor] = []
        held = held_statistics(model) if self.bn_inner == "hold" else contextlib.nullcontext()
        with held:
            moved = perturbed(
                model,
                images,
                labels,
                eps=UNIT * self.eps,
                step=UNIT * self.eps * self.step,
                steps=self.steps,
                targeted=self.targeted,
                generator=generator,
                view=view,
                seen=said.append,
            )
        for mean, logits in ((self._began, said[0]), (self._hit, said[-1])):
            as_labelled = logits.argmax(1) == main_classes(labels)
            mean.add(as_labelled if self.targeted else ~as_labelled)
        furthest = (moved - images).abs().max() / UNIT
        self._furthest = torch.maximum(self._furthest.to(images.device), furthest)
        return moved

    def tensors(self) -> dict[str, Tensor]:
        """``furthest``: (), the largest change of a pixel so far, on the scale of eps."""
        return {"furthest": self._furthest}

    def diagnostics(self) -> dict[str, float]:
        """``success``: share of the moved photos of the last epoch that the network gave to the target (untargeted:
        to a wrong person) one step before the end. ``gained``: what the steps before added to that. ``furthest``: the
        largest change of a pixel over the run, on the scale of eps."""
        return {
            "success": self._hit.value,
            "gained": self._hit.value - self._began.value,
            "furthest": float(self._furthest),
        }
