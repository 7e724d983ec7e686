"""Decoded faces as uint8 in memory, cut into private, public and disjoint helper sets."""

from lib.data.images import Images
from lib.data.world import World, load_world

__all__ = ["Images", "World", "load_world"]
