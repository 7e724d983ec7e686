"""What the notebooks of one run share: a setup, the defences and seeds looked at, and their measured results."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from lib import results, statistics
from lib.data import World, load_world
from lib.defences import build, canonical
from lib.errors import UserError
from lib.setups import Setup, Study, load_setup, load_study
from lib.stages import inversion, measures, records, targets
from lib.stages.inversion import Attack
from lib.stages.progress import in_kernel
from lib.stages.whole import check_setup

WEAKER = "NoDef, weaker"  # the family that makes NoDef's own frontier
GIVEN = "given"  # the family of what a run looks at and the study does not


@dataclass(frozen=True)
class Workbook:
    """One run of the notebooks.

    Attributes:
        setup: the world. study: the rest of what its study file says.
        defences, training_seeds, attack_seeds: what this run looks at.
        partial: pages show what is made of the study's lists (:func:`lib.reports.made.made`).
    """

    setup: Setup
    study: Study
    defences: tuple[str, ...]
    training_seeds: tuple[int, ...]
    attack_seeds: tuple[int, ...]
    partial: bool = False

    @cached_property
    def world(self) -> World:
        return load_world(self.setup)

    @cached_property
    def conclusive(self) -> bool:
        """Whether the setup means to support conclusions, and has people enough for one."""
        people = inversion.people_of(self.setup)  # notebook 00 has no photos
        return self.setup.conclusive and not results.is_small(self.setup.name, people)

    @property
    def has_photos(self) -> bool:
        """Whether there are private photos; see :attr:`lib.setups.Setup.has_photos`."""
        return self.setup.has_photos

    @property
    def chance(self) -> float:
        return 1 / len(self.world.train.names)

    @property
    def trainings(self) -> str:
        """What a verdict is of, in words: an interval that resamples few trainings says little of others."""
        seeds = len(self.training_seeds)
        return "this one training" if seeds == 1 else f"these {seeds} trainings"

    # --- targets ----------------------------------------------------------------------------------

    def train(self) -> pd.DataFrame:
        """Train (or load) every target of the run at its headline length; save and return their table."""
        return self.train_at([(d, s, None) for d in self.defences for s in self.training_seeds])

    def training_lengths(self) -> pd.DataFrame:
        """Natural accuracy against training length, seed 0, for the defences that try several lengths."""
        return self.train_at(
            [
                (defence, 0, multiple)
                for defence in self.defences
                if defence in self.setup.multiples
                for multiple in self.setup.multiples[defence]
            ]
        )

    def exposure_controls(self, longest: float | None = None) -> list[tuple[str, int, float]]:
        """NoDef at half and three quarters of its steps: as many pixels seen as RE [.5,.5] and RE [.1,.4]; none
        for a given network. ``longest``: NoDef's headline length if known."""
        if self.setup.is_external:
            return []
        longest = targets.headline(self.setup, "none") if longest is None else longest
        return [("none", seed, longest * part) for part in (0.5, 0.75) for seed in self.training_seeds]

    def train_at(self, runs: Sequence[tuple[str, int, float | None]]) -> pd.DataFrame:
        """Train (or load) targets given as (defence, seed, multiple); save and return their table."""
        tables = []
        for defence, seed, multiple in runs:
            rows, identities = measures.target_rows(self.setup, defence, seed, multiple)
            name = self.name(defence, seed, rows[0]["training_steps"])
            results.save_table(rows, name)
            results.save_identities(identities, name)
            tables.append(pd.DataFrame(rows))
        return _joined(tables)

    # --- attacks ----------------------------------------------------------------------------------

    def attack(
        self,
        defence: str,
        training_seed: int | None = None,
        *,
        attack: str | None = None,
        prior: str | None = None,
        budget: str | None = None,
        attack_seed: int | None = None,
        multiple: float | None = None,
        people: int | None = None,
    ) -> Attack:
        """One attack run; what is not given is the study's (its first seeds, all people)."""
        return Attack(
            self.setup,
            canonical(defence, self.setup.defences),
            self.training_seeds[0] if training_seed is None else training_seed,
            attack or self.study.attacks[0],
            prior or self.study.prior,
            budget or self.study.budget,
            self.attack_seeds[0] if attack_seed is None else attack_seed,
            multiple,
            people,
        )

    def headline_attacks(self) -> list[Attack]:
        """Every defence, training seed and attack seed with the study's attacks, prior and budget."""
        return [
            self.attack(defence, seed, attack=method, attack_seed=start)
            for defence in self.defences
            for seed in self.training_seeds
            for method in self.study.attacks
            for start in self.attack_seeds
        ]

    def listed_attacks(
        self, lines: Sequence[str], models: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> list[Attack]:
        """Attacks that the study lists as "attack prior budget", on those of its compared models that are in the run
        (or on the models given): every line on every model under every one of its compared seeds (or those given),
        model by model; on the first two models only where a prior is trained against each target. A number after
        the budget is how many people are attacked.

        Raises:
            UserError: a line of another form.
        """
        models = models or [name for name in self.compared_models if name in self.defences]
        found = []
        for line in lines:
            words = re.fullmatch(r"(\S+) (\S+) (\S+)(?: (\d+))?", line)
            if not words:
                raise UserError(
                    f"study {self.study.setup}: expected 'attack prior budget' and perhaps a number of people, got "
                    f"{line!r}; correct its list"
                )
            method, prior, budget, people = words.groups()
            what = {
                "attack": method,
                "prior": prior,
                "budget": budget,
                "people": int(people) if people else None,
            }
            few = models[:2] if prior in self.setup.target_priors else models
            starts = seeds or self.compared_seeds
            found += [self.attack(m, attack_seed=seed, **what) for m in few for seed in starts]
        return found

    @property
    def compared_seeds(self) -> tuple[int, ...]:
        """Attack seeds of the listed attacks: the study's for them, else the run's."""
        return tuple(self.study.compared_seeds) or self.attack_seeds

    @property
    def compared_models(self) -> tuple[str, ...]:
        """The models that attacks are compared on."""
        chosen = self.study.compared_defences or self.study.defences[:2]
        return tuple(canonical(name, self.setup.defences) for name in chosen)

    def frontier(self) -> pd.DataFrame:
        """Train, attack and save NoDef's own frontier; the table of its attacks."""
        attacks = self.frontier_attacks()
        self.train_at([(attack.defence, attack.training_seed, None) for attack in attacks])
        return self.invert(attacks)

    def frontier_attacks(self) -> list[Attack]:
        """NoDef's own frontier: the points of its headline run, attacked alike (its end is the headline)."""
        return [self.attack(name, seed) for name in self.frontier_names[:-1] for seed in self.frontier_seeds]

    def invert(self, attacks: Sequence[Attack]) -> pd.DataFrame:
        """Run (or load) attacks; save and return their table."""
        tables = []
        for attack in attacks:
            rows, identities, baselines = measures.attack_rows(attack)
            name = self.name(attack.defence, attack.training_seed, rows[0]["training_steps"], attack)
            results.save_table(rows, name, allow_missing={"scaled_leakage", "kid"})
            results.save_identities(identities, name, allow_missing={"knn_distance_unseen_photo"})
            results.save_curves(baselines, f"prior-samples__{name}")
            tables.append(pd.DataFrame(rows))
        return _joined(tables)

    def evaluators(self) -> pd.DataFrame:
        """The judges on unseen photos; saved."""
        rows = measures.evaluator_rows(self.setup)
        results.save_table(rows, f"{self.setup.name}__evaluators")
        return pd.DataFrame(rows)

    def name(self, defence: str, seed: int, steps: int, attack: Attack | None = None) -> str:
        text = f"{self.setup.name}__{slug(defence)}__{steps}-steps__seed-{seed}"
        if attack is None:
            return text
        text += f"__{slug(attack.attack)}__{attack.prior}__{attack.budget}__seed-{attack.attack_seed}"
        return f"{text}__{attack.people}-people" if attack.people else text

    # --- comparisons ------------------------------------------------------------------------------

    def per_identity(self, table: pd.DataFrame, metric: str, evaluator: str, defence: str) -> np.ndarray:
        """(S,K) per-identity means of a defence by training seed and ascending identity (attack seeds averaged)."""
        name = canonical(defence, self.setup.defences)
        rows = table[(table.metric == metric) & (table.evaluator == evaluator) & (table.defence == name)]
        rows = rows.assign(identity=rows["identity"].astype(int))  # as text, 10 would come before 2
        grid = rows.pivot_table(index="training_seed", columns="identity", values="value")
        if grid.empty:
            raise UserError(f"no saved values of {metric} for {defence}; run its attack first")
        return grid.to_numpy(dtype=float)

    def points(self, names: Sequence[str], evaluator: str = "main") -> statistics.Points:
        """Several models (headline training, the study's attack, prior and budget) as points of privacy and
        utility: AttAcc by an evaluator, or the match rate of a verifier. With NoDef's checkpoints among them,
        the points are of the runs that the checkpoints are of."""
        table = self._saved_identities
        if any(name.startswith("early(") for name in names):
            table = table[table["training_seed"].isin(self.frontier_seeds)]
        metric = "verifier_match" if evaluator.startswith("verifier") else "attack_accuracy_top1"
        return statistics.Points(
            np.stack([self.per_identity(table, metric, evaluator, name) for name in names], 1),
            np.stack([self.per_identity(table, "natural_accuracy", "", name) for name in names], 1),
            self.test_photos,
        )

    @property
    def test_photos(self) -> np.ndarray:
        """(K,) unseen photos of each person, which natural accuracy is weighted by."""
        known = records.answers(self.setup, "none", self.training_seeds[0])
        return np.bincount(known.labels["test"].numpy()).astype(float)

    @property
    def frontier_seeds(self) -> tuple[int, ...]:
        """Training seeds of the NoDef runs whose checkpoints are attacked: the study's, of those in this run."""
        chosen = tuple(seed for seed in self.training_seeds if seed in self.study.frontier_seeds)
        return chosen or self.training_seeds[: 1 if self.study.frontier_seeds else None]

    @property
    def frontier_names(self) -> list[str]:
        """NoDef's own frontier, weakest first: points of its headline run, and its end."""
        return [f"early({part:g})" for part in self.setup.snapshots] + ["none"]

    @property
    def _saved_identities(self) -> pd.DataFrame:
        """Headline rows of ``identities/``, read again only when a file has changed."""
        folder = results.output_dir(self.setup.name)
        files = sorted((folder / "identities").glob(f"{self.setup.name}__*.csv"))
        stamp = tuple((path.name, path.stat().st_mtime_ns) for path in files)
        if stamp not in self._read:
            self._read.clear()
            table = results.load_identities(f"{self.setup.name}__*", folder=folder)
            self._read[stamp] = self._headline_rows(table)
        return self._read[stamp]

    @cached_property
    def said(self) -> set[str]:
        """What the notebook has said of what is not made."""
        return set()

    @cached_property
    def _read(self) -> dict[tuple, pd.DataFrame]:
        return {}

    def _headline_rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Values of targets at their headline length, and of the study's prior and budget."""
        steps = {}
        for defence in {*self.defences, *(f"early({p:g})" for p in self.setup.snapshots), "none"}:
            multiple = targets.headline(self.setup, defence)
            steps[defence] = measures.steps_of(self.setup, defence, self.training_seeds[0], multiple)
        wanted = table.training_steps == table.defence.map(steps)
        study = (table.attack == "") | (
            (table.attack == self.study.attacks[0])
            & (table.prior == self.study.prior)
            & (table.budget == self.study.budget)
        )
        seeds = table.training_seed.isin(self.training_seeds)
        starts = (table.attack == "") | table.attack_seed.isin(self.attack_seeds)
        return table[wanted & study & seeds & starts]


def open_workbook(
    setup: str,
    defences: Sequence[str] = (),
    training_seeds: Sequence[int] = (),
    attack_seeds: Sequence[int] = (),
) -> Workbook:
    """The run that a notebook's parameters describe; empty lists mean what the setup's study says. Given defences are
    looked at whether the study lists them or not, and no others but NoDef, which all are compared with. In a notebook
    that is not to train anything, of a study that is made step by step, it is ``partial``.

    Raises:
        UserError: unknown setup or defence, a setup that is not whole, something to train with a given network, or a
            seed that is not a whole number >= 0.
    """
    world = load_setup(setup)
    check_setup(world)
    study = load_study(world.name)
    if world.is_external:
        lists = "compared adaptive referee curves pages others lengths repeated combined evaded backdoored".split()
        unlisted = {name: [] for name in lists} | {"strengths": {}}
        study = replace(study, defences=["none"], training_seeds=study.training_seeds[:1], **unlisted)
    chosen = tuple(canonical(text, world.defences) for text in (defences or study.defences))
    for text in chosen:
        build(text, world.defences)
    if defences and not world.is_external:
        study = _focused(study, [text for text in chosen if text != "none"], world)
    seeds = tuple(training_seeds or study.training_seeds), tuple(attack_seeds or study.attack_seeds)
    for seed in (*seeds[0], *seeds[1]):
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UserError(f"seeds: expected whole numbers of at least 0, got {seed!r}")
    if world.is_external and (chosen != ("none",) or len(seeds[0]) > 1):
        raise UserError(
            f"{world.name}: the target is a given network, so there is nothing to train: expected no defences and "
            f"at most one training seed, got {', '.join(chosen)} and {len(seeds[0])}; leave both empty"
        )
    partial = study.stepwise and in_kernel() and os.environ.get("MIDRE_TRAIN") != "1"
    return Workbook(world, study, chosen, *seeds, partial)


def _focused(study: Study, given: list[str], world: Setup) -> Study:
    """The study with its lists of defences cut down to those given, and those that are in no list added; as it is
    where only NoDef is given."""
    if not given:
        return study

    def kept(listed: Sequence[str]) -> list[str]:
        return [text for text in listed if canonical(text, world.defences) in given]

    families = {name: listed if name == WEAKER else kept(listed) for name, listed in study.strengths.items()}
    listed = {canonical(text, world.defences) for names in study.strengths.values() for text in names}
    loose = [text for text in given if text not in listed]
    return replace(
        study,
        pages=given,
        strengths={name: texts for name, texts in (families | {GIVEN: loose}).items() if texts},
        combined=[text for text in given if text.count("+") == 1],
        evaded=given,
        backdoored=given,
        repeated=kept(study.repeated),
        met_defences=kept(study.met_defences),
    )


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(results.COLUMNS))


def slug(defence: str) -> str:
    """A defence's name as part of a file name: ``re(0.1,0.4)`` -> ``re-0.1-0.4``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", defence).strip("-")
