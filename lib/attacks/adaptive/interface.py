"""What an ingredient can change: what the target answers, what is added to the loss, what images are erased."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lib.attacks.knowledge import Knowledge

MATERIALS = ("prior", "students")


@dataclass(frozen=True)
class Ingredient:
    """One ingredient, parsed from its name.

    Attributes:
        name: as it is written in an attack's name.
        needs: fields of :class:`~lib.attacks.knowledge.Knowledge` it cannot do without.
        wrap: ``(target, knowledge, seed)`` to the target as the attack is to see it; None: as it is.
        erases: of :data:`MATERIALS`, what is to be made from erased instead of clean public images, by
            whoever makes it (:mod:`lib.stages.inversion` in a study).
        passes: about how many images go through the target for one that is shown to it.
        images: how many public images pass the target before the attack begins, part by part.
        place: ingredients wrap the target in ascending order of it, whatever the order in the name.
        revision: of what it does; raised when that changes, so that stored results are made anew.
    """

    name: str
    needs: frozenset[str] = frozenset()
    wrap: Callable[[nn.Module, Knowledge, int], nn.Module] | None = None
    erases: frozenset[str] = frozenset()
    passes: int = 1
    images: tuple[int, ...] = ()
    place: int = 1
    revision: int = 1


class Adapted(nn.Module):
    """A target seen through an ingredient. Subclasses override :meth:`forward` and what else they change.

    Attributes:
        inner: the target, or another ingredient's view of it.
        base: the target itself.
        ingredients: their names, by which a run through them is told from another.
        passes: images through the target per image shown. gradient_passes: how many more when a gradient is wanted.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.num_classes, self.image_size = inner.num_classes, inner.image_size
        self.passes: int = getattr(inner, "passes", 1)
        self.gradient_passes: int = getattr(inner, "gradient_passes", 0)
        self.ingredients: tuple[str, ...] = getattr(inner, "ingredients", ())

    @property
    def base(self) -> nn.Module:
        return self.inner.base if isinstance(self.inner, Adapted) else self.inner

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, d) and logits (B, C)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]

    def features(self, images: Tensor) -> Tensor:
        return self.both(images)[0]

    @property
    def shows_views(self) -> bool:
        """Whether the target is shown erased views of each image, so that its features are theirs."""
        return isinstance(self.inner, Adapted) and self.inner.shows_views

    def also(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits (B, C) of another network (a student), asked as the target was in the pass before."""
        return self.inner.also(network, images) if isinstance(self.inner, Adapted) else network(images)

    def terms(self) -> Tensor | float:
        """What is added to the loss of the images shown since the last call: (B,), or 0."""
        return self.inner.terms() if isinstance(self.inner, Adapted) else 0.0

    def restart(self) -> None:
        """Start all random draws again."""
        if hasattr(self.inner, "restart"):  # another ingredient, or a network that draws noise
            self.inner.restart()
