"""What the README tells people to write works as it stands."""

import re
import types

import pytest
import torch
from toys import ToyPrior, ToyTarget

from lib.attacks import Attack
from lib.runtime import ROOT
from lib.training import Defence

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def module(name: str, code: str) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(code, vars(made))
    return made


def test_the_defence_hides_what_it_says() -> None:
    (kind,) = (
        value
        for value in vars(module("blur", BLOCKS[0])).values()
        if isinstance(value, type) and issubclass(value, Defence) and value is not Defence
    )
    photo = torch.zeros(1, 3, 16, 16)
    photo[..., 8, 8] = 1
    seen = kind(1.5).input(photo, torch.zeros(1).long(), torch.Generator())(photo)
    assert seen.sum() == pytest.approx(3, rel=1e-3) and seen.max() < 0.2


def test_the_attack_is_one() -> None:
    margin = module("margin", BLOCKS[1])
    assert Attack(margin.NAME, margin.Budget, margin.invert).sees == "gradients"
    prior = ToyPrior()
    target = ToyTarget(prior)
    budget = margin.Budget(candidates=4, steps=40, keep=1, views=2, learning_rate=0.1)
    before, after = (
        margin.invert(target, prior, [0, 1], budget=b, seed=0)
        for b in (margin.Budget(candidates=4, steps=1, keep=1, views=2, learning_rate=1e-6), budget)
    )
    losses = [float(made.history[-1]["loss"]) for made in (before, after)]
    assert losses[1] < losses[0], "the margin grows"
