"""What dpsgd needs of Opacus: the clipped and noisy step, and the accounts.

Source: Abadi et al., Deep Learning with Differential Privacy (CCS 2016); Mironov, Rényi Differential Privacy (CSF
2017).
"""

from __future__ import annotations

import warnings

import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.optimizers import DPOptimizer
from torch import Tensor

from lib.errors import UserError

TOLERANCE = 0.01  # of epsilon, relative


class ClippedSteps(DPOptimizer):
    """Opacus' optimiser, which clips in fp32 whatever the gradients were computed in, and takes note of how many
    photos were clipped (``clipped``: (B,) bool of the last step)."""

    clipped: Tensor

    def pre_step(self, closure=None) -> bool:
        norms = []
        for parameter in self.params:
            parameter.grad_sample = parameter.grad_sample.float()
            norms.append(parameter.grad_sample.flatten(1).norm(dim=1))
        self.clipped = torch.stack(norms).norm(dim=0) > self.max_grad_norm
        return super().pre_step(closure)


def spent(noise: float, *, rate: float, steps: int, delta: float) -> float:
    """epsilon after ``steps`` steps on a share ``rate`` of the photos each; 0 before the first."""
    if not steps:
        return 0.0
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings():  # the order it chooses may be at the end of its list: the bound holds
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))


def noise_for(epsilon: float, *, rate: float, steps: int, delta: float, name: str) -> float:
    """The noise multiplier that spends ``epsilon`` or a little less.

    Raises:
        UserError: no noise spends so little.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=TOLERANCE * epsilon,
            )
    except ValueError as error:
        raise UserError(
            f"{name}: expected an epsilon that some noise can reach in {steps} steps at delta {delta:g}, got "
            f"{epsilon:g}; raise epsilon or delta"
        ) from error
