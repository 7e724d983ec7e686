"""Where photos come from: each source returns labelled images in the layout its users have on disk."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from lib.data.archives import check_complete, dataset
from lib.data.decode import SUFFIXES, decode_all
from lib.data.images import Images
from lib.errors import UserError


def digits(size: int, **_: object) -> Images:
    """scikit-learn's bundled handwritten digits, 8x8 enlarged to ``size``, ink white on black."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float().div_(16)[:, None]
    large = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    pixels = large.mul(255).round().byte().expand(-1, 3, -1, -1).contiguous()
    files = [f"digits/{i:04d}" for i in range(len(pixels))]
    return Images(pixels, torch.from_numpy(bunch.target).long(), [str(i) for i in range(10)], files)


def files_below(folder: Path) -> list[Path]:
    """Every file, sorted, however deep; links to folders are followed."""
    found = os.walk(folder, followlinks=True)
    return sorted(Path(where) / name for where, _, names in found for name in names)


def photos_below(folder: Path) -> list[Path]:
    """The images of :func:`folder`, sorted: those that lie in the folder of somebody."""
    return [p for p in files_below(folder) if p.suffix.lower() in SUFFIXES and p.parent != folder]


def folder(size: int, *, path: Path, crop: int | None = None) -> Images:
    """Any ``root/<identity>/*.jpg``: one identity a folder, photos below it."""
    if not path.is_dir():
        raise UserError(f"{path}: expected a folder with one folder per identity, found none")
    files: dict[str, list[Path]] = defaultdict(list)
    for file in photos_below(path):
        files[file.relative_to(path).parts[0]].append(file)
    if not files:
        raise UserError(
            f"{path}: expected images as {path.name}/<identity>/*.jpg, found none; check the layout"
        )
    names = sorted(files)
    paths = [file for name in names for file in files[name]]
    labels = torch.tensor([k for k, name in enumerate(names) for _ in files[name]])
    return Images(
        decode_all(paths, size, crop), labels, names, [file.relative_to(path).as_posix() for file in paths]
    )


def lfw(size: int, *, crop: int | None = 112, **_: object) -> Images:
    """Labeled Faces in the Wild, deep-funneled: ``lfw-deepfunneled/<Person_Name>/<Person_Name>_0001.jpg``."""
    path = dataset("lfw")
    check_complete("lfw", path, sum(file.suffix.lower() in SUFFIXES for file in files_below(path)))
    return folder(size, path=path, crop=crop)


def lfw_funneled(size: int, *, crop: int | None = 112, **_: object) -> Images:
    """LFW, funneled, by scikit-learn's own download (needs a network the first time, 233 MB)."""
    from sklearn.datasets import fetch_lfw_people

    side = crop or 250
    window = slice((250 - side) // 2, (250 - side) // 2 + side)
    try:
        bunch = fetch_lfw_people(
            min_faces_per_person=0, color=True, resize=size / side, slice_=(window, window), funneled=True
        )
    except OSError as error:
        raise UserError(
            f"LFW could not be downloaded by scikit-learn ({error}); use SETUP=lfw64 with the archives in MIDRE_DATA"
        ) from error
    scale = 255.0 if bunch.images.max() <= 1.0 else 1.0
    pixels = (
        torch.from_numpy(np.round(bunch.images * scale).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    )
    files = [f"{bunch.target_names[k]}/{i}" for i, k in enumerate(bunch.target)]
    return Images(pixels, torch.from_numpy(bunch.target).long(), list(bunch.target_names), files)


def utkface(size: int, *, crop: int | None = None, **_: object) -> Images:
    """UTKFace, aligned and cropped: ``UTKFace/<age>_<gender>_<race>_<date>.jpg.chip.jpg``. It carries no names."""
    path = dataset("utkface")
    paths = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    check_complete("utkface", path, len(paths))
    return Images(
        decode_all(paths, size, crop),
        torch.full((len(paths),), -1),
        [],
        [f"UTKFace/{file.name}" for file in paths],
    )


SOURCES = {"digits": digits, "folder": folder, "lfw": lfw, "lfw_funneled": lfw_funneled, "utkface": utkface}
