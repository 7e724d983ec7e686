"""The shipped zoo: which stages come with the repository, and the card that describes them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lib import store
from lib.errors import UserError
from lib.setups import Setup, load_setup, load_study
from lib.stages import inversion, priors, targets
from lib.stages.inversion import Attack
from lib.store import Stage

SHIPPED = ("none", "re(0.1,0.4)", "re(0.1,0.8)", "re(0.5,0.5,location=toroidal)")
ALONE = ("bido_hsic(0.05,0.5)",)  # the network and nothing else: there is no room
LIMIT_MEGABYTES = 60


def zoo_stages(setup: Setup) -> list[Stage]:
    """Targets at their headline length (seed 0) and the study's reconstructions of them, all judges, both
    priors, the choices of training length, and the private photos' features that verification and natural
    accuracy need where the photos are not."""
    stages = [targets.selection_stage(setup, defence) for defence in SHIPPED]
    trained = []
    for defence in SHIPPED:
        stage = targets.target_stage(setup, defence, 0, targets.headline(setup, defence))
        trained.append((stage, "target"))
    trained += [(targets.judge_stage(setup, role), role) for role in (*setup.evaluators, "verifier")]
    for stage, role in trained:
        stages += [stage, inversion.photos_stage(setup, stage, role)]
    stages += [targets.target_stage(setup, name, 0, targets.headline(setup, name)) for name in ALONE]
    stages += [priors.stage(setup, kind) for kind in setup.priors]
    study = load_study(setup.name)
    for target in (stage for stage, role in trained if role == "target"):
        attack = Attack(
            setup,
            target.params["defence"],
            0,
            study.attacks[0],
            study.prior,
            study.budget,
            study.attack_seeds[0],
        )
        stages.append(inversion.reconstruction_stage(attack, target))
    return list({stage.key: stage for stage in stages}.values())


def promote_zoo(name: str) -> list[Path]:
    """Make the zoo anew of what is there of its stages, with the card: written beside it, and exchanged for it
    only when it is whole and small enough.

    Raises:
        UserError: nothing is made yet, or the zoo would exceed its size.
    """
    setup = load_setup(name)
    stages = [stage for stage in zoo_stages(setup) if store.exists(stage)]
    if not stages:
        raise UserError(f"promote: no stage of {name} is made yet; `make run SETUP={name}` first")
    zoo = store.ZOO
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=zoo.parent, prefix=".zoo-") as aside:
        new, old = Path(aside, "new"), Path(aside, "old")
        written = [store.promote(stage, folder=new) for stage in stages]
        for path in zoo.iterdir():
            if path.suffix not in (".json", ".safetensors"):
                shutil.copy2(path, new)
        megabytes = sum(path.stat().st_size for path in new.iterdir()) / 1e6
        if megabytes > LIMIT_MEGABYTES:
            raise UserError(
                f"promote: the zoo would have {megabytes:.0f} MB, at most {LIMIT_MEGABYTES} are shipped; it was left "
                "as it is; take something out of lib.stages.zoo.zoo_stages"
            )
        (new / "README.md").write_text(_card(setup, stages, new, megabytes))
        zoo.rename(old)
        try:
            new.rename(zoo)
        except BaseException:
            old.rename(zoo)
            raise
    return [zoo / path.name for path in written]


def _card(setup: Setup, stages: list[Stage], folder: Path, megabytes: float) -> str:
    rows = []
    for stage in stages:
        artifact = store.find(stage)
        meta = artifact.meta
        facts = []
        if "steps" in meta:
            facts.append(f"{meta['steps']} steps")
        if "validation_accuracy" in meta:
            facts.append(f"{100 * meta['validation_accuracy']:.1f} % of validation photos right")
        if stage.kind == "selection":
            facts.append(f"length x{meta['multiple']:g}")
        size = folder.joinpath(f"{stage.stem}.safetensors").stat().st_size / 1e6
        rows.append(f"| `{stage.stem}` | {stage.label} | {', '.join(facts)} | {size:.1f} MB |")
    return "\n".join(
        [
            f"# The zoo of `{setup.name}`",
            "",
            f"Stages of the store ({megabytes:.0f} MB, fp16), read-only and looked up after the cache; made by",
            f"`make run SETUP={setup.name}` and `python -m lib.run promote {setup.name}`. Each has its parameters,",
            "provenance and SHA-256 in the JSON beside it; the hash is checked when it is loaded.",
            "",
            "**Use.** Reproducing and extending the workbook. The targets recognise 62 public figures of LFW at 64 px",
            "from a few dozen photos each; they are made to be attacked and fit for nothing else. The judges and the",
            "verifier measure attacks. Never use any of them to identify people.",
            "",
            "**Data.** Targets and evaluators: LFW (deep-funneled), 62 people. Start of the main evaluator and the",
            "verifier: other people of LFW. Priors: UTKFace. Both data sets are for research; neither is included.",
            "The `photos` stages hold features and logits of private photos, not the photos.",
            "",
            "| file | what | facts | size |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
