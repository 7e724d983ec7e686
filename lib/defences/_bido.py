"""Bilateral dependency (BiDO): features should depend little on the photo and much on the person.

Source: Peng et al., Bilateral Dependency Optimization: Defending Against Model-inversion Attacks (KDD 2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.defences._activity import fell
from lib.defences._checks import number, whole
from lib.defences._dependence import gaussian_kernel, label_kernel
from lib.defences._mean import Mean
from lib.errors import UserError
from lib.models import stages_of
from lib.runtime import full_precision
from lib.training.interface import Defence, History, Recipe

STAGES = "stages"
SMALLEST_BATCH = 8


class Bilateral(Defence):
    """Cross-entropy + sum over taps z of lx d(x, z) - ly d(z, y), d being the subclass's measure of dependence.

    x is the photo as the network sees it (augmented, erased, normalised), z a tap's output with all its positions,
    both under a Gaussian kernel; y the label under a linear one.

    Args:
        lx, ly: weights, 0 or more. Without ly the features collapse.
        identities, photos: of a batch. 16 x 4 as published: what d(z, y) can reach depends on the number of
            people in a batch, so with other numbers ly means something else. 0 identities: shuffled batches of
            the recipe's size.
        layers: ``stages``, the outputs of the stages and the penultimate features, or names of modules.
        sigma: of the Gaussian kernels.

    Raises:
        UserError: for values out of range; when it meets a network without such layers.
    """

    def __init__(
        self,
        lx: float,
        ly: float,
        *,
        identities: int,
        photos: int,
        layers: str | Sequence[str],
        sigma: float,
    ) -> None:
        name = type(self).__module__.rpartition(".")[2]
        usage = f"{name}(0.05,0.5)"
        self.lx = number(f"{name} lx", lx, 0, 1e6, usage=usage)
        self.ly = number(f"{name} ly", ly, 0, 1e6, usage=usage)
        self.identities = whole(f"{name} identities", identities, 0, usage="identities=16")
        self.photos = whole(f"{name} photos", photos, 1, usage="photos=4")
        self.sigma = number(f"{name} sigma", sigma, 0, 1e6, usage="sigma=5", ends="(]")
        self.layers = layers if layers == STAGES else [layers] if isinstance(layers, str) else list(layers)
        if not self.layers:
            raise UserError(
                f"defence {name} layers: expected names of layers or {STAGES}, got none; write layers={STAGES}"
            )
        if self.identities and (self.identities < 2 or self.identities * self.photos < SMALLEST_BATCH):
            raise UserError(
                f"defence {name}: expected batches of at least 2 people and {SMALLEST_BATCH} photos, got "
                f"{self.identities} x {self.photos}; write identities=16,photos=4"
            )
        self._scale: Tensor | float = 1.0
        self._to_image, self._to_label = Mean(), Mean()

    def plan(self, recipe: Recipe) -> Recipe:
        """Balanced batches.

        Raises:
            UserError: shuffled batches that are too small for a kernel, or batches that another defence balances
                otherwise.
        """
        asked = self.identities * self.photos, self.identities
        if self.identities and recipe.identities and asked != (recipe.batch, recipe.identities):
            raise UserError(
                f"{self.name}: expected the batches of {recipe.batch} photos of {recipe.identities} people that are "
                f"planned before it, got {self.identities} people of {self.photos} photos each; give both the same"
            )
        if self.identities:
            return dataclasses.replace(
                recipe, batch=self.identities * self.photos, identities=self.identities
            )
        self._check(recipe)
        return recipe

    def optimise(
        self, optimiser: torch.optim.Optimizer, model: nn.Module, *, recipe: Recipe, **rest: Any
    ) -> torch.optim.Optimizer:
        """Leaves the optimiser alone.

        Raises:
            UserError: too few photos for a kernel.
        """
        self._check(recipe)
        return optimiser

    def _check(self, recipe: Recipe) -> None:
        if recipe.batch < SMALLEST_BATCH:
            raise UserError(
                f"{self.name}: expected batches of at least {SMALLEST_BATCH} photos, got {recipe.batch}; raise "
                "batch, or give more photos"
            )

    def taps(self, model: nn.Module) -> list[nn.Module]:
        """The modules of ``layers``.

        Raises:
            UserError: a name that the network does not have.
        """
        self._scale = getattr(model, "std", 1.0)
        if self.layers == STAGES:
            return [*(stage[-1] for stage in stages_of(model).stages), model.body]
        modules = dict(model.named_modules())
        for name in self.layers:
            if name not in modules:
                known = ", ".join(list(modules)[1:6])
                raise UserError(
                    f"{self.name}: expected layers of the network ({known}, ...), got {name!r}; correct `layers`"
                )
        return [modules[name] for name in self.layers]

    def compared(self, kernel: Tensor) -> Tensor:
        """What :meth:`dependence` takes of a kernel (m,m): another (m,m), made once per batch and variable."""
        raise NotImplementedError

    def dependence(self, first: Tensor, second: Tensor) -> Tensor:
        """The measure, of two :meth:`compared` kernels."""
        raise NotImplementedError

    def phase(self, epoch: int, epochs: int) -> None:
        self._to_image.restart()
        self._to_label.restart()

    def penalty(self, images: Tensor, labels: Tensor, taps: list[Tensor]) -> Tensor:
        """Sum over taps of lx d(x, z) - ly d(z, y); taps on frozen layers, which nothing can change, are left out."""
        total = images.new_zeros(())
        with full_precision(images.device):
            x = self.compared(gaussian_kernel(images.float() / self._scale, self.sigma))
            y = self.compared(label_kernel(labels))
            for tap in taps:
                if not tap.requires_grad:
                    continue
                z = self.compared(gaussian_kernel(tap.float(), self.sigma))
                to_image, to_label = self.dependence(x, z), self.dependence(z, y)
                self._to_image.add(to_image)
                self._to_label.add(to_label)
                total = total + self.lx * to_image - self.ly * to_label
        return total

    def diagnostics(self) -> dict[str, float]:
        """``x_z`` and ``z_y``: mean dependence of features on photos and on labels, over the taps and batches of
        the last epoch, without the weights. ``penalty``: lx x_z - ly z_y, which training lowers."""
        x_z, z_y = self._to_image.value, self._to_label.value
        return {"x_z": x_z, "z_y": z_y, "penalty": self.lx * x_z - self.ly * z_y}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether the penalty fell during training (in a record of before it was kept: its first term) and the
        dependence on labels did not, as it does where features collapse. It falls a little without the defence, too,
        as weights of 0 show, which only measure: tests ask for less than that."""
        kept = "penalty" if "penalty" in history[-1] else "x_z"
        return fell(history, kept) and not fell(history, "z_y")
