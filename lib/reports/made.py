"""What of a study's lists a page can show: all of them, or, of a study that is made step by step, what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lib.plots import label
from lib.reports.workbook import Workbook
from lib.stages import success
from lib.stages.inversion import Attack
from lib.stages.progress import in_kernel
from lib.store import Missing

NAMED = 4  # models; of more their number is said


def made(
    book: Workbook,
    listed: Sequence[Attack],
    there: Callable[[Attack], bool] = success.is_there,
    what: str = "",
) -> list[Attack]:
    """The listed attacks that a page is about: all, or, of a ``partial`` book, those that are ``there``. A notebook
    says once what is left out: ``what`` is done to the models attacked, if it is not the attack."""
    if not book.partial:
        return list(listed)
    kept = [attack for attack in listed if _is(attack, there)]
    kept_ids = {id(attack) for attack in kept}
    say(book, _named([attack for attack in listed if id(attack) not in kept_ids], what))
    return kept


def say(book: Workbook, absent: str) -> None:
    """In a notebook, once: that this is not made yet."""
    if absent and absent not in book.said:
        book.said.add(absent)
        if in_kernel():
            print(f"Not made yet: {absent}. `python -m lib.run batch {book.setup.name}` makes it.")


def _is(attack: Attack, there: Callable[[Attack], bool]) -> bool:
    try:
        return there(attack)
    except Missing:  # not even its training length is known
        return False


def _named(absent: Sequence[Attack], what: str) -> str:
    """Attacks in words, the seeds of each and the models that lack the same together."""
    runs: dict[tuple[str, str], list[Attack]] = {}
    for run in absent:
        doing = what or f"{run.attack} {run.prior} {run.budget}"
        runs.setdefault((doing, label(run.defence)), []).append(run)
    models: dict[str, list[str]] = {}
    for (doing, name), lacked in runs.items():
        models.setdefault(doing if what else f"{doing}{_seeds(lacked)} on", []).append(name)
    return "; ".join(
        f"{line} {', '.join(names) if len(names) <= NAMED else f'{len(names)} models'}"
        for line, names in models.items()
    )


def _seeds(lacked: Sequence[Attack]) -> str:
    """Which, unless it is the first alone."""
    said = ""
    for kind, found in (
        ("training", {run.training_seed for run in lacked}),
        ("attack", {run.attack_seed for run in lacked}),
    ):
        if found != {0}:
            said += f", {kind} seed{'s' * (len(found) > 1)} {' and '.join(map(str, sorted(found)))}"
    return said
