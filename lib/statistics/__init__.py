"""Intervals, tests and trade-offs. The unit is the identity: images of one person are not independent."""

from lib.statistics.bootstrap import (
    clustered_mean,
    clustered_statistic,
    identity_weights,
    nested_mean,
    nested_statistic,
    percentile_interval,
    zero_event_bound,
)
from lib.statistics.curves import frontier_attack, hypervolume, matched_attack, pareto_front
from lib.statistics.interaction import interaction
from lib.statistics.interval import Interval
from lib.statistics.paired import (
    PairedComparison,
    compare_paired,
    detectable_difference,
    holm,
    sign_flip_p_value,
)
from lib.statistics.proportions import McNemar, mcnemar, wilson
from lib.statistics.seeds import SeedSummary, summarise_seeds, t_interval
from lib.statistics.tradeoff import (
    Advantage,
    Matched,
    Points,
    advantage_over_frontier,
    dominance_probability,
    hypervolume_interval,
    matched_loss,
)
from lib.statistics.wording import Ratio, Verdict, paper_ratio, verdict

__all__ = [
    "Advantage",
    "Interval",
    "Matched",
    "McNemar",
    "PairedComparison",
    "Points",
    "Ratio",
    "SeedSummary",
    "Verdict",
    "advantage_over_frontier",
    "clustered_mean",
    "clustered_statistic",
    "compare_paired",
    "detectable_difference",
    "dominance_probability",
    "frontier_attack",
    "holm",
    "hypervolume",
    "hypervolume_interval",
    "identity_weights",
    "interaction",
    "matched_attack",
    "matched_loss",
    "mcnemar",
    "nested_mean",
    "nested_statistic",
    "paper_ratio",
    "pareto_front",
    "percentile_interval",
    "sign_flip_p_value",
    "summarise_seeds",
    "t_interval",
    "verdict",
    "wilson",
    "zero_event_bound",
]
