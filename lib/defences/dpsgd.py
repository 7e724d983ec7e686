"""DP-SGD: every photo's gradient is clipped and noise added, so that no photo has much of a say.

Source: Abadi et al., Deep Learning with Differential Privacy (CCS 2016), through Opacus.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torchvision
from opacus import GradSampleModule
from torch import Tensor, nn

from lib.defences._batches import claim_batch
from lib.defences._checks import number, whole
from lib.defences._groups import with_groups
from lib.defences._mean import Mean
from lib.defences._private import ClippedSteps, noise_for, spent
from lib.errors import UserError
from lib.models.ir import ImprovedResidual
from lib.models.residual import Residual
from lib.training.interface import Defence, History, Recipe, View

NETWORKS = (Residual, ImprovedResidual, torchvision.models.VGG)  # others write over what they still need
COUPLING = ("before", "batch", "penalty")


class PrivateGradients(Defence):
    """``dpsgd(epsilon)``: AdamW on (sum_i g_i min(1, clip / |g_i|) + noise clip N(0, I)) / m, g_i of photo i.

    The noise is what spends (epsilon, delta) over the run by the accountant of Rényi DP for batches drawn at random
    (Poisson), as is customary. The loop's batches are shuffled epochs instead, for which this is an approximation.
    What holds for them without any gain from drawing, each photo being in one batch an epoch, is recorded beside it
    as ``epsilon_shuffled``: several times larger unless there is hardly any noise. Compared are trainings with and
    without what one photo adds to the gradients: the unit is the photo, not the person. What validation photos were
    used to choose is not accounted for.

    Batch norms become group norms; ``groupnorm`` is the control for that. With a defence whose loss couples photos,
    none of this would hold, so these are refused.

    Args:
        epsilon: above 0; the smallest that can be reached, some 0.2, depends on delta.
        delta: in (0, 1), below 1 / photos.
        clip: largest norm of a photo's gradient, above 0.
        groups: see :class:`lib.defences.groupnorm.GroupNormNetwork`.

    Raises:
        UserError: for values out of range; when it meets a network whose photos' gradients Opacus cannot tell apart,
            balanced batches, or a defence that couples photos.
    """

    cost = 3.0  # as measured: every photo's own gradients, layer by layer, beside the backward pass

    def __init__(self, epsilon: float, *, delta: float, clip: float, groups: int) -> None:
        self.epsilon = number("dpsgd epsilon", epsilon, 0, 1e6, usage="dpsgd(8)", ends="(]")
        self.delta = number("dpsgd delta", delta, 0, 1, usage="delta=0.00001", ends="()")
        self.clip = number("dpsgd clip", clip, 0, 1e6, usage="clip=1", ends="(]")
        self.groups = whole("dpsgd groups", groups, 1, usage="groups=32")
        self._optimiser: ClippedSteps | None = None
        self._hooked: GradSampleModule | None = None
        self._noise, self._rate, self._epoch = math.nan, math.nan, 1  # known with the photos
        self._steps = torch.zeros((), dtype=torch.int64)
        self._clipped = Mean()

    def build(self, model: nn.Module) -> nn.Module:
        """The network with group norms.

        Raises:
            UserError: its kind cannot be used, or another defence lengthens or replaces its batch.
        """
        claim_batch(model, self.name, weighs=False)
        if not isinstance(model.body, NETWORKS):
            raise UserError(
                f"{self.name}: expected a network of kind residual or ir, or torchvision's VGG, got "
                f"{type(model.body).__name__}, which writes over what each photo's gradient needs; choose another"
            )
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        return with_groups(model, self.groups)

    def optimise(
        self,
        optimiser: torch.optim.Optimizer,
        model: nn.Module,
        *,
        defences: Sequence[Defence],
        photos: int,
        recipe: Recipe,
    ) -> ClippedSteps:
        """The optimiser, on clipped and noisy gradients; hooks on the network compute each photo's.

        Raises:
            UserError: what would break the guarantee, or an epsilon out of reach.
        """
        self._check(defences, photos, recipe)
        self._rate = recipe.batch / photos
        self._epoch = photos // recipe.batch
        steps = round(recipe.steps * recipe.stop)
        self._noise = noise_for(self.epsilon, rate=self._rate, steps=steps, delta=self.delta, name=self.name)
        self._hooked = GradSampleModule(model, strict=False)  # buffers of ours are constants
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # photos have no gradient
        self._optimiser = ClippedSteps(
            optimiser, noise_multiplier=self._noise, max_grad_norm=self.clip, expected_batch_size=recipe.batch
        )
        self._optimiser.attach_step_hook(self._count)
        return self._optimiser

    def _check(self, defences: Sequence[Defence], photos: int, recipe: Recipe) -> None:
        coupling = [
            other.name
            for other in defences
            if other is not self
            and (
                any(getattr(type(other), member) is not getattr(Defence, member) for member in COUPLING)
                or getattr(getattr(other, "law", None), "value", None) == "image"
            )
        ]
        if coupling:
            raise UserError(
                f"{self.name}: expected defences that treat every photo by itself, got {', '.join(coupling)}; drop one"
            )
        if recipe.identities:
            raise UserError(
                f"{self.name}: expected shuffled photos, got balanced batches of {recipe.identities} people; set "
                "identities to 0"
            )
        if self.delta >= 1 / photos:
            raise UserError(
                f"{self.name}: expected delta below 1 / photos = {1 / photos:.2g}, got {self.delta:g}; lower delta"
            )

    def _count(self, optimiser: ClippedSteps) -> None:
        self._steps += 1
        self._clipped.add(optimiser.clipped)

    def phase(self, epoch: int, epochs: int) -> None:
        self._clipped.restart()

    def before(
        self, model: nn.Module, view: View, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> None:
        """The noise of this step comes from the defence's stream.

        Raises:
            TypeError: the loop kept its own optimiser (a defect of the loop).
        """
        if self._optimiser is None:
            raise TypeError(
                "dpsgd: the training loop did not ask for its optimiser; nothing would be private"
            )
        self._optimiser.generator = generator

    def tensors(self) -> dict[str, Tensor]:
        """``steps``: (), int64, taken so far."""
        return {"steps": self._steps}

    def deploy(self, model: nn.Module) -> nn.Module:
        """The network without hooks."""
        if self._hooked is not None:
            self._hooked.to_standard_module()
        return model

    def diagnostics(self) -> dict[str, float]:
        """``epsilon``: spent so far, for batches drawn at random. ``epsilon_shuffled``: what holds for shuffled epochs
        without any gain from drawing. ``noise``: the multiplier. ``clipped``: share of the photos in the last epoch
        whose gradient was cut."""
        steps = int(self._steps)
        passes = -(-steps // self._epoch)
        return {
            "epsilon": spent(self._noise, rate=self._rate, steps=steps, delta=self.delta),
            "epsilon_shuffled": spent(self._noise, rate=1.0, steps=passes, delta=self.delta),
            "noise": self._noise,
            "clipped": self._clipped.value,
        }

    @staticmethod
    def acted(history: History) -> bool:
        """Whether gradients were cut, and no more than a finite epsilon was spent."""
        return history[-1]["clipped"] > 0 and 0 < history[-1]["epsilon"] < math.inf
