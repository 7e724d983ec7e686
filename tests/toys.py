"""A toy world for attacks: a prior without a network, a target whose pictures it can make; what tests ask of both;
and people told apart by a bar, for trainings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from torch import Tensor, nn

from lib.attacks import Reconstructions
from lib.data import Images
from lib.models import build_classifier
from lib.priors import StyleSpec
from lib.reports.workbook import Workbook
from lib.runtime import generator
from lib.setups import Study, load_setup
from lib.store import Checkpoint
from lib.training import Augmentation, Defence, Recipe, TrainingResult, train_classifier

SIZE, DIM, CLASSES = 8, 6, 5
SPECS = [  # a small network of every kind
    {"kind": "residual", "widths": [4, 8, 8, 8]},
    {"kind": "ir", "widths": [4, 4, 8, 8], "units": [1, 1, 1, 1], "feature_size": 6},
    {"kind": "densenet", "growth_rate": 4, "block_config": [2, 2], "num_init_features": 8, "bn_size": 2},
    {"kind": "torchvision", "name": "resnet18"},
    {"kind": "ir", "widths": [4, 4, 8, 8], "units": [1, 1, 1, 1], "feature_size": 6, "cosine": 10.0},
]


class ToyPrior:
    """Images sigmoid(z A): standard normal latents, no network."""

    name = "toy"
    slope = 1.0
    latent_dim = DIM
    critic = None

    def __init__(self, size: int = SIZE) -> None:
        self.image_size = size
        self.matrix = torch.randn(DIM, 3 * size * size, generator=generator(0, "prior")) * 0.7

    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        return torch.randn(n, DIM, generator=generator) * truncation

    def synthesise(self, latents: Tensor) -> Tensor:
        return (latents @ self.matrix).sigmoid().view(-1, 3, self.image_size, self.image_size)

    def log_density(self, latents: Tensor) -> Tensor:
        return -0.5 * latents.square().sum(1)

    def state(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}


class ToyTarget(nn.Module):
    """Linear softmax whose class pictures the prior can make, with dropout and batch norm so that the mode
    matters."""

    num_classes, image_size = CLASSES, SIZE

    def __init__(self, prior: ToyPrior) -> None:
        super().__init__()
        means = prior.synthesise(1.5 * torch.eye(DIM)[:CLASSES]) - 0.5
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(3 * SIZE * SIZE, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(means.flatten(1) * 0.4)
            self.head.bias.zero_()

    def features(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(images - 0.5)).flatten(1)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


class SizedTarget(nn.Module):
    """A random linear softmax of any image size and class count, with batch norm so that the mode matters."""

    def __init__(self, size: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.num_classes, self.image_size = classes, size
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * size * size, classes)
        stream = generator(0, "target", size, classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=stream) * 4 / size)
            self.head.bias.zero_()

    def features(self, images: Tensor) -> Tensor:
        return self.norm(images - 0.5).flatten(1)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


STYLE = StyleSpec(
    image_size=32,
    latent_dim=8,
    mapping_layers=1,
    generator_channels=(8, 8, 8, 4),
    discriminator_channels=(4, 8, 8),
)


class LinearTarget(nn.Module):
    """Three classes of 32 px images, told apart by their pixels."""

    num_classes, image_size = 3, 32

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3 * 32 * 32, 3)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.flatten(1)
        return flat, self.head(flat)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


def smooth_images(count: int, size: int, *, seed: int = 0) -> Tensor:
    """(count, 3, size, size) uint8 of low frequencies."""
    coarse = torch.rand(count, 3, 2, 2, generator=generator(seed, "images"))
    fine = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


class KilledError(Exception):
    """What a test raises from a callback to end a run midway."""


def parameters(network: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """The same tensors under the same names, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def equal(first: Reconstructions, second: Reconstructions) -> bool:
    """The same reconstructions and history, bit for bit; only the cost may differ."""
    return same(first.to_tensors(), second.to_tensors()) and first.history == second.history


def confidence(target: nn.Module, prior: Any, latents: Tensor, labels: Tensor) -> Tensor:
    """(K, n) p_y of the plain images of latents (K, n, d)."""
    with torch.no_grad():
        p = target.eval()(prior.synthesise(latents.flatten(0, 1))).softmax(1).unflatten(0, latents.shape[:2])
    return p.gather(2, labels[:, None, None].expand(-1, latents.shape[1], 1))[..., 0]


STILL = Augmentation(rotation=0, translation=0, scale=0, flip=0, brightness=0, contrast=0, saturation=0)
SMALL = Recipe(
    steps=4, batch=12, augmentation=STILL, learning_rate=5e-3
)  # of 36 photos: three steps an epoch
NETWORKS = {
    "residual": {"kind": "residual", "widths": [4, 4, 8, 8]},
    "ir": {"kind": "ir", "widths": [4, 4, 8, 8], "units": [1, 1, 1, 2], "feature_size": 8, "dropout": 0.0},
    "densenet": {
        "kind": "densenet",
        "growth_rate": 6,
        "block_config": [2, 3],
        "num_init_features": 8,
        "bn_size": 2,
    },
    "resnet": {"kind": "torchvision", "name": "resnet18"},
    "vgg": {"kind": "torchvision", "name": "vgg11_bn"},
}


def bars(per_class: int = 12, size: int = 16) -> Images:
    """Three people told apart by where a bright bar stands."""
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 60, (3 * per_class, 3, size, size), generator=stream)
    labels = torch.arange(3).repeat_interleave(per_class)
    for k in range(3):
        pixels[labels == k, :, :, 2 + 5 * k : 5 + 5 * k] += 180
    return Images(pixels.byte(), labels, ["left", "middle", "right"])


def train_bars(
    defences: Sequence[Defence] = (), recipe: Recipe = SMALL, *, network: str = "residual", **options: Any
) -> TrainingResult:
    """Train a small network on :func:`bars`, on the CPU; ``model``: that one instead of a new one."""
    model = options.pop("model", None)
    return train_classifier(
        lambda planned: model or build_classifier(NETWORKS[network], 3, 16, width=planned.width),
        options.pop("images", None) or bars(),
        recipe=recipe,
        defences=defences,
        seed=options.pop("seed", 0),
        device=torch.device("cpu"),
        **options,
    )


def assert_resumes(
    make: Callable[[], list[Defence]], recipe: Recipe, path: Path, *, after: int = 2
) -> TrainingResult:
    """That a training killed ``after`` epochs and resumed has the bits of the uninterrupted one, which is returned."""
    whole, rows = train_bars(make(), recipe), []

    def kill(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == after:
            raise KilledError

    with pytest.raises(KilledError):
        train_bars(make(), recipe, checkpoint=Checkpoint(path / "c", every=0), callback=kill)
    resumed = train_bars(make(), recipe, checkpoint=Checkpoint(path / "c", every=0))
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert whole.history == resumed.history and whole.diagnostics == resumed.diagnostics
    return whole


ATTACKS = {
    "lomma_gmi": {"headline": {"candidates": 2, "keep": 1, "steps": 2, "views": 1}},
    "kedmi": {"headline": {"candidates": 2, "keep": 1, "steps": 2, "views": 1}},
    "brep": {"headline": {"pool": 20, "candidates": 1, "steps": 2, "directions": 4, "views": 1}},
}
LISTED = {
    "compared": ["ppa eigenfaces headline", "lomma_gmi eigenfaces headline", "kedmi inversion_gan headline",
                 "brep eigenfaces headline"],
    "adaptive": ["ppa eigenfaces quick", "ppa+eot2 eigenfaces quick", "ppa+re_prior eigenfaces quick",
                 "ppa+eot3 eigenfaces quick 2"],
    "curves": ["ppa eigenfaces quick"],
    "referee": ["ppa eigenfaces headline", "ppa+eot2 eigenfaces quick", "brep eigenfaces headline"],
}  # fmt: skip


def attacked_book(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workbook:
    """The world of :data:`conftest.TINY` with attacks of every kind, in a store of its own."""
    monkeypatch.setenv("MIDRE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("RESULTS_DIR", str(folder / "results"))
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    content = copy.deepcopy(TINY)
    content["image_size"] = 16
    content["attacks"] |= ATTACKS
    content["target_priors"] = {"inversion_gan": {"steps": 2, "batch": 8, "width": 4, "latent_dim": 4}}
    network = {"kind": "residual", "widths": [4, 4, 4, 8]}
    content["students"] = [{"network": network, "steps": 2, "batch": 8}]
    content["grids"] = {"ppa": {"prior": "eigenfaces", "budget": "quick", "learning_rate": [0.05, 0.2]}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    study = Study(
        "digits", ["none", "re(0.1,0.4)", "fe(0.5)"], [0], [0], ["ppa"], "eigenfaces", "headline", **LISTED
    )
    return Workbook(load_setup(path), study, tuple(study.defences), (0,), (0,))
