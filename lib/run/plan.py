"""What a run of the notebooks needs: its stages in order, what is there, and the time left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lib import attacks, store
from lib.data.world import data_stage
from lib.reports import combination_report, referee_report, repeated, robustness_report, sweep, tuned
from lib.reports.ablations import PARTIAL, PLACES, exposure_attacks, exposure_runs, with_defences
from lib.reports.budget import curve_attacks, rival_attacks, rivalled
from lib.reports.workbook import Workbook
from lib.runtime import device
from lib.stages import inversion, priors, records, robustness, success, targets
from lib.stages.inversion import Attack
from lib.store import Stage

DECODE_SECONDS = 60.0  # of the photos of a world; short, so not worth a probe
STUDENT_SECONDS = 120.0  # likewise


@dataclass(frozen=True)
class Step:
    """One stage of a run: whether it is there and the seconds it is expected to take here."""

    stage: Stage
    there: bool
    seconds: float


def plan(book: Workbook) -> list[Step]:
    """The stages of a study's notebooks, in the order they are made. An attack that only tables are made of
    is there when its record is (:mod:`lib.stages.records`), and wants no networks then. Times are measured on this
    machine with a few steps of each network; a training length that is chosen by validation and not known yet is
    taken to be the longest one tried. A given network has nothing to train and nothing to compare: judges and
    attacks."""
    setup = book.setup
    data = data_stage(setup)
    steps = [Step(data, store.exists(data), 0.0 if store.exists(data) else DECODE_SECONDS)]
    known = {data.key}

    def add(stage: Stage, seconds: float, recorded: bool = False) -> None:
        if stage.key not in known:
            known.add(stage.key)
            there = recorded or store.exists(stage)
            steps.append(Step(stage, there, 0.0 if there else seconds))

    def add_prior(stage: Stage, kind: str) -> None:
        add(stage, 0.0 if store.exists(stage) else priors.seconds(setup, kind, inversion.stand_in(setup)))

    if not book.has_photos:  # the target is given, nobody can judge
        for attack in book.headline_attacks():
            add_prior(priors.stage(setup, attack.prior), attack.prior)
            _add_attack(attack, add, attack.target().stage)
        return steps
    for role, config in (*setup.evaluators.items(), ("verifier", setup.verifier)):
        stage = targets.judge_stage(setup, role)
        add(stage, targets.training_seconds(setup, stage, config))
    for kind in setup.priors:
        add_prior(priors.stage(setup, kind), kind)

    def add_target(defence: str, seed: int, multiple: float) -> Stage:
        stage = targets.target_stage(setup, defence, seed, multiple)
        if setup.is_external:
            return stage
        free = targets.is_point(defence)
        add(stage, 0.0 if free else targets.training_seconds(setup, stage, setup.target))
        return stage

    for defence in book.defences:
        if defence in setup.multiples:
            for multiple in setup.multiples[defence]:
                add_target(defence, 0, multiple)
    longest = _length(book, "none")
    for control, seed, multiple in book.exposure_controls(longest):
        add_target(control, seed, multiple)
    for defence in book.defences:
        for seed in book.training_seeds:
            add_target(defence, seed, _length(book, defence))
    for defence in book.study.pages:
        length = _length(book, defence)
        stage = targets.target_stage(setup, defence, book.training_seeds[0], length)
        if not store.exists(records.answers_stage(stage)):
            add_target(defence, book.training_seeds[0], length)
    whole = [
        *book.headline_attacks(),
        *book.frontier_attacks(),
        *curve_attacks(book),
        *(book.attack("none", seed, budget=curve_attacks(book)[0].budget) for seed in book.training_seeds),
        *(attack for defence in rivalled(book) for attack in rival_attacks(book, defence)),
        *_ablations(book, longest),
    ]
    for i, attack in enumerate([*whole, *recorded(book)]):
        sized = replace(attack, multiple=attack.multiple or _length(book, attack.defence))
        if i >= len(whole) and store.exists(success.stage(sized)):
            add(inversion.reconstruction_stage(sized, sized.target_stage()), 0.0, recorded=True)
            continue
        stage = add_target(sized.defence, sized.training_seed, sized.multiple)
        add_prior(sized.prior_stage(stage), sized.prior)
        if "students" in attacks.get(sized.attack).needs:
            for student in inversion.student_stages(sized, stage):
                add(student, STUDENT_SECONDS)
        _add_attack(sized, add, stage)
    for attack in robustness_report.models(book, "backdoored"):
        if not store.exists(robustness.backdoor_stage(attack)):
            stage = robustness.poisoned_stage(attack)
            add(stage, targets.training_seconds(setup, stage, setup.target))
    return steps


def recorded(book: Workbook) -> list[Attack]:
    """The attacks of notebooks 11, 12 and 14 to 17, of which tables want no more than their records."""
    return [
        *sweep.attacks(book),
        *tuned.attacks(book),
        *repeated.attacks(book),
        *combination_report.attacks(book),
        *robustness_report.models(book),
        *book.listed_attacks([*book.study.compared, *book.study.adaptive]),
        *referee_report.runs(book),
        *referee_report.curve_runs(book, book.study.referee_defences),
        *book.listed_attacks(book.study.curves, ["none"], book.compared_seeds[:1]),
    ]


def _ablations(book: Workbook, longest: float) -> list[Attack]:
    """The attacks of notebooks 08 and 09."""
    if book.setup.is_external:
        return []
    partial = with_defences(book, (), PARTIAL)
    runs = exposure_attacks(partial, exposure_runs(partial), longest=longest).values()
    return sum(runs, []) + with_defences(book, (), PLACES).headline_attacks()


def _add_attack(attack: Attack, add: Callable[[Stage, float], None], target: Stage) -> None:
    made = inversion.reconstruction_stage(attack, target)
    add(made, 0.0 if store.exists(made) else inversion.attack_seconds(attack))


def _length(book: Workbook, defence: str) -> float:
    lengths = targets.multiples_of(book.setup, defence)
    if len(lengths) == 1 or store.exists(targets.selection_stage(book.setup, defence)):
        return targets.headline(book.setup, defence)
    return max(lengths)


def describe(steps: list[Step]) -> str:
    """The plan as text: a line per stage and the time left."""
    width = max(len(step.stage.label) for step in steps)
    lines = [
        f"  {step.stage.label:<{width}}  {'cached' if step.there else store.duration(step.seconds)}"
        for step in steps
    ]
    left = sum(step.seconds for step in steps)
    missing = sum(not step.there for step in steps)
    lines.append(f"{len(steps)} stages, {missing} to make, about {store.duration(left)} left on {device()}")
    return "\n".join(lines)
