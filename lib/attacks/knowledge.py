"""What an attacker has besides the target and a prior. Nothing private is ever in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn, uint8

from lib.erasing import ErasingLaw
from lib.errors import UserError


def blind(law: ErasingLaw) -> ErasingLaw:
    """The law with what the attacker cannot know made random: a place that it fixes, and the other training images
    that it may fill with."""
    return replace(
        law,
        location=law.location if law.location in ("random", "toroidal") else "random",
        value="noise" if law.value == "image" else law.value,
    )


@dataclass(frozen=True)
class Knowledge:
    """What the threat model grants. An attack says in ``NEEDS`` which of these it cannot do without.

    Attributes:
        public: (N, 3, S, S) uint8 images of public people.
        erased: the same, erased as the attacker believes the target's were; the features of these are what LOMMA
            stays near where it is given them.
        students: networks distilled from the target on public images, of the target's classes (LOMMA).
        law: how the target's training images were erased (the defence is published, its draws are not).
    """

    public: Tensor | None = None
    erased: Tensor | None = None
    students: tuple[nn.Module, ...] = ()
    law: ErasingLaw | None = None

    @property
    def blind_law(self) -> ErasingLaw:
        return blind(self.law)

    def require(self, attack: str, *needs: str) -> None:
        """Raises: UserError naming the first thing that is missing."""
        for need in needs:
            value = getattr(self, need)
            if value is None or len(value := (value,) if need == "law" else value) == 0:
                raise UserError(
                    f"{attack}: expected knowledge of {need}, got none; pass knowledge=Knowledge({need}=...)"
                )

    def check_images(self, attack: str, size: int) -> None:
        """Raises: UserError for ``public`` or ``erased`` images that are not uint8 (N, 3, size, size)."""
        for name in ("public", "erased"):
            images = getattr(self, name)
            if images is not None and (images.dtype != uint8 or images.shape[1:] != (3, size, size)):
                raise UserError(
                    f"{attack}: expected {name} images as uint8 (N, 3, {size}, {size}), the target's size, got "
                    f"{images.dtype} {tuple(images.shape)}; decode them with lib.data"
                )


NOTHING = Knowledge()
