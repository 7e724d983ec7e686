"""The target as a black box: it answers with scores or labels, counts every image, and can stop answering."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lib.attacks.access import Access
from lib.attacks.interface import Budget, device_of
from lib.errors import UserError
from lib.runtime import Peak, digest, frozen

if TYPE_CHECKING:
    from lib.priors import Prior

Reveals = Literal["scores", "labels"]
HIDDEN = 1e-6  # the score that a label oracle's answer stands for, of the classes it did not name


class Oracle:
    """Answers about images, and nothing else: no gradient, no logit, no feature.

    Attributes:
        reveals: ``scores`` (softmax, (B, C)) or ``labels`` (the predicted class, (B,)).
        queries: images asked about so far. cap: how many it will answer; None for no limit.
        num_classes, image_size: what everybody may know.
    """

    def __init__(self, target: nn.Module, *, reveals: Reveals, cap: int | None = None) -> None:
        if reveals not in ("scores", "labels"):
            raise UserError(f"oracle: expected to reveal scores or labels, got {reveals!r}; choose one")
        if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
            raise UserError(f"oracle cap: expected a whole number of at least 1, got {cap!r}; raise it")
        self.reveals, self.cap, self.queries = reveals, cap, 0
        self.num_classes, self.image_size = target.num_classes, target.image_size
        self.device = device_of(target)
        self.__target = target

    def require(self, attack: str, queries: int) -> None:
        """Raises: UserError if fewer answers are left than an attack may need."""
        if self.cap is not None and self.cap - self.queries < queries:
            raise UserError(
                f"{attack}: expected an oracle that still answers the {queries} queries that this budget may "
                f"spend, got one that answers {self.cap - self.queries} more; raise its cap or spend less (fewer "
                "steps, a smaller pool)"
            )

    def ask(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to scores (B, C) fp32, or labels (B,) int64, on the images' device.

        Raises:
            UserError: more queries than the cap allows; nothing is answered then.
        """
        if self.cap is not None and self.queries + len(images) > self.cap:
            raise UserError(
                f"oracle: expected at most {self.cap} queries, got {self.queries + len(images)}; raise the cap or "
                "spend less (fewer steps, a smaller pool)"
            )
        self.queries += len(images)
        # entering evaluation mode begins a random defence's noise anew, so that is done where it is due, not per query
        training = any(module.training for module in self.__target.modules())
        with frozen(self.__target) if training else contextlib.nullcontext(), torch.inference_mode():
            images = images.detach().contiguous(memory_format=torch.channels_last)
            logits = self.__target(images).float()
            answer = logits.softmax(1) if self.reveals == "scores" else logits.argmax(1)
        return answer.clone()  # an inference tensor could not enter autograd later

    def restart(self) -> None:
        """As :meth:`lib.attacks.access.Access.restart`, of what answers."""
        if hasattr(self.__target, "restart"):
            self.__target.restart()


class OracleAccess(Access):
    """An attack's access through an oracle, with which search and selection work as they are.

    ``counts["queries"]`` is what the oracle counted in this attack.

    Args:
        attack: its name. most: queries it may spend in all.
    """

    def __init__(self, oracle: Oracle, prior: Prior, *, attack: str = "attack", most: int = 0) -> None:
        self.target, self.prior, self.fast, self.device = oracle, prior, False, oracle.device
        self.attack, self.most = attack, most
        self.counts = {"target_forward": 0, "target_backward": 0, "synthesis": 0, "critic": 0, "queries": 0}
        self.peak = Peak(self.device)

    def signature(self) -> list[Any]:
        return [digest(*self.prior.state().values())]  # of the target nothing is known

    def begin(self, counts: dict[str, int] | None) -> None:
        """Raises: UserError if the oracle has fewer answers left than the attack, or its rest, may need. Another oracle
        than the interrupted run's has answered what that one did."""
        super().begin(counts)
        self.target.queries = max(self.target.queries, self.counts["queries"])
        self.target.require(self.attack, self.most - self.counts["queries"])

    def ask(self, images: Tensor) -> Tensor:
        """What the oracle reveals of (B, 3, S, S)."""
        self.counts["target_forward"] += len(images)
        self.counts["queries"] += len(images)
        return self.target.ask(images)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C): log scores, from which softmax gives the scores again; of a label oracle, those of a
        network that is certain of its label."""
        answer = self.ask(images)
        if self.target.reveals == "labels":
            scores = torch.full((len(answer), self.target.num_classes), HIDDEN, device=answer.device)
            return scores.scatter_(1, answer[:, None], 1.0).log()
        return answer.clamp_min(torch.finfo(torch.float32).tiny).log()


@dataclass(frozen=True, kw_only=True)
class QueryBudget(Budget, ABC):
    """Of an attack that only asks: all work is queries.

    Attributes:
        query_cap: most queries per identity, pool and selection included, as if it were attacked alone; the steps
            that it does not pay for are left out. None for no limit.
    """

    query_cap: int | None = None

    @property
    @abstractmethod
    def pool_queries(self) -> int:
        """About the pool that all identities share."""

    @property
    @abstractmethod
    def step_queries(self) -> int:
        """Per identity and step."""

    @property
    def fixed_queries(self) -> int:
        """Per identity, whatever the steps: its candidates, plain and through the views."""
        return self.candidates * (1 + self.views)

    @property
    def paid_steps(self) -> int:
        """The steps that ``query_cap`` pays for."""
        if self.query_cap is None:
            return self.steps
        left = self.query_cap - self.pool_queries - self.fixed_queries
        return min(self.steps, left // self.step_queries)

    @property
    def own_queries(self) -> int:
        """Most queries per identity, without the shared pool."""
        return self.fixed_queries + self.paid_steps * self.step_queries

    def most_queries(self, identities: int) -> int:
        """Of the whole attack."""
        return self.pool_queries + identities * self.own_queries

    @property
    def work(self) -> float:
        return self.own_queries / 2

    def require_cap(self, steps: int, what: str, lower: str) -> None:
        """For ``__post_init__``, once all else is checked.

        Args:
            steps: that ``query_cap`` must pay for. what: they are, in words. lower: the fields that save queries.
        """
        if self.query_cap is None:
            return
        self.require_count("query_cap")
        needed = self.pool_queries + self.fixed_queries + steps * self.step_queries
        if self.query_cap < needed:
            raise UserError(
                f"budget query_cap: expected at least the {needed} queries per identity {what}, got "
                f"{self.query_cap}; raise it or lower {lower}"
            )


def oracle_for(target: nn.Module | Oracle, *, reveals: Reveals, cap: int | None = None) -> Oracle:
    """An oracle around a network, or the given oracle.

    Raises:
        UserError: the given oracle reveals less than the attack needs.
    """
    if not isinstance(target, Oracle):
        return Oracle(target, reveals=reveals, cap=cap)
    if reveals == "scores" and target.reveals == "labels":
        raise UserError(
            "oracle: expected one that reveals scores, got one that reveals labels; use a label-only attack"
        )
    return target
