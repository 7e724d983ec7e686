"""One image file to (3,S,S) uint8, whatever its mode; many of them in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lib.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def decode(path: Path, size: int, crop: int | None = None) -> np.ndarray:
    """Read ``path`` as RGB, turn it upright (EXIF orientation), cut the centre, resize.

    Grey, palette, RGBA (over black), CMYK and 16-bit images are converted.

    Args:
        size: side of the result in pixels. crop: side of the centre square that is kept, in source
            pixels; None keeps the largest centred square.

    Returns:
        (3,size,size) uint8.

    Raises:
        UserError: the file is not a readable image or smaller than the crop.
    """
    try:
        with Image.open(path) as image:
            image.load()
            _turn_upright(image)
            rgb = _to_rgb(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path}: expected an image, got something unreadable ({error}); replace or remove it"
        ) from error
    width, height = rgb.size
    side = crop or min(width, height)
    if side > min(width, height):
        raise UserError(
            f"{path}: {width}x{height} px is smaller than the crop of {side}; lower `crop` or drop the image"
        )
    left, top = (width - side) // 2, (height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    if side != size:
        square = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(square).transpose(2, 0, 1)


def decode_all(paths: Sequence[Path], size: int, crop: int | None = None) -> Tensor:
    """(N,3,size,size) uint8 of many files, in order."""
    if not paths:
        raise UserError("expected at least one image, found none; check MIDRE_DATA and the folder layout")
    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(lambda path: decode(path, size, crop), paths))
    return torch.from_numpy(np.stack(arrays))


def _turn_upright(image: Image.Image) -> None:
    """Turn ``image`` as its EXIF orientation says; a phone stores how it was held, not upright pixels.

    The raw EXIF data are dropped once read: Pillow would write them anew, which fails on odd ones.
    """
    image.getexif()
    image.info.pop("exif", None)
    ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16- or 32-bit grey: scale, do not clip
        values = np.asarray(image, dtype=np.float64)
        # I;16 says what white is, however dark the photo; I and F do not
        top = 65535.0 if image.mode.startswith("I;16") or values.max() > 255 else 255.0
        return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image.convert("RGB")
