"""The shape of a setup and a study file; unknown keys, wrong types and unknown names are refused."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lib import store
from lib.errors import UserError

FOLDER = Path(__file__).parent
SUFFIXES = (".yaml", ".yml")
USUAL_STUDY = "folder"
"""What a setup without a study of its own runs on."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
"""What files and folders of results may be called, and so a setup, whose name they begin with."""


@dataclass(frozen=True)
class SourceConfig:
    """One source of photos (``lib.data.sources``).

    Attributes:
        crop: side of the centre square that is kept, in source pixels; None keeps all.
        down: share of the side by which faces are moved down, so that two sources are framed alike; the
            rows that come free at the top mirror those below.
        classes: these identities only. min_images, max_images: photos a private person has and keeps (0: all).
    """

    source: str
    crop: int | None = None
    down: float = 0.0
    path: str | None = None
    classes: list[int] = field(default_factory=list)
    min_images: int = 3
    max_images: int = 0


@dataclass(frozen=True)
class DataConfig:
    """What is private, what is public, how people and photos are cut."""

    private: SourceConfig
    public: SourceConfig
    others: dict[str, float] = field(default_factory=dict)
    validation: float = 0.1
    test: float = 0.2
    split_seed: int = 0
    public_held_out: float = 0.1
    verifier_share: float = 0.0


@dataclass(frozen=True)
class NetworkConfig:
    """A network, how it is trained, and (for judges) behind which defence and from which start."""

    network: dict[str, Any]
    recipe: dict[str, Any]
    defence: str = "none"
    pretrained: dict[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Setup:
    """A world.

    Attributes:
        target: the network under attack; ``multiples`` lists the training lengths tried per defence, in
            multiples of its recipe's steps; the best by validation is the headline.
            A given network (kind ``external``) has one length and no snapshots, whatever the file says.
        evaluators: judges that saw the private photos; the first is ``main``.
        verifier: an embedding of people disjoint from the private ones.
        priors: constants per kind, trained on public photos alone. target_priors: constants per kind, of
            priors trained against each target. students: LOMMA's. grids: what
            :mod:`lib.run.settle` tries per attack. attacks: per attack, named budgets.
        defences: overrides of a method's own constants.
        robustness: constants of the other attacks (``evasion``, ``backdoor``), over their defaults.
    """

    name: str
    image_size: int
    conclusive: bool
    data: DataConfig
    target: NetworkConfig
    multiples: dict[str, list[float]]
    snapshots: list[float]
    evaluators: dict[str, NetworkConfig]
    verifier: NetworkConfig
    false_accept_rate: float
    priors: dict[str, dict[str, Any]]
    attacks: dict[str, dict[str, dict[str, Any]]]
    defences: dict[str, dict[str, Any]] = field(default_factory=dict)
    target_priors: dict[str, dict[str, Any]] = field(default_factory=dict)
    students: list[dict[str, Any]] = field(default_factory=list)
    grids: dict[str, dict[str, Any]] = field(default_factory=dict)
    robustness: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def is_external(self) -> bool:
        """Whether the target is a given network: nothing to train, nothing to vary."""
        return self.target.network.get("kind") == "external"

    @property
    def has_photos(self) -> bool:
        """Whether there are private photos. Without them (somebody's classifier) only the target can judge."""
        return self.data.private.source != "none"

    def budget(self, attack: str, name: str) -> dict[str, Any]:
        """The constants of one named budget of one attack, its adaptive ingredients (``+eot16``) aside."""
        attack = attack.partition("+")[0]
        budgets = self.attacks.get(attack)
        if budgets is None:
            raise UserError(f"{self.name}: no attack {attack!r}; expected one of {', '.join(self.attacks)}")
        if name not in budgets:
            raise UserError(
                f"{self.name}: {attack} has no budget {name!r}; expected one of {', '.join(budgets)}"
            )
        return budgets[name]


@dataclass(frozen=True)
class Study:
    """Defences x attacks x seeds in a world; what the notebooks of a setup run on.

    Attributes:
        frontier_seeds: training seeds whose NoDef run gives NoDef's own frontier; empty: all.
        compared, adaptive, referee: attacks of notebooks 14 and 15, 16 and 17, each as "attack prior budget".
        pages: the defences that notebook 10 shows, each at one strength.
        strengths: families of defences that are swept, each from weak to strong (``NoDef, weaker``: its own frontier).
        swept: the attack of every point of the sweep, "attack prior budget".
        chosen_attacks: attacks that the points which the rule chose meet, too, each as "attack prior budget".
        others, met_defences: attacks of notebook 11 beside that one, each as "attack prior budget", and the
            models that meet them; NoDef does, too.
        lengths, lengths_attack: training lengths, shortest first, in multiples of the recipe's steps, at which NoDef
            and those models are trained and meet one more attack.
        repeated, repeated_seeds, repeated_attacks: defences that NoDef is compared with over several training seeds,
            and the attacks of every one of them; none listed: ``swept``. The first strength of a family stands for the
            one that the rule chooses of it.
        combined: pairs of defences of notebook 12, joined with +; NoDef, both parts and the pair meet ``swept``.
            Strengths as in ``repeated``.
        evaded, backdoored: the models of notebook 13 that other attacks meet; behind those of ``backdoored`` another
            one is trained on poisoned photos.
        curves: the same attacks under smaller budgets, on NoDef only, under the first seed, for budget curves.
        compared_defences, compared_seeds: the models these are run on (priors trained against a target: the first
            two of them) and their attack seeds; empty: the study's first two, and its attack seeds.
        referee_defences, referee_seeds: the models that the referee judges, and its attack seeds; empty: the compared
            ones.
        stepwise: too much for one run. Notebooks that do not train show what is made of the lists, and say what is not.
    """

    setup: str
    defences: list[str]
    training_seeds: list[int]
    attack_seeds: list[int]
    attacks: list[str]
    prior: str
    budget: str
    frontier_seeds: list[int] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    adaptive: list[str] = field(default_factory=list)
    referee: list[str] = field(default_factory=list)
    curves: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    strengths: dict[str, list[str]] = field(default_factory=dict)
    swept: str = ""
    chosen_attacks: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    met_defences: list[str] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    lengths_attack: str = ""
    repeated: list[str] = field(default_factory=list)
    repeated_seeds: list[int] = field(default_factory=list)
    repeated_attacks: list[str] = field(default_factory=list)
    combined: list[str] = field(default_factory=list)
    evaded: list[str] = field(default_factory=list)
    backdoored: list[str] = field(default_factory=list)
    compared_defences: list[str] = field(default_factory=list)
    compared_seeds: list[int] = field(default_factory=list)
    referee_defences: list[str] = field(default_factory=list)
    referee_seeds: list[int] = field(default_factory=list)
    stepwise: bool = False


def setup_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_setup(name: str | Path) -> Setup:
    """A setup by name, or from a YAML file of one's own.

    Raises:
        UserError: no such setup, not YAML, an unknown or missing key, a value of another type, or a name that
            makes no file name.
    """
    setup = _build(Setup, _read(name, FOLDER, setup_names()), str(name))
    if not FILE_NAME.match(setup.name):
        raise UserError(
            f"{name}.name: expected a-z, A-Z, 0-9, and behind the first also . _ - (folders are called so), got "
            f"{setup.name!r}; rename it"
        )
    own = str(name).endswith(SUFFIXES)
    store.GIVEN_AS[setup.name] = str(Path(name).expanduser().resolve()) if own else setup.name
    return replace(setup, multiples={"none": [1.0]}, snapshots=[]) if setup.is_external else setup


def name_of(setup: str) -> str:
    """The name of a setup given by name or as a file: what its results and its run's folder are called."""
    return load_setup(setup).name if setup.endswith(SUFFIXES) else setup


def load_study(name: str | Path) -> Study:
    """The study of a setup: ``lib/setups/studies/<name>.yaml``, or a file; without one, that of ``folder``."""
    folder = FOLDER / "studies"
    own = str(name).endswith(SUFFIXES) or (folder / f"{name}.yaml").exists()
    if not own:
        return replace(load_study(USUAL_STUDY), setup=str(name))
    study = _build(Study, _read(name, folder, sorted(p.stem for p in folder.glob("*.yaml"))), f"study {name}")
    if len(study.attacks) != 1:
        raise UserError(
            f"study {name}.attacks: expected the one attack of notebooks 05 to 09, got {study.attacks}; list others in "
            "compared"
        )
    return study


def _read(name: str | Path, folder: Path, known: list[str]) -> dict[str, Any]:
    path = Path(name).expanduser() if str(name).endswith(SUFFIXES) else folder / f"{name}.yaml"
    if not path.exists():
        raise UserError(
            f"unknown setup {str(name)!r}: expected one of {', '.join(known)}, or a path to a .yaml file"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys, got {type(content).__name__}")
    _resolve(content, path.resolve().parent)
    return content


def _resolve(content: dict[str, Any], folder: Path) -> None:
    """Relative paths in a setup are from its own folder, whoever reads it from where."""
    for places, key in (
        (("data", "private"), "path"),
        (("data", "public"), "path"),
        (("target", "network"), "weights"),
    ):
        part: Any = content
        for place in places:
            part = part.get(place) if isinstance(part, dict) else None
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str(folder / Path(part[key]).expanduser())


def _build(kind: type, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a mapping, got {content!r}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(content) - set(fields))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; expected some of {', '.join(fields)}")
    required = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    absent = [name for name in required if name not in content]
    if absent:
        raise UserError(f"{where}: key {absent[0]!r} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in content.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if origin is list and isinstance(value, list):
        return [_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is tuple and isinstance(value, list):  # of one kind, as in tuple[int, ...]
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(k): _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    plain = origin or hint
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
        raise UserError(f"{where}: expected {plain.__name__}, got {value!r}")
    return value


def from_dict(kind: type, content: dict[str, Any], where: str) -> Any:
    """A dataclass of any room from YAML values, with the same refusals."""
    return _build(kind, content, where)
