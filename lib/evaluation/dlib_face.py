"""A verifier from outside: the face embedding of dlib (King 2017), a residual network of 29 layers trained by
others on about three million photos. Optional: ``pip install -e '.[verifier]'``.

It is independent of everything this project trains, but not certainly of the private people: its photos come
from the web, and nobody has published who is in them.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lib.errors import UserError

NAME = "verifier_dlib"
SIDE = 150  # of the chips it was trained on
BATCH = 32
_WEIGHTS = "models/dlib_face_recognition_resnet_model_v1.dat"


def available() -> bool:
    """Whether the optional packages are installed."""
    return all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models"))


def embed(images: Tensor) -> Tensor:
    """(N, 3, S, S) uint8, or floats in [0,1], of cropped faces to (N, 128) fp32. About 0.1 s an image.

    Raises:
        UserError: if the optional packages are not installed, or the shape is another.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"outside verifier: expected images (N, 3, S, S), got {tuple(images.shape)}")
    network, parts = _network(), []
    for batch in images.split(BATCH):
        pixels = batch.cpu().float() / 255 if batch.dtype == torch.uint8 else batch.cpu().float()
        chips = functional.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        chips = (chips.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        parts.append(np.array(network.compute_face_descriptor(list(chips)), dtype=np.float32))
    return torch.from_numpy(np.concatenate(parts))


@cache
def _network() -> Any:
    if not available():
        raise UserError(
            "outside verifier: expected dlib, which is not installed; pip install -e '.[verifier]'"
        )
    import dlib

    # the package's own loader needs the retired pkg_resources; only its file is used
    folder = Path(importlib.util.find_spec("face_recognition_models").origin).parent
    return dlib.face_recognition_model_v1(str(folder / _WEIGHTS))
