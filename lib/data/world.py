"""A world: everything decoded and cut for one setup, as one stage of the store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import torch

from lib import store
from lib.data.images import Images
from lib.data.sources import SOURCES, photos_below
from lib.data.splits import choose_people, cut_by_name, hold_out, split_photos
from lib.errors import UserError
from lib.setups import DataConfig, Setup, SourceConfig
from lib.store import Stage


@dataclass(frozen=True)
class World:
    """The photos of a setup. Private sets share one labelling; the helper sets have their own.

    Attributes:
        train, validation, test: private photos. Every choice is made on validation, test is touched once.
            Empty where a setup has none (``private: {source: none}``).
        public: what priors are trained on. public_held_out: public photos no prior saw.
        near_public, verifier, pretraining: people disjoint from the private ones and from each other.
    """

    train: Images
    validation: Images
    test: Images
    public: Images
    public_held_out: Images
    near_public: Images | None = None
    verifier: Images | None = None
    pretraining: Images | None = None


def data_stage(setup: Setup) -> Stage:
    """Version 2 turns photos upright and keeps dark 16-bit ones dark. The known data sets have neither kind
    and stay at version 1, so that nothing made from them is orphaned. Of one's own folders the names and sizes of
    the photos count: other photos make another stage."""
    params = {"setup": setup.name, "size": setup.image_size, **store.essentials(setup.data)}
    own = [s for s in (setup.data.private, setup.data.public) if s.source == "folder"]
    if own:
        paths = [Path(source.path).expanduser().resolve() for source in own if source.path]
        params["files"] = [_files(str(path)) for path in paths]
    return Stage("data", f"{setup.name} photos", params, version=2 if own else 1)


@cache  # looked at once by a process: keys are asked for thousands of times
def _files(folder: str) -> str:
    """Hash of the names and sizes of the photos in a folder; what else lies there (.DS_Store) is nothing to it."""
    found = sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size) for path in photos_below(Path(folder))
    )
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def load_world(setup: Setup) -> World:
    """Decode (once) and load the photos of ``setup``."""
    artifact = store.get(data_stage(setup), lambda _: _make(setup))
    sets = {}
    for field in fields(World):
        if f"{field.name}.pixels" in artifact.tensors:
            text = artifact.meta["sets"][field.name]
            sets[field.name] = Images(
                artifact.tensors[f"{field.name}.pixels"],
                artifact.tensors[f"{field.name}.labels"],
                text["names"],
                text["files"],
            )
    return World(**sets)


def _make(setup: Setup) -> tuple[dict[str, torch.Tensor], dict]:
    config, size = setup.data, setup.image_size
    _check(setup)
    if config.private.source == "none":  # somebody's classifier without the photos it was trained on
        photos = Images(torch.zeros(0, 3, size, size, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
        sets, helpers = {name: photos.take(photos.labels) for name in ("train", "validation", "test")}, {}
    else:
        photos = _read(config.private, size)
        private, others = _private_and_others(photos, config)
        sets = split_photos(private, validation=config.validation, test=config.test, seed=config.split_seed)
        helpers = cut_by_name(others, config.others, seed=config.split_seed)
    if config.public.source == "near_public":
        public = helpers.pop("near_public")
    else:
        same = (config.public.source, config.public.path) == (config.private.source, config.private.path)
        public = photos if same and config.public.classes else _read(config.public, size)
        if config.public.classes:
            public = public.take(torch.isin(public.labels, torch.tensor(config.public.classes))).relabelled()
    if config.verifier_share:  # no other people exist: keep some public photos from every prior
        public, helpers["verifier"] = hold_out(public, config.verifier_share, seed=config.split_seed + 1)
    sets["public"], sets["public_held_out"] = hold_out(public, config.public_held_out, seed=config.split_seed)
    sets |= helpers
    verifier = sets.get("verifier")
    people = 2 if verifier is None else len(verifier.labels[verifier.labels >= 0].unique())
    if people < 2:
        named = bool(public.names)
        if config.verifier_share and not named:
            remedy = (
                "the public photos carry no names: leave out data.verifier_share, give data.others a verifier"
            )
        else:
            remedy = "leave some out of the private ones (raise data.private.min_images)"
            remedy += ", or set data.verifier_share" if named else ""
        raise UserError(f"{setup.name}: expected at least 2 people for the verifier, got {people}; {remedy}")
    tensors = {name: tensor for key, images in sets.items() for name, tensor in images.tensors(key).items()}
    meta = {
        "sets": {key: images.text() for key, images in sets.items()},
        "counts": {key: [len(images), len(images.names)] for key, images in sets.items()},
    }
    return tensors, meta


def _check(setup: Setup) -> None:
    """Raises: UserError for helper sets that do not exist, and public photos of one that is not asked for."""
    config = setup.data
    known = {field.name for field in fields(World) if field.default is None}
    if unknown := sorted(set(config.others) - known):
        raise UserError(
            f"{setup.name}: data.others: expected {', '.join(sorted(known))}, got {', '.join(unknown)}; correct it"
        )
    if config.public.source == "near_public" and "near_public" not in config.others:
        raise UserError(
            f"{setup.name}: data.public: near_public has no people; give it a share in data.others"
        )


def _private_and_others(photos: Images, config: DataConfig) -> tuple[Images, Images]:
    if config.private.classes:
        chosen = torch.isin(photos.labels, torch.tensor(config.private.classes))
        return photos.take(chosen).relabelled(), photos.take(~chosen)
    return choose_people(
        photos,
        min_images=config.private.min_images,
        max_images=config.private.max_images,
        seed=config.split_seed,
    )


def _read(source: SourceConfig, size: int) -> Images:
    if source.source not in SOURCES:
        raise UserError(
            f"data source {source.source!r} is unknown; expected one of {', '.join(sorted(SOURCES))}"
        )
    options = {"crop": source.crop} if source.crop else {}
    if source.source == "folder":
        if not source.path:
            raise UserError("data source 'folder' needs a path: root/<identity>/*.jpg")
        options["path"] = Path(source.path).expanduser()
    images = SOURCES[source.source](size, **options)
    return replace(images, pixels=move_down(images.pixels, source.down)) if source.down else images


def move_down(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Move images (N,3,S,S) down by a share of their side; the free rows mirror the ones below them."""
    if not 0 <= share < 0.5:
        raise UserError(f"data source: expected down in [0, 0.5), got {share}")
    rows = round(share * pixels.shape[-1])
    if rows == 0:
        return pixels
    return torch.cat([pixels[:, :, 1 : rows + 1].flip(2), pixels[:, :, :-rows]], 2)
