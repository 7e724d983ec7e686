"""Whether a setup is whole, asked before hours of work go into the first of its parts."""

from __future__ import annotations

from typing import Any

import torch

from lib import attacks
from lib.data.splits import check_shares
from lib.defences import build
from lib.errors import UserError
from lib.models import build_classifier
from lib.models.external import external_config
from lib.setups import NetworkConfig, Setup
from lib.stages import priors, robustness, starts, students, targets

SMALLEST = 8  # pixels


def check_setup(setup: Setup) -> None:
    """Read everything that a setup describes as it is read where it is used. Nothing is trained, no photo is looked at.

    Raises:
        UserError: an unknown key or name, something that is missing, a value of another kind or out of its range.
    """
    _check_numbers(setup)
    networks = {"verifier": setup.verifier} | {f"evaluators.{n}": c for n, c in setup.evaluators.items()}
    if setup.is_external:
        external_config(setup.target.network)
    else:
        networks["target"] = setup.target
    for part, config in networks.items():
        _check_training(setup, config, f"{setup.name}.{part}")
    if setup.has_photos and "main" not in setup.evaluators:
        raise UserError(f"{setup.name}.evaluators: expected main, got {_listed(setup.evaluators)}; add it")
    for defence in setup.multiples:
        build(defence, setup.defences)
    kinds = setup.priors | setup.target_priors
    for kind in kinds:
        priors.config(setup, kind)
    for student in students.configs(setup) if setup.students else []:
        _check_network(student.network, setup.image_size)
    for name, budgets in setup.attacks.items():
        for budget in set(budgets) - set(kinds):
            for prior in kinds:
                attacks.get(name).budget(**{**budgets.get(prior, {}), **budgets[budget]})
    robustness.evasion_budget(setup)
    robustness.backdoor_plan(setup)


def _check_numbers(setup: Setup) -> None:
    lengths = setup.multiples.values()
    for name, value, fits, expected in (
        ("image_size", setup.image_size, setup.image_size >= SMALLEST, f"at least {SMALLEST} pixels"),
        ("false_accept_rate", setup.false_accept_rate, 0 < setup.false_accept_rate < 1, "a number in (0,1)"),
        (
            "data.public_held_out",
            setup.data.public_held_out,
            0 <= setup.data.public_held_out < 1,
            "one in [0,1)",
        ),
        (
            "data.verifier_share",
            setup.data.verifier_share,
            0 <= setup.data.verifier_share < 1,
            "one in [0,1)",
        ),
        ("multiples", setup.multiples, lengths and all(lengths), "a defence with a training length or more"),
        ("multiples", setup.multiples, min(sum(lengths, []), default=0) > 0, "training lengths above 0"),
        ("snapshots", setup.snapshots, all(0 < part < 1 for part in setup.snapshots), "shares in (0,1)"),
    ):
        if not fits:
            raise UserError(f"{setup.name}.{name}: expected {expected}, got {value}; correct it")
    check_shares(setup.data.validation, setup.data.test)


def _check_training(setup: Setup, config: NetworkConfig, where: str) -> None:
    _check_network(config.network, setup.image_size)
    targets.recipe_of(config, where)
    build(config.defence, setup.defences)
    if config.pretrained is not None:
        targets.recipe_of(starts.start_config(config), f"{where}.pretrained")


def _check_network(spec: dict[str, Any], image_size: int) -> None:
    with torch.device("meta"):  # of no size, and no random number is drawn
        build_classifier(spec, 2, image_size)


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"
