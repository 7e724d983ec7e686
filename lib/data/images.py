"""Images in memory: uint8 pixels, integer labels, names and file names."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A set of photos.

    Attributes:
        pixels: (N,3,S,S) uint8.
        labels: (N,) int64 identity numbers; -1 where the set has no identities.
        names: name of each identity, indexed by label.
        files: one file name per photo, relative to the data folder.
    """

    pixels: Tensor
    labels: Tensor
    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> int:
        return self.pixels.shape[-1]

    def float(self, index: Tensor | slice = slice(None)) -> Tensor:
        """(B,3,S,S) in [0,1]."""
        return self.pixels[index].float().div_(255)

    def take(self, index: Tensor) -> Images:
        """The photos of ``index`` (integers or a mask), with the same names."""
        where = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
        files = [self.files[i] for i in where.tolist()] if self.files else []
        return Images(self.pixels[where], self.labels[where], self.names, files)

    def relabelled(self) -> Images:
        """Identities renumbered 0..K-1 in the order of their present labels, absent ones dropped."""
        present, labels = torch.unique(self.labels, return_inverse=True)
        return Images(self.pixels, labels, [self.names[i] for i in present.tolist()], self.files)

    def to(self, device: torch.device | str) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device), self.names, self.files)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        return {f"{prefix}.pixels": self.pixels, f"{prefix}.labels": self.labels}

    def text(self) -> dict[str, list[str]]:
        return {"names": self.names, "files": self.files}
