"""Checks of a world before anything is trained on it: how much there is, whether sets share photos, and
whether private and public faces are framed alike."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data.images import Images
from lib.data.world import World
from lib.errors import UserError

HASH_SIDE = 16
NEAR_BITS = 16
"""Two photos whose hashes differ in at most this many of 256 bits are near duplicates. On LFW re-encoded
copies of one photo differ in fewer than 10, different photos in more than 25."""
COARSE = 0.25
"""Above this share of near duplicates the hash does not tell the images of a world apart."""

PRIVATE = ("train", "validation", "test")
ZOOMS = torch.logspace(-0.125, 0.125, 25, dtype=torch.float64).tolist()  # 0.75 to 1.33
LARGEST_SHIFT = 0.15
MARGIN = 0.2  # the middle 60 % of the image is compared, so that moving it brings no border into view
ZOOM_TOLERANCE, SHIFT_TOLERANCE = 1.1, 0.05
ALIKE = 0.7  # correlation of mean images below which they do not show the same kind of object
GAIN = 0.1  # in correlation, below which a move mends nothing


def sets_of(world: World) -> dict[str, Images]:
    """The sets that a world has photos in, by name, in the order of its fields."""
    named = {field.name: getattr(world, field.name) for field in fields(World)}
    return {name: images for name, images in named.items() if images is not None and len(images)}


def counts(world: World) -> list[dict[str, Any]]:
    """One row per set: photos, people, and the least, median and most photos of a person.

    Sets without identities have ``people`` 0 and an empty text for each count per person.
    """
    rows = []
    for name, images in sets_of(world).items():
        row: dict[str, Any] = {"set": name, "photos": len(images), "people": len(images.names)}
        each = torch.bincount(images.labels, minlength=len(images.names)) if images.names else None
        for key, take in (("least", torch.min), ("median", torch.median), ("most", torch.max)):
            row[key] = "" if each is None else int(take(each))
        rows.append(row)
    return rows


def digest(images: Images) -> str:
    """Sixteen hexadecimal digits that change when a file changes its place or label. Pixels are left out:
    their last bit depends on the decoder's version."""
    text = "\n".join(
        f"{label} {file}" for label, file in zip(images.labels.tolist(), images.files, strict=True)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- duplicates -----------------------------------------------------------------------------------------


def difference_hash(pixels: Tensor, *, mirrored: bool = False) -> Tensor:
    """Whether each cell of a 16 x 16 grid is darker than its right neighbour (the dHash of photo software).

    Survives scaling, brightness, contrast and re-encoding; a crop or another photo of the face changes it.

    Args:
        pixels: (N,3,S,S) uint8. mirrored: hash the mirrored photos.

    Returns:
        (N,256) bool.
    """
    parts = []
    for part in pixels.split(2048):
        grey = part.float().mean(1, keepdim=True)
        grey = grey.flip(3) if mirrored else grey
        small = F.interpolate(
            grey, size=(HASH_SIDE, HASH_SIDE + 1), mode="bilinear", antialias=True, align_corners=False
        )
        parts.append((small[..., 1:] > small[..., :-1]).flatten(1))
    return torch.cat(parts)


@dataclass(frozen=True)
class Prints:
    """What duplicates are found by: a digest of each photo's pixels, and hashes (N,256) in {-1, 1} of the
    photos as they are and mirrored."""

    pixels: list[bytes]
    codes: Tensor
    mirrored: Tensor

    @classmethod
    def of(cls, images: Images) -> Prints:
        codes = [difference_hash(images.pixels, mirrored=m).float() * 2 - 1 for m in (False, True)]
        return cls([hashlib.sha256(photo).digest() for photo in images.pixels.contiguous().numpy()], *codes)


@dataclass(frozen=True)
class Duplicates:
    """Photos of the first set that are in the second: index pairs (P,2), and for near ones the bits that
    differ (P,). ``near`` holds the nearest photo of the second set, mirrored or not, without exact ones."""

    exact: Tensor
    near: Tensor
    bits: Tensor


def duplicates(first: Images | Prints, second: Images | Prints, *, near_bits: int = NEAR_BITS) -> Duplicates:
    """Equal pixels, and hashes that differ in at most ``near_bits`` of 256 bits."""
    first, second = (x if isinstance(x, Prints) else Prints.of(x) for x in (first, second))
    where = {pixels: j for j, pixels in enumerate(second.pixels)}
    pairs = [(i, where[pixels]) for i, pixels in enumerate(first.pixels) if pixels in where]
    exact = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)

    bits, nearest = [], []
    for codes in first.codes.split(512):
        least, at = torch.stack([codes @ second.codes.T, codes @ second.mirrored.T]).amax(0).max(1)
        bits.append((codes.shape[1] - least) / 2)
        nearest.append(at)
    distance = torch.cat(bits)
    close = distance <= near_bits
    close[exact[:, 0]] = False
    return Duplicates(
        exact, torch.stack([close.nonzero().squeeze(1), torch.cat(nearest)[close]], 1), distance[close].long()
    )


def unseen_among(images: Images, known: Images) -> Images:
    """The photos that are not among ``known``, not even nearly (where the hash can tell)."""
    found = duplicates(images, known)
    near = found.near if len(found.near) <= COARSE * len(images) else found.near[:0]
    alone = torch.ones(len(images), dtype=torch.bool)
    alone[torch.cat([found.exact, near])[:, 0]] = False
    return images.take(alone)


def duplicate_rows(world: World) -> list[dict[str, Any]]:
    """Pairs of sets that must not share photos: how many photos of the first are in the second, exactly and
    nearly, and the file names of one such pair.

    A photo in training and in test flatters natural accuracy; one in a private and in a public set tells the
    prior about a private person.
    """
    sets = sets_of(world)
    prints = {name: Prints.of(images) for name, images in sets.items()}
    pairs = [
        ("train", "validation"),
        ("train", "test"),
        ("validation", "test"),
        ("public", "public_held_out"),
    ]
    pairs += [(private, other) for other in sets if other not in PRIVATE for private in PRIVATE]
    pairs = [pair for pair in pairs if set(pair) <= set(sets)]
    rows = []
    for first, second in pairs:
        found = duplicates(prints[first], prints[second])
        files = [
            f"{sets[first].files[i]} = {sets[second].files[j]}"
            for i, j in torch.cat([found.exact, found.near]).tolist()
        ]
        rows.append(
            {
                "first": first,
                "second": second,
                "photos": len(sets[first]),
                "exact": len(found.exact),
                "near": len(found.near),
                "example": files[0] if files else "",
            }
        )
    return rows


def duplicate_message(rows: list[dict[str, Any]]) -> str:
    """The finding of :func:`duplicate_rows` in one sentence."""
    guilty = [
        f"{row['first']} and {row['second']}: {row['exact']} equal, {row['near']} nearly"
        for row in rows
        if row["exact"] or row["near"]
    ]
    if any(row["near"] > COARSE * row["photos"] for row in rows):
        return (
            f"{sum(row['exact'] for row in rows)} equal photos are in two sets; the perceptual hash calls so many "
            "more pairs alike that it means nothing: these images have too little detail for it"
        )
    if not guilty:
        return "no photo is in two sets, neither exactly nor nearly"
    return f"warning, photos are in two sets ({'; '.join(guilty)}): remove them, or say what they touch"


def shared_people(world: World) -> dict[str, int]:
    """How many names each set without private photos shares with the private people (0 is right)."""
    private = set(world.train.names)
    others = {name: images for name, images in sets_of(world).items() if name not in PRIVATE and images.names}
    return {name: len(private & set(images.names)) for name, images in others.items()}


# --- framing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Framing:
    """How public faces must be moved to lie on private ones, from the two mean images.

    Attributes:
        zoom: factor by which the public mean is magnified. right, down: its shift, as shares of the side.
        before, after: correlation with the private mean as it is and moved (over the middle of the image).
    """

    zoom: float
    right: float
    down: float
    before: float
    after: float

    @property
    def comparable(self) -> bool:
        """Whether the means look alike at all once moved; if not, zoom and shift say nothing."""
        return self.after >= ALIKE

    @property
    def mismatch(self) -> bool:
        off = max(self.zoom, 1 / self.zoom) > ZOOM_TOLERANCE
        off |= max(abs(self.right), abs(self.down)) > SHIFT_TOLERANCE
        return self.comparable and off and self.after - self.before > GAIN

    @property
    def message(self) -> str:
        """The finding and, for a mismatch, what to do."""
        scores = f"correlation of the mean images {self.before:.2f} as they are, {self.after:.2f} at best"
        if not self.comparable:
            return f"framing not judged: the mean images do not look alike (correlation {self.after:.2f})"
        if not self.mismatch:
            return f"framed alike ({scores})"
        return (
            f"warning, framed differently: public faces fit the private ones best magnified by {self.zoom:.2f} and "
            f"moved by {100 * self.right:+.0f} % of the side to the right and {100 * self.down:+.0f} % down "
            f"({scores}); change `crop` (size) or `down` (place) of the public source"
        )


def framing(private: Images, public: Images) -> Framing:
    """Compare the framing of two sets by their mean images: which zoom and shift of the public mean agrees
    best with the private one, over the middle of the image.

    Raises:
        UserError: images of two sizes.
    """
    if private.size != public.size:
        raise UserError(
            f"framing: expected images of one size, got {private.size} and {public.size}; decode them alike"
        )
    fixed, moved = (mean_image(images).mean(0)[None, None] for images in (private, public))
    reach = round(LARGEST_SHIFT * private.size)
    scores = torch.stack([_correlations(fixed, moved, zoom, reach) for zoom in ZOOMS])
    zoom, down, right = (int(i) for i in torch.unravel_index(scores.argmax(), scores.shape))
    return Framing(
        ZOOMS[zoom],
        (right - reach) / private.size,
        (down - reach) / private.size,
        float(_correlations(fixed, moved, 1.0, 0).max()),
        float(scores.max()),
    )


def mean_image(images: Images) -> Tensor:
    """(3,S,S) in [0,1], without a float copy of all photos."""
    total = sum(part.sum(0, dtype=torch.float64) for part in images.pixels.split(4096))
    return (total / (255 * len(images))).float()


def _correlations(fixed: Tensor, moved: Tensor, zoom: float, reach: int) -> Tensor:
    """Correlation of ``fixed`` with ``moved`` (1,1,S,S), magnified by ``zoom`` about the middle and shifted
    by -reach to reach pixels down (rows) and right (columns)."""
    theta = torch.tensor([[[1 / zoom, 0, 0], [0, 1 / zoom, 0]]])
    grid = F.affine_grid(theta, list(moved.shape), align_corners=False)
    seen = F.grid_sample(moved, grid, padding_mode="border", align_corners=False)
    size = fixed.shape[-1]
    edge = round(MARGIN * size)
    middle = fixed[..., edge : size - edge, edge : size - edge].flatten()
    # Moving the image down by one pixel is looking one pixel further up, hence the flip.
    wide = seen[..., edge - reach : size - edge + reach, edge - reach : size - edge + reach]
    windows = F.unfold(wide, size - 2 * edge)[0].T
    return (
        F.cosine_similarity(middle - middle.mean(), windows - windows.mean(1, keepdim=True), dim=1)
        .view(2 * reach + 1, 2 * reach + 1)
        .flip(0, 1)
    )
