"""RLB-MI, reinforcement-learning-based black-box model inversion (Han et al., CVPR 2023), from scores.

For each identity an agent learns to choose latents: an episode is one action, its reward how sure the target
is of the image made from it. What the target recognised best during all episodes is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.attacks.chunks import run_chunks
from lib.attacks.interface import Callback, Reconstructions, check_inputs, networks, storable
from lib.attacks.knowledge import NOTHING, Knowledge
from lib.attacks.losses import cross_entropy
from lib.attacks.oracle import Oracle, OracleAccess, QueryBudget, oracle_for
from lib.attacks.sac import Agents, Replay
from lib.attacks.selection import Best, Ranking, select
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint

if TYPE_CHECKING:
    from lib.models import Classifier
    from lib.priors import Prior

NAME = "rlb"
SEES = "scores"
MARGIN_FLOOR = 1e-7
BLOCK = 50  # episodes whose noise is drawn at once
REPORT_EVERY = 100  # episodes


@dataclass(frozen=True, kw_only=True)
class RlbBudget(QueryBudget):
    """Defaults: the published attack, without the accidents of its code.

    The published state update s' = alpha s + (1 - alpha) a is run with alpha = 0, so that the latent is the
    action. An episode then costs one query instead of three: the two images of the reward are one, and the
    agent's later test rollout is an episode like any other, so that the best episode is kept instead.

    Attributes:
        candidates: best episodes kept per identity for the final selection.
        steps: episodes per identity, one query each.
        learning_rate: Adam's, of the agents' networks.
        rank_by: how the target chooses among the candidates: "logit", its score of the plain image (the
            published code), or its mean "confidence" over random views (as in PPA).
        hidden: width of the agents' two hidden layers.
        buffer: transitions remembered per agent. batch: of them per update; no update before there are more.
        updates: of the agent per episode; ``work`` does not count them.
        action_scale: latents lie within this many standard deviations of the prior's mean, coordinate by
            coordinate. 1 is the published box, (-1, 1) for standard normal latents.
        weights: of the reward's log p_y of the state's image, log p_y of the action's image (here the same
            one) and log margin.
        target_entropy: of the policy, nats per dimension.
        pool: prior samples (``truncation``, moved into the box) asked about once for all identities and put
            into every agent's memory and candidates before its first episode. 0: none, as published.
        query_cap: must pay for all steps; none is left out.
        reference: as the published code does by accident, one noise value for all dimensions and the whole
            batch, twin critics that are identical, and a target entropy of -d for the mean log density, so
            that the temperature falls at every update. (Its equal random streams for all identities are not
            reproduced.)
    """

    candidates: int = 8
    steps: int = 40_000
    learning_rate: float = 5e-4
    keep: int = 1
    rank_by: Ranking = "logit"
    hidden: int = 256
    buffer: int = 1_000_000
    batch: int = 256
    updates: int = 1
    action_scale: float = 1.0
    weights: tuple[float, float, float] = (2.0, 2.0, 8.0)
    target_entropy: float = -1.0
    pool: int = 0
    reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("hidden", "buffer", "batch", "updates")
        self.require_positive("action_scale")
        object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.weights) != 3 or not all(0 <= w < float("inf") for w in self.weights):
            raise UserError(
                f"budget weights: expected three numbers of at least 0, got {self.weights}; use e.g. (2, 2, 8)"
            )
        if not -float("inf") < self.target_entropy < float("inf"):
            raise UserError(
                f"budget target_entropy: expected a finite number, got {self.target_entropy}; use e.g. -1"
            )
        self.require_choice("rank_by", "confidence", "logit")
        if self.pool != 0:
            self.require_count("pool")
        if self.pool > self.buffer:
            raise UserError(
                f"budget pool: expected at most the buffer of {self.buffer}, got {self.pool}; raise the buffer"
            )
        if self.buffer <= self.batch:
            raise UserError(
                f"budget buffer: expected more than the batch of {self.batch}, or agents never learn, got "
                f"{self.buffer}; raise it"
            )
        if self.candidates > self.steps:
            raise UserError(
                f"budget candidates: expected at most the {self.steps} steps, got {self.candidates}; raise steps"
            )
        self.require_cap(self.steps, "that this budget spends", "steps, pool, candidates or views")

    @property
    def pool_queries(self) -> int:
        return self.pool

    @property
    def step_queries(self) -> int:
        return 1

    def short(self) -> Self:
        few = max(2, self.candidates)  # a pool of a batch, so that every episode has its update
        return replace(self, steps=few, views=2, pool=self.batch, query_cap=None)


Budget = RlbBudget


def invert(
    target: Classifier | Oracle,
    prior: Prior,
    labels: Sequence[int] | Tensor,
    *,
    budget: RlbBudget,
    seed: int,
    knowledge: Knowledge = NOTHING,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
) -> Reconstructions:
    """Reconstruct every label; arguments, result and errors as in :func:`lib.attacks.ppa.invert`.

    The target may be an :class:`lib.attacks.oracle.Oracle` that reveals scores. ``initial`` holds the first
    episodes, those of untrained agents; ``history`` the episodes' mean -log p_y and p_y.

    Raises:
        UserError: also an oracle whose cap this budget would exceed, before the first query.
    """
    labels = check_inputs(target, prior, labels, gradients=False)
    cap = budget.query_cap and budget.query_cap * len(labels)
    oracle = oracle_for(target, reveals="scores", cap=cap)
    with frozen(*networks(target, prior)):
        access = OracleAccess(oracle, prior, attack=NAME, most=budget.most_queries(len(labels)))
        return run_chunks(
            access,
            labels,
            partial(_attack, access, budget=budget, seed=seed, callback=callback),
            name=NAME,
            budget=budget,
            seed=seed,
            prepare=partial(_prepare, access, budget=budget, seed=seed),
            callback=callback,
            checkpoint=checkpoint,
        )


def log_score_and_reward(
    logits: Tensor, labels: Tensor, weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """log p_y and the reward, w1 log p_y + w2 log p_y + w3 log max(1e-7, p_y - max of the other p), eq. 3-5
    of the paper at alpha = 0; (B, C) and (B,) to (B,) each."""
    log_p = logits.float().log_softmax(1)
    mine = F.one_hot(labels, logits.shape[1]).bool()
    log_score = log_p.gather(1, labels[:, None])[:, 0]
    return log_score, _reward(log_score, log_p.masked_fill(mine, -torch.inf).amax(1), weights)


def every_label(logits: Tensor, labels: Tensor, weights: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """:func:`log_score_and_reward` of all images for all labels, (B, C) and (K,) to (B, K) each, in memory of that
    size: the likeliest other class is the first or the second of an image."""
    log_p = logits.float().log_softmax(1)
    log_score = log_p[:, labels]
    most, where = log_p.topk(2, 1)
    other = torch.where(where[:, :1] == labels, most[:, 1:], most[:, :1])
    return log_score, _reward(log_score, other, weights)


def _reward(log_score: Tensor, log_other: Tensor, weights: tuple[float, float, float]) -> Tensor:
    first, second, third = weights
    margin = (log_score.exp() - log_other.exp()).clamp_min(MARGIN_FLOOR)
    return (first + second) * log_score + third * margin.log()


def _prepare(
    access: OracleAccess, labels: Tensor, *, budget: RlbBudget, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The box's centre and half width (d,), and the pool (S, d) with every identity's answers (K, S)."""
    centre, deviation = access.moments(generator=generator(seed, NAME, "scale"))
    half = budget.action_scale * deviation
    shared = {"centre": centre, "half": half}
    if not budget.pool:
        return {}, shared
    stream = generator(seed, NAME, "pool")
    samples = access.sample(budget.pool, generator=stream, truncation=budget.truncation)
    actions = ((samples - centre) / half).clamp(-1, 1)
    labels = labels.to(access.device)
    answers = []
    with torch.no_grad():
        for part in actions.split(max(1, budget.chunk * budget.candidates)):
            logits = access.logits(access.images(storable(centre + half * part)))
            answers.append(torch.stack(every_label(logits, labels, budget.weights)))
    log_scores, rewards = torch.cat(answers, 1).transpose(1, 2)
    return {"pool_log_scores": log_scores, "pool_rewards": rewards}, shared | {"pool": actions}


def _attack(
    access: OracleAccess,
    labels: Tensor,
    prepared: dict[str, Tensor],
    *,
    budget: RlbBudget,
    seed: int,
    callback: Callback | None,
) -> dict[str, Tensor]:
    """One chunk: k labels on the device, one agent for each."""
    centre, half = prepared["centre"], prepared["half"]
    dim, names, device = len(centre), labels.tolist(), access.device
    agents = Agents(
        [generator(seed, NAME, "weights", label) for label in names],
        dim,
        hidden=budget.hidden,
        learning_rate=budget.learning_rate,
        target_entropy=-dim if budget.reference else budget.target_entropy,
        twins_identical=budget.reference,
        device=device,
    )
    noise = Noise(names, dim, budget=budget, seed=seed, device=device)
    memory = Replay(len(names), min(budget.buffer, budget.steps + budget.pool), dim, device)
    best = Best(len(names), budget.candidates, dim, device)
    for index in range(budget.pool):
        action = prepared["pool"][index].expand(len(names), -1)
        memory.add(noise.state(index), action, prepared["pool_rewards"][:, index])
        best.offer(storable(centre + half * action), prepared["pool_log_scores"][:, index])
    first = torch.empty(len(names), budget.candidates, dim, device=device)
    history = torch.empty(budget.steps, 2, device=device)
    with torch.no_grad():
        for step in range(budget.steps):
            states = noise.state(budget.pool + step)
            actions = agents.act(states[:, None], noise.episode(step))[0][:, 0]
            latents = storable(centre + half * actions)
            answer = access.logits(access.images(latents))
            log_scores, rewards = log_score_and_reward(answer, labels, budget.weights)
            memory.add(states, actions, rewards)
            best.offer(latents, log_scores)
            if step < budget.candidates:
                first[:, step] = latents
            history[step] = torch.stack([-log_scores.mean(), log_scores.exp().mean()])
            if len(memory) > budget.batch:
                for _ in range(budget.updates):
                    agents.update(*memory.draw(noise.fractions()), noise.update())
            if callback and (step + 1) % REPORT_EVERY == 0:
                callback({"stage": "rlb episodes", "done": step + 1, "total": budget.steps})
    judged = select(
        access, best.latents, labels, budget=budget, loss=cross_entropy, seed=seed, rank_by=budget.rank_by
    )
    return {"latents": best.latents, "initial": first, "history": history, **judged}


class Noise:
    """Random numbers of every agent, each from its own streams, drawn on the CPU whatever the device."""

    def __init__(
        self, labels: list[int], dim: int, *, budget: RlbBudget, seed: int, device: torch.device
    ) -> None:
        self._streams = {
            use: [generator(seed, NAME, use, label) for label in labels]
            for use in ("states", "actions", "fractions", "updates")
        }
        self._dim, self._batch, self._device = dim, budget.batch, device
        self._scalar = budget.reference
        self._blocks: dict[str, Tensor] = {}

    def state(self, index: int) -> Tensor:
        """(K, d) standard normal; asked for in order."""
        return self._next("states", index, self._dim)

    def episode(self, step: int) -> Tensor:
        """(K, 1, d) standard normal, (K, 1, 1) with ``reference``; asked for in order."""
        return self._next("actions", step, 1 if self._scalar else self._dim)[:, None]

    def update(self) -> Tensor:
        """(K, batch, d) standard normal, (K, 1, 1) with ``reference``."""
        return self._draw(torch.randn, "updates", *((1, 1) if self._scalar else (self._batch, self._dim)))

    def fractions(self) -> Tensor:
        """(K, batch) uniform in [0, 1)."""
        return self._draw(torch.rand, "fractions", self._batch)

    def _next(self, use: str, index: int, width: int) -> Tensor:
        """(K, width) standard normal."""
        if index % BLOCK == 0:
            self._blocks[use] = self._draw(torch.randn, use, BLOCK, width)
        return self._blocks[use][:, index % BLOCK]

    def _draw(self, law: Callable[..., Tensor], use: str, *shape: int) -> Tensor:
        """(K, ...)."""
        return torch.stack([law(*shape, generator=stream) for stream in self._streams[use]]).to(self._device)
