"""What each defence of a run takes and costs, and its advantage over a NoDef model that is merely as accurate."""

from __future__ import annotations

import pandas as pd

from lib import statistics
from lib.reports.workbook import Workbook
from lib.stages import measures


def advantages(book: Workbook, evaluator: str = "main") -> pd.DataFrame:
    """Per defence: natural accuracy, AttAcc, their paired differences to NoDef, and the advantage over
    NoDef's own frontier, each with a 95 % interval over identities (and seeds, where there are several)."""
    points, base = book.points(book.defences, evaluator), book.points(["none"], evaluator)
    over = statistics.advantage_over_frontier(
        points, book.points(book.frontier_names, evaluator), chance=points.chance, seed=measures.SEED
    )
    natural, leak = points.means()
    (base_natural,), (base_leak,) = base.means()
    rows = []
    for i, (defence, found) in enumerate(zip(book.defences, over, strict=True)):
        attack, accuracy = points.attack[:, i], points.accuracy[:, i]
        privacy = statistics.compare_paired(base.attack[:, 0], attack, seed=measures.SEED)
        utility = statistics.compare_paired(
            accuracy, base.accuracy[:, 0], photos=points.photos, seed=measures.SEED
        )
        rows.append(
            {
                "defence": defence,
                "evaluator": evaluator,
                "training_seeds": len(attack),
                "seeds": statistics.summarise_seeds(attack, seed=measures.SEED),
                "natural_accuracy": statistics.nested_mean(
                    accuracy, photos=points.photos, seed=measures.SEED
                ),
                "attack_accuracy": statistics.nested_mean(attack, seed=measures.SEED),
                "utility_difference": utility.difference,
                "privacy_gain": privacy.difference,
                "advantage": found.advantage,
                "detectable": found.detectable,
                "extrapolated": found.extrapolated,
                "verdict": statistics.verdict(found.advantage, defence=defence),
                "paper_ratio": statistics.paper_ratio(
                    nodef_attack=float(base_leak),
                    defence_attack=float(leak[i]),
                    nodef_accuracy=float(base_natural),
                    defence_accuracy=float(natural[i]),
                ),
            }
        )
    return pd.DataFrame(rows)
