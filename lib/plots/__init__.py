"""Figures: functions take data and ``ax=None`` or lay out a figure themselves, and return what they drew on.

Titles come from the caller, who states the finding. Colours, markers and order are fixed once in ``style``.
"""

from lib.plots.attacks import attack_budgets, attack_costs, grouped_intervals
from lib.plots.defences import PARTS, ratios, strengths
from lib.plots.erasing import by_exposure, erasing_gallery, exposure_against_error, exposure_maps
from lib.plots.faces import contact_sheet, mean_faces, people_sheet, sample_sheet, side_by_side
from lib.plots.features import (
    class_map,
    difference_plot,
    distance_distributions,
    pca_panels,
    separation_plot,
    tsne_panels,
)
from lib.plots.robustness import privacy_against_robustness
from lib.plots.style import label, order, percent_axis, set_styles, styles, theme
from lib.plots.tradeoff import attack_bars, budget_curve, tradeoff
from lib.plots.training import interval_curves, learning_curves

__all__ = [
    "PARTS",
    "attack_bars",
    "attack_budgets",
    "attack_costs",
    "budget_curve",
    "by_exposure",
    "class_map",
    "contact_sheet",
    "difference_plot",
    "distance_distributions",
    "erasing_gallery",
    "exposure_against_error",
    "exposure_maps",
    "grouped_intervals",
    "interval_curves",
    "label",
    "learning_curves",
    "mean_faces",
    "order",
    "pca_panels",
    "people_sheet",
    "percent_axis",
    "privacy_against_robustness",
    "ratios",
    "sample_sheet",
    "separation_plot",
    "set_styles",
    "side_by_side",
    "strengths",
    "styles",
    "theme",
    "tradeoff",
    "tsne_panels",
]
