"""MID: logits come through a noisy bottleneck that is penalised for what it lets through about the photo.

Source: Wang et al., Improving Robustness to Model Inversion Attacks via Mutual Information Regularization (AAAI
2021), by the variational bound of Alemi et al., Deep Variational Information Bottleneck (ICLR 2017).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.defences._activity import fell
from lib.defences._checks import number, word
from lib.defences._mean import Mean
from lib.errors import UserError
from lib.runtime import generator
from lib.training.interface import Defence, History

INFERENCES = ("sampled", "mean")
UNITS = ("raw", "product")
SHIFT = 5.0  # sigma starts near softplus(-5) = 0.0067
SMALLEST_SIGMA = 1e-7


def gaussian(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """(mu, sigma), each (B,k) fp32, of what a linear layer (B,2k) says; sigma is a standard deviation."""
    mu, s = statistics.float().chunk(2, 1)
    return mu, F.softplus(s - SHIFT)


def divergence(statistics: Tensor) -> Tensor:
    """(B,): KL(N(mu, sigma^2) || N(0, I)) in nats, summed over the k dimensions; 4.503 k at mu = s = 0."""
    mu, sigma = gaussian(statistics)
    return 0.5 * (mu**2 + sigma**2 - 1 - 2 * sigma.clamp_min(SMALLEST_SIGMA).log()).sum(1)


class Bottleneck(nn.Module):
    """features (B,d) -> logits (B,C) of z = mu + sigma eps, (B,k) with k = d // 2.

    In training the noise is of the global stream, which the loop seeds; in evaluation of a stream of its own that
    begins anew with every :meth:`eval`, so that answers depend on what was asked since then and nothing else.

    Args:
        sampled: whether there is noise in evaluation, too.
    """

    def __init__(self, size: int, classes: int, *, sampled: bool) -> None:
        super().__init__()
        self.latent = size // 2
        self.statistics = nn.Linear(size, 2 * self.latent)
        self.classify = nn.Linear(self.latent, classes)
        self.sampled = sampled
        self._stream: torch.Generator | None = None

    def forward(self, features: Tensor) -> Tensor:
        # in bf16 most of a noise of 0.0067 would round away: training and evaluation would see another sigma
        with torch.autocast(features.device.type, enabled=False):
            mu, sigma = gaussian(self.statistics(features.float()))
            if self.training:
                return self.classify(mu + sigma * torch.randn_like(mu))
            return self.classify(mu + sigma * self._noise(mu) if self.sampled else mu)

    def _noise(self, like: Tensor) -> Tensor:
        if self._stream is None or self._stream.device != like.device:
            self._stream = generator(0, "bottleneck", device=like.device)
        return torch.randn(like.shape, generator=self._stream, device=like.device)

    def restart(self) -> None:
        """Begin the noise of evaluation anew."""
        self._stream = None

    def train(self, mode: bool = True) -> Bottleneck:
        if not mode:
            self.restart()
        return super().train(mode)


class MutualInformation(Defence):
    """``mid(beta)``: cross-entropy + beta KL, the KL a mean over photos and a sum over the k latent dimensions.

    Args:
        beta: 0 or more; 0 leaves the noisy head alone.
        unit: ``raw``, the published beta: 0.003 to 0.02 with k = 1024. The KL grows with k, so beta k is what
            carries over to another network: 0.003 at k = 1024 is 0.012 at k = 256. ``product``: the number given
            is beta k (published: 3 to 20), and beta is it divided by this network's k.
        inference: ``sampled``, as published: the noise is drawn in evaluation and under attack, too, and answers
            are random. ``mean``: z = mu.

    Raises:
        UserError: for values out of range; when it meets a network whose head is not linear.
    """

    def __init__(self, beta: float, *, unit: str, inference: str) -> None:
        self.given = number("mid beta", beta, 0, math.inf, usage="mid(0.01)", ends="[)")
        self.unit = word("mid unit", unit, UNITS)
        self.inference = word("mid inference", inference, INFERENCES)
        self.beta = math.nan  # known with the network
        self._latent = 0
        self._divergence = Mean()

    def build(self, model: nn.Module) -> nn.Module:
        """The network with a bottleneck for a head; its features stay those of its body, before the bottleneck."""
        head = getattr(model, "head", None)
        if type(head) is not nn.Linear or head.in_features < 2:
            raise UserError(
                f"{self.name}: expected a network with a linear head of at least two features, got "
                f"{type(head).__name__}; drop `cosine` from the network"
            )
        model.head = Bottleneck(head.in_features, head.out_features, sampled=self.inference == "sampled")
        self._latent = model.head.latent
        self.beta = self.given / self._latent if self.unit == "product" else self.given
        return model

    def taps(self, model: nn.Module) -> list[nn.Module]:
        return [model.head.statistics]

    def phase(self, epoch: int, epochs: int) -> None:
        self._divergence.restart()

    def penalty(self, images: Tensor, labels: Tensor, taps: list[Tensor]) -> Tensor:
        """beta times the mean KL of the batch."""
        found = divergence(taps[0])
        self._divergence.add(found)
        return self.beta * found.mean()

    def diagnostics(self) -> dict[str, float]:
        """``kl``: mean KL per photo in the last epoch, in nats; ``beta_k``: beta times k, as applied."""
        return {"kl": self._divergence.value, "beta_k": self.beta * self._latent}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether the divergence fell during training."""
        return fell(history, "kl")
