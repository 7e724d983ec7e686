"""TL-DMI: a network pre-trained on public people of which only the last stages learn the private ones.

Source: Ho et al., Model Inversion Robustness: Can Transfer Learning Help? (CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.defences._checks import number, whole, word
from lib.errors import UserError
from lib.models import stages_of
from lib.training.interface import Defence, History, union

BATCH_STATISTICS = ("track", "eval")


class TransferLearning(Defence):
    """``tldmi(stages)``: stem and first stages are frozen as public pre-training left them.

    The pre-training is a stage of its own, made like that of an evaluator, and shared by all freeze depths.

    Args:
        stages: how many, at least 1 and fewer than the network has.
        bn_frozen: ``track``, as published: batch norms of the frozen stages go on collecting the private photos'
            mean and variance, so that the frozen part is not quite free of private data. ``eval`` holds them, too.
        sets: the photos of pre-training: helper sets of the setup, of people who are not private.
        steps, learning_rate: of the pre-training, whose recipe is the target's otherwise.
        cosine: scale of the cosine head that it trains and throws away.
        erased: whether an erasing defence beside it erases the photos of pre-training, too.

    Raises:
        UserError: for values out of range; when it meets a network with too few stages.
    """

    cost = 0.5  # no backward pass through what is frozen, which has the largest maps

    def __init__(
        self,
        stages: int,
        *,
        bn_frozen: str,
        sets: Sequence[str],
        steps: int,
        learning_rate: float,
        cosine: float,
        erased: bool,
    ) -> None:
        self.stages = whole("tldmi stages", stages, 1, usage="tldmi(2)")
        self.bn_frozen = word("tldmi bn_frozen", bn_frozen, BATCH_STATISTICS)
        if isinstance(sets, str) or not sets:
            raise UserError(
                f"defence tldmi sets: expected a list of sets, got {sets!r}; write [pretraining] in the setup"
            )
        self.pretraining: dict[str, Any] = {
            "sets": list(sets),
            "steps": whole("tldmi steps", steps, 1, usage="steps=2000"),
            "learning_rate": number(
                "tldmi learning_rate", learning_rate, 0, 1, usage="learning_rate=0.002", ends="(]"
            ),
            "cosine": number("tldmi cosine", cosine, 0, 1e3, usage="cosine=16", ends="(]"),
        }
        if word("tldmi erased", erased, (True, False)):
            self.pretraining["erased"] = True
        self._frozen: list[nn.Module] = []
        self._before: list[tuple[nn.Parameter, Tensor]] = []
        self._share = float("nan")

    def freeze(self, model: nn.Module) -> set[nn.Parameter]:
        """All parameters of the stem and the first stages.

        Raises:
            UserError: no stage would be left to learn, or another defence changed what is to be frozen.
        """
        parts = stages_of(model)
        if self.stages >= len(parts.stages):
            raise UserError(
                f"{self.name}: expected fewer stages than the network's {len(parts.stages)}, got {self.stages}; "
                f"at most tldmi({len(parts.stages) - 1}) leaves one to learn"
            )
        self._frozen = sum(parts.stages[: self.stages], parts.stem)
        if any(isinstance(part, nn.GroupNorm) for module in self._frozen for part in module.modules()):
            raise UserError(
                f"{self.name}: expected frozen stages as pre-training left them, got stages whose batch norms another "
                "defence replaced with group norms that learned nothing; drop one of the two"
            )
        parameters = union(set(module.parameters()) for module in self._frozen)
        self._before = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self._share = _count(parameters) / _count(model.parameters())
        return parameters

    def input(self, images: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Changes no image. ``bn_frozen=eval``: before anything passes the network in this step, the batch norms of the
        frozen stages are told to answer with what they have."""
        if self.bn_frozen == "eval":
            for module in self._frozen:
                module.eval()

    def diagnostics(self) -> dict[str, float]:
        """``frozen``: share of the network's parameters that is not to be trained. ``drift``: how far the furthest of
        these is from where it was."""
        moved = [(now.detach() - before).abs().max() for now, before in self._before]
        return {"frozen": self._share, "drift": float(torch.stack(moved).max()) if moved else float("nan")}

    @staticmethod
    def acted(history: History) -> bool:
        """Whether a part of the network stayed as it was."""
        return history[-1]["frozen"] > 0 and history[-1]["drift"] == 0


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)
