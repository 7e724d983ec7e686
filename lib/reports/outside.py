"""The outside verifier's opinion of the study's reconstructions: an optional judge of notebook 06."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import Markdown

from lib import evaluation, results, store
from lib.data import load_world
from lib.data.world import data_stage
from lib.evaluation import dlib_face
from lib.reports.tables import pivot
from lib.reports.workbook import Workbook
from lib.results.sentences import metric_name, show_interval, show_number
from lib.setups import Setup
from lib.stages import inversion, measures
from lib.stages.gallery import Gallery
from lib.stages.inversion import Attack, Judged
from lib.stages.progress import expected
from lib.store import Stage

NAME = dlib_face.NAME
KEPT = 2
"""Reconstructions judged per person, the ones the target rates best."""
SECONDS = 0.1
"""What an image takes it."""


def applies(setup: Setup) -> bool:
    """Whether there are private faces (digits are none) and the optional packages to look at them."""
    return setup.has_photos and setup.data.private.source != "digits" and dlib_face.available()


def gallery(setup: Setup) -> Gallery:
    """As many enrolled photos for everybody, and the threshold on natural photos of others."""
    world = load_world(setup)
    params = {"setup": setup.name, "network": NAME, "version": 1}
    stage = Stage("photos", f"{setup.name} photos seen by {NAME}", params, (data_stage(setup).key,))
    enrolled = world.train.take(evaluation.balanced_references(world.train.labels))

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        pairs = (("train", enrolled), ("test", world.test))
        return {name: dlib_face.embed(photos.pixels) for name, photos in pairs}, {}

    images = len(enrolled) + len(world.test)
    seen = store.get(stage, make, seconds=expected(stage, lambda: SECONDS * images)).tensors
    photos = {
        name: Judged({NAME: seen[name]}, {}, images.labels)
        for name, images in (("train", enrolled), ("test", world.test))
    }
    return Gallery(photos, NAME, false_accept_rate=setup.false_accept_rate)


def judged(attack: Attack, what: str = "reconstructions") -> Judged:
    """The best :data:`KEPT` ``reconstructions`` a person, or the ``prior_samples`` they started from."""
    source = inversion.reconstruction_stage(attack, attack.target().stage)
    params = {"network": NAME, "of": what, "kept": KEPT, "version": 1}
    stage = Stage("judged", f"{source.label}, {what} judged by {NAME}", params, (source.key,))
    made = inversion.reconstruct(attack)
    best = made.selected[:, :KEPT]

    def make(_: store.Checkpoint) -> tuple[dict, dict]:
        if what == "reconstructions":
            images = inversion.pictures(attack, range(len(made.labels)), best)
        else:
            start = made.initial.gather(1, best[..., None].expand(-1, -1, made.initial.shape[-1]))
            images = inversion.starting_pictures(attack, start)
        return {"features": dlib_face.embed(images.flatten(0, 1))}, {}

    seconds = expected(stage, lambda: SECONDS * best.numel())
    features = store.get(stage, make, seconds=seconds).tensors["features"]
    return Judged({NAME: features}, {}, made.labels.repeat_interleave(best.shape[1]))


def measured(book: Workbook) -> pd.DataFrame:
    """Judge the study's attacks and NoDef's frontier, and the prior samples that the first of them started from;
    save their rows beside those of the other judges."""
    enrolled = gallery(book.setup)
    attacks = [*book.headline_attacks(), *book.frontier_attacks()]
    tables = [measure(book, attack, enrolled) for attack in attacks]
    start = judged(attacks[0], "prior_samples")
    before = _rows(measures.attack_common(attacks[0]), enrolled, start)
    results.save_curves(measures.as_baseline(before), f"prior-samples__{_name(book, attacks[0])}")
    photos = measures.photo_rows(measures.evaluator_common(book.setup), enrolled)
    results.save_table(photos, f"{book.setup.name}__evaluators__dlib")
    return pd.concat(tables, ignore_index=True)


def measure(book: Workbook, attack: Attack, enrolled: Gallery) -> pd.DataFrame:
    """The outside verifier's rows about one attack; saved."""
    common, seen = measures.attack_common(attack), judged(attack)
    rows = _rows(common, enrolled, seen)
    results.save_table(rows, _name(book, attack))
    identities = [
        measures.per_identity(common, metric, NAME, right.float(), seen.labels)
        for metric, right in enrolled.verdicts(seen.features[NAME], seen.labels).items()
    ]
    results.save_identities(sum(identities, []), _name(book, attack))
    return pd.DataFrame(rows)


def _name(book: Workbook, attack: Attack) -> str:
    return f"{book.name(attack.defence, attack.training_seed, attack.target().steps, attack)}__dlib"


def _rows(common: measures.Row, enrolled: Gallery, seen: Judged) -> list[measures.Row]:
    return [
        measures.row(common, metric, NAME, "", measures.mean(right, seen.labels))
        for metric, right in enrolled.verdicts(seen.features[NAME], seen.labels).items()
    ]


def opinion(book: Workbook) -> Any:
    """Match and rank-1 rates by the outside verifier, or how to get one."""
    if not applies(book.setup):
        why = "digits are no faces" if book.setup.data.private.source == "digits" else ""
        return Markdown(f"*No outside verifier here: {why or 'pip install -e .[verifier]'}.*")
    table = measured(book)
    metrics = ["verifier_match", "verifier_rank1_accuracy"]
    return pivot(table, metrics=metrics, columns="metric", evaluator=[NAME])


def caption(book: Workbook) -> str:
    """How many reconstructions it saw, and its verdict of unseen photos."""
    if not applies(book.setup):
        return ""
    rows = pd.DataFrame(measures.photo_rows(measures.evaluator_common(book.setup), gallery(book.setup)))
    cells = [
        f"{metric_name(row.metric)} {show_number(row.value, row.metric)} "
        f"{show_interval(row.low, row.high, row.metric)}"
        for row in rows.itertuples()
    ]
    rate = f"{100 * book.setup.false_accept_rate:g} %"
    return (
        f"Of every model the {KEPT} reconstructions a person that the target rates best, not all that it kept. Unseen "
        f"photos of the same people, false-accept rate {rate}: {'; '.join(cells)}."
    )
