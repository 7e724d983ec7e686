"""Where a network's training may start: its own body, trained on people who are not private."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import nn

from lib import store
from lib.data import Images
from lib.data.world import World, data_stage
from lib.defences import build, parse, spell
from lib.errors import UserError
from lib.models import build_classifier
from lib.setups import NetworkConfig, Setup
from lib.store import Stage
from lib.training import Recipe
from lib.training.sampling import batch_size


def start_config(config: NetworkConfig) -> NetworkConfig:
    """The pre-training that ``config.pretrained`` asks for: the same network with a cosine head, and where it is
    ``erased``, behind what of the defence erases.

    Raises:
        UserError: nothing of it does, or the sets or the scale of the head are missing.
    """
    if absent := [key for key in ("sets", "cosine") if key not in config.pretrained]:
        raise UserError(
            f"pretrained: expected sets (of people who are not private) and cosine (the scale of the head), got "
            f"{', '.join(config.pretrained) or 'nothing'}; add {' and '.join(absent)}"
        )
    apart = ("sets", "cosine", "erased")
    options = {key: value for key, value in config.pretrained.items() if key not in apart}
    network = {**config.network, "cosine": config.pretrained["cosine"]}
    recipe = {**config.recipe, **options, "label_smoothing": 0.0}
    if not config.pretrained.get("erased"):
        return NetworkConfig(network, recipe, seed=config.seed)
    erasing = [term for term in parse(config.defence) if hasattr(build(spell([term]))[0], "law")]
    if not erasing:
        raise UserError(
            f"{config.defence}: expected an erasing defence beside it, by which to erase the photos of pre-training, "
            "got none; write re(0.1,0.4)+... or leave out erased=true"
        )
    return NetworkConfig(network, recipe, spell(erasing), seed=config.seed)


def pretraining_stage(setup: Setup, config: NetworkConfig, role: str) -> Stage:
    """The start of a judge, or of the targets of one seed whose defence wants one (role ``target``)."""
    start = start_config(config)
    params = {
        "setup": setup.name,
        "role": role,
        "sets": config.pretrained["sets"],
        **store.essentials(start),
    }
    return Stage("pretraining", f"{setup.name} start of {role}", params, (data_stage(setup).key,))


def photos_for(setup: Setup, config: NetworkConfig, world: World) -> Images:
    """The photos of all sets that ``config.pretrained`` names."""
    return merge([_helper_set(setup, world, name) for name in config.pretrained["sets"]])


def _helper_set(setup: Setup, world: World, name: str) -> Images:
    """Photos of people who have names, none of them private.

    Raises:
        UserError: there are none in the set of that name.
    """
    private = set(world.train.names)
    found = {item.name: getattr(world, item.name) for item in fields(World)}
    usable = {n: s for n, s in found.items() if s is not None and s.names and not private & set(s.names)}
    if name not in usable:
        raise UserError(
            f"{setup.name}: pre-training expected sets of named people who are not private ("
            f"{', '.join(usable) or 'there are none'}), got {name!r}; set data.others.{name}, or the `sets` of what "
            "is pre-trained, in the setup"
        )
    return usable[name]


def try_surgery(setup: Setup, config: NetworkConfig, recipe: Recipe, photos: Images) -> None:
    """Let the defences refuse the network, the recipe or the photos it is made for before hours of pre-training, not
    after."""
    with torch.random.fork_rng(devices=[]):
        defences = build(config.defence, setup.defences)
        for defence in defences:
            recipe = defence.plan(recipe)
        check_width(f"{setup.name} {config.defence}", recipe)
        batch_size(photos.labels, recipe)
        model: nn.Module = build_classifier(config.network, 2, setup.image_size)
        for defence in defences:
            model = defence.build(model)
        for defence in defences:
            defence.freeze(model)
            defence.taps(model)


def check_width(label: str, recipe: Recipe) -> None:
    """Raises: UserError for a network of other widths than the pre-trained one's."""
    if recipe.width != 1:
        raise UserError(
            f"{label}: expected a network of the pre-trained one's widths, got {recipe.width:g} of them; "
            "drop the defence that changes widths"
        )


def merge(sets: list[Images]) -> Images:
    """Several sets of disjoint people as one."""
    offset, labels, names, files = 0, [], [], []
    for images in sets:
        labels.append(images.labels + offset)
        offset += len(images.names)
        names += images.names
        files += images.files
    return Images(torch.cat([images.pixels for images in sets]), torch.cat(labels), names, files)
