"""Soft actor-critic (Haarnoja et al. 2018, 'Soft actor-critic algorithms and applications') for episodes of
one step, many agents at once: their weights are stacked and applied with batched matrix products.

The next state of a one-step episode does not count, so that what the critics learn is the reward itself:
target networks, next actions and the discount are left out, for they would change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG_STD = (-20.0, 2.0)
TINY = 1e-6  # holds log(1 - a^2) finite where tanh rounds to 1


class Layers:
    """K networks of equal shape, linear with ReLU between; agent k's weights come from ``generators[k]``."""

    def __init__(self, sizes: Sequence[int], generators: Sequence[torch.Generator]) -> None:
        self.parameters: list[Tensor] = []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            draws = torch.stack([torch.rand(fan_in + 1, fan_out, generator=g) for g in generators])
            draws = (2 * draws - 1) / math.sqrt(fan_in)  # the bias is the last row
            self.parameters += [draws[:, :-1].contiguous(), draws[:, -1:].contiguous()]

    def to(self, device: torch.device) -> None:
        self.parameters = [parameter.to(device).requires_grad_() for parameter in self.parameters]

    def __call__(self, inputs: Tensor) -> Tensor:
        """(K, B, in) to (K, B, out)."""
        weights, biases = self.parameters[::2], self.parameters[1::2]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs = torch.baddbmm(bias, inputs, weight).relu()
        return torch.baddbmm(biases[-1], inputs, weights[-1])


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample a tanh-Gaussian: a = tanh(mean + std * noise), and log density per coordinate, in nats.

    Args:
        mean, log_std: (..., d). noise: what broadcasts to them, standard normal.

    Returns:
        actions in (-1, 1) and their log densities, both (..., d).
    """
    actions = (mean + log_std.exp() * noise).tanh()
    normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    return actions, normal - (1 - actions.square() + TINY).log()


class Replay:
    """The last ``capacity`` transitions of K agents that act in step: state, action, reward, on the device."""

    def __init__(self, agents: int, capacity: int, dim: int, device: torch.device) -> None:
        self.rows = torch.zeros(agents, capacity, 2 * dim + 1, device=device)
        self.capacity, self.written = capacity, 0
        self._agents = torch.arange(agents, device=device)[:, None]

    def __len__(self) -> int:
        """Transitions held per agent."""
        return min(self.written, self.capacity)

    def add(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """One transition per agent, over the oldest once full: (K, d), (K, d), (K,)."""
        self.rows[:, self.written % self.capacity] = torch.cat([states, actions, rewards[:, None]], 1)
        self.written += 1

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The transitions at these fractions (K, B) in [0, 1) of what is held, so with replacement: states
        beside actions (K, B, 2 d), rewards (K, B)."""
        index = (uniform * len(self)).long().clamp_max(len(self) - 1)
        rows = self.rows[self._agents, index]
        return rows[..., :-1], rows[..., -1]


class Agents:
    """K independent agents with d states and d actions; nothing passes from one to another.

    Twin critics learn rewards, the actor follows the lower of the two. The entropy is held at a target by a
    temperature per agent. Entropies are per dimension of the action, so that a temperature of 1 is one of
    1/d on the whole log density and the customary target, -d, is -1.

    Attributes:
        actor: d to the mean and log standard deviation of d actions. critics: 2 d to a reward.
        log_temperature: (K,).
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        dim: int,
        *,
        hidden: int,
        learning_rate: float,
        target_entropy: float = -1.0,
        twins_identical: bool = False,
        device: torch.device,
    ) -> None:
        """Args:
        generators: one per agent, for its initial weights.
        learning_rate: Adam's, of critics, actor and log-temperature.
        target_entropy: nats per dimension.
        twins_identical: start both critics alike; they then stay alike and the second has no use.
        """
        self.dim, self.target_entropy = dim, target_entropy
        self.actor = Layers((dim, hidden, hidden, 2 * dim), generators)
        first, second = (Layers((2 * dim, hidden, hidden, 1), generators) for _ in range(2))
        if twins_identical:
            second.parameters = [parameter.clone() for parameter in first.parameters]
        self.critics = (first, second)
        self.log_temperature = torch.zeros(len(generators), device=device, requires_grad=True)
        for layers in (self.actor, *self.critics):
            layers.to(device)
        self._critic_parameters = [*first.parameters, *second.parameters]
        self._critic_step, self._actor_step, self._temperature_step = (
            torch.optim.Adam(parameters, lr=learning_rate, fused=True)
            for parameters in (self._critic_parameters, self.actor.parameters, [self.log_temperature])
        )

    def act(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(K, B, d), and noise that broadcasts to it, to actions (K, B, d) and the mean over dimensions of
        their log densities (K, B)."""
        mean, log_std = self.actor(states).chunk(2, -1)
        actions, log_density = squash(mean, log_std.clamp(*LOG_STD), noise)
        return actions, log_density.mean(-1)

    def values(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """What the critics expect of states beside actions (K, B, 2 d): twice (K, B)."""
        first, second = (critic(pairs)[..., 0] for critic in self.critics)
        return first, second

    def update(self, pairs: Tensor, rewards: Tensor, noise: Tensor) -> None:
        """One step of critics, actor and temperature; pairs and rewards from :meth:`Replay.draw`, noise as
        in :meth:`act`. Losses are means over an agent's batch, summed over agents."""
        with torch.enable_grad():
            errors = sum((value - rewards).square() for value in self.values(pairs))
            _step(self._critic_step, 0.5 * errors.mean(1).sum(), self._critic_parameters)

            states = pairs[..., : self.dim]
            actions, log_density = self.act(states, noise)
            value = torch.minimum(*self.values(torch.cat([states, actions], -1)))
            temperature = self.log_temperature.detach().exp()[:, None]
            _step(self._actor_step, (temperature * log_density - value).mean(1).sum(), self.actor.parameters)

            excess = (log_density.detach() + self.target_entropy).mean(1)
            _step(self._temperature_step, -(self.log_temperature * excess).sum(), [self.log_temperature])


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, parameters: list[Tensor]) -> None:
    """Of these parameters alone: the actor's loss leaves no gradient in the critics, nor computes it."""
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimiser.step()
