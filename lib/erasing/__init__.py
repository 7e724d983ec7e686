"""Random erasing and every variant of it: which pixels of an image go, and what replaces them.

One law (:class:`ErasingLaw`), masks drawn per image without a loop, on the device of the images, and
exposure maps that say how often each position is hidden.
"""

from lib.erasing.erase import View, draw_view, erase
from lib.erasing.exposure import expected_exposure, exposure, mean_area
from lib.erasing.fills import IMAGENET_MEAN, REFERENCE_GREY, constant
from lib.erasing.law import LOCATIONS, SHAPES, VALUES, ErasingLaw
from lib.erasing.masks import draw_mask

__all__ = [
    "IMAGENET_MEAN",
    "LOCATIONS",
    "REFERENCE_GREY",
    "SHAPES",
    "VALUES",
    "ErasingLaw",
    "View",
    "constant",
    "draw_mask",
    "draw_view",
    "erase",
    "expected_exposure",
    "exposure",
    "mean_area",
]
