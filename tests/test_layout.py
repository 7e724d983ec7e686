"""The tree holds what it should and only that; rooms import leftwards; the environments agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from lib.runtime import ROOT

ROOMS = (
    "data",
    "erasing",
    "models",
    "training",
    "defences",
    "priors",
    "attacks",
    "evaluation",
    "features",
    "statistics",
    "robustness",
    "results",
    "plots",
    "stages",
    "reports",
    "run",
)
BASE = ("errors", "runtime", "store", "setups")
BASE_MAY_IMPORT = {
    "errors": set(),
    "runtime": {"errors"},
    "store": {"errors", "runtime"},
    "setups": set(BASE),
}
EXPECTED_TOP = {
    ".ci",
    ".gitattributes",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CITATION.cff",
    "LICENSE",
    "Makefile",
    "README.md",
    "Snakefile",
    "environment.yml",
    "lib",
    "notebooks",
    "pyproject.toml",
    "requirements.lock",
    "results",
    "tests",
}
TOOLS = {"jupyterlab", "ipykernel", "nbstripout", "pytest-xdist", "ruff", "snakemake"}  # used, never imported
IMPORT_NAMES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "ipython": "IPython",
    "adversarial-robustness-toolbox": "art",
}
PYTHON_FILES = sorted([*(ROOT / "lib").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def listed_files(*, tracked: bool = False) -> list[str]:
    """What a commit of everything would hold: tracked and untracked files that are not ignored; or what is tracked
    alone, because people keep setups and photos of their own beside it."""
    others = [] if tracked else ["--others", "--exclude-standard"]
    command = ["git", "ls-files", "--cached", *others, "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        pytest.skip("there is no git")
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def imports(path: Path) -> set[str]:
    """Absolute module names a file imports anywhere, ``from lib import store`` as ``lib.store``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: relative import; write lib.<room>"
            whole = node.module or ""
            found |= {f"lib.{alias.name}" for alias in node.names} if whole == "lib" else {whole}
    return found


def test_top_level_is_expected_and_nothing_else():
    assert {name.split("/")[0] for name in listed_files(tracked=True)} == EXPECTED_TOP


def test_lib_holds_the_rooms_and_nothing_else():
    present = {p.name.removesuffix(".py") for p in (ROOT / "lib").iterdir() if p.name != "__pycache__"}
    assert present == {*ROOMS, *BASE, "__init__"}
    for room in (*ROOMS, "setups"):
        init = ROOT / "lib" / room / "__init__.py"
        assert ast.get_docstring(ast.parse(init.read_text())), (
            f"lib/{room}/__init__.py says what the room is for"
        )


@pytest.mark.parametrize("room", [*ROOMS, *BASE])
def test_imports_only_go_left(room):
    folder = ROOT / "lib" / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files
    allowed = BASE_MAY_IMPORT[room] | {room} if room in BASE else {*BASE, *ROOMS[: ROOMS.index(room) + 1]}
    for path in files:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("lib.")}
        if "referee" in path.parts:  # a verdict has an interval; statistics itself imports no room
            used.discard("statistics")
        assert used <= allowed, f"{path.relative_to(ROOT)} imports {sorted(used - allowed)}, which come later"


def test_import_order_check_notices_a_late_import(tmp_path):
    path = tmp_path / "late.py"
    path.write_text("def f():\n    from lib import plots\n    import lib.run.notebooks\n")
    assert {name.split(".")[1] for name in imports(path)} == {"plots", "run"}


def test_every_room_has_a_test_file():
    tests = [p.stem for p in (ROOT / "tests").glob("test_*.py")]
    singular = {room: room.removesuffix("s") for room in ROOMS}
    for room in ROOMS:
        names = (f"test_{room}", f"test_{singular[room]}")
        assert room == "run" or any(t.startswith(names) for t in tests), f"no tests/test_{room}*.py"


def test_no_file_is_swallowed_by_gitignore():
    listed = set(listed_files())
    wanted = [*PYTHON_FILES, *(ROOT / "lib").rglob("*.yaml"), *(ROOT / "notebooks").glob("*.ipynb")]
    missing = [p.relative_to(ROOT).as_posix() for p in wanted]
    assert [name for name in missing if name not in listed] == []


def test_nothing_heavy_is_committed():
    sizes = {name: (ROOT / name).stat().st_size for name in listed_files()}
    zoo = sum(size for name, size in sizes.items() if name.startswith("results/zoo/"))
    assert zoo <= 60e6, f"results/zoo has {zoo / 1e6:.0f} MB of 60"
    heavy = {
        n: s for n, s in sizes.items() if s > 2e6 and not n.startswith(("results/zoo/", "results/lfw64/"))
    }
    assert not heavy
    assert not [n for n in sizes if n.endswith((".jpg", ".jpeg", ".tgz", ".zip", ".pkl", ".pth", ".pt"))]


def canonical_package(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement).group()).lower()


def lock() -> dict[str, str]:
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"
    ]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), (
        "plain name==version pins only"
    )
    return dict(line.split("==") for line in lines)


def requirements(extra: str | None = None) -> list[str]:
    return PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]


def test_lock_pins_every_requirement_within_its_bound_and_no_cuda():
    from packaging.requirements import Requirement

    pins = lock()
    for text in [*requirements(), *requirements("test"), *requirements("verifier")]:
        requirement = Requirement(text)
        name = canonical_package(text)
        assert name in pins, f"{name} has no pin in requirements.lock"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is outside {text}"
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))], "torch chooses these"


def test_installed_versions_are_the_locked_ones():
    import importlib.metadata as metadata

    pins = lock()
    names = [canonical_package(r) for r in [*requirements(), *requirements("test")]]
    wrong = {n: metadata.version(n) for n in names if metadata.version(n).split("+")[0] != pins[n]}
    assert not wrong, "the environment differs from requirements.lock; run make env"


def test_environment_file_is_python_pip_and_the_same_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert python == f"python{PROJECT['requires-python']}" and pip == "pip"
    assert packages == {"pip": ["--constraint requirements.lock", "-e .[test]"]}


def test_requirements_are_exactly_what_is_imported():
    used = {name.split(".")[0] for path in PYTHON_FILES for name in imports(path)}
    third_party = used - set(sys.stdlib_module_names) - {"lib", "tests", "conftest", "toys"}
    declared = {canonical_package(r) for r in [*requirements(), *requirements("test")]}
    importable = {IMPORT_NAMES.get(name, name) for name in declared - TOOLS}
    brought_along = {"packaging", "jupyter_client"}  # by pytest and ipykernel
    optional = {"dlib", "face_recognition_models"}  # the extra `verifier`
    assert third_party - importable - optional - brought_along == set(), "imported, not declared"
    assert importable - third_party == set(), "declared, not imported"


def test_licence_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    holder = "The MIDRE workbook authors"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License") and holder in (
        ROOT / "LICENSE"
    ).read_text()
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert citation["version"] == PROJECT["version"]
    assert citation["authors"] == PROJECT["authors"] == [{"name": holder}]


def test_kernel_is_this_environment():
    """`python3` in this environment must not be someone else's kernel (a user-wide one, say)."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    assert KernelSpecManager().get_kernel_spec("python3").language == "python"
    command = KernelManager(kernel_name="python3").format_kernel_cmd()[0]
    done = subprocess.run(
        [command, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).resolve() == Path(sys.prefix).resolve()


@pytest.mark.parametrize(
    "goal", ["run", "run SETUP=digits", "run SETUP=lfw64 DRY=1", "test", "test-all", "lab"]
)
def test_make_goals_exist(goal):
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", *goal.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {"run": "lib.run start", "run SETUP=digits": 'lib.run setup "digits"', "lab": "jupyterlab"}
    assert expected.get(goal, "lib.run" if "run" in goal else "pytest") in done.stdout
    assert ("--dry" in done.stdout) == ("DRY" in goal)


def test_make_names_a_missing_python_and_a_missing_setup(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    def make(*arguments):
        return subprocess.run(["make", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    absent = make("env", "PYTHON=python-that-is-not-there")
    assert absent.returncode == 2
    assert absent.stderr.splitlines()[0].startswith(
        "error: expected Python 3.11.5 or newer, got no python-that"
    )
    assert not (tmp_path / ".venv").exists()


def test_no_path_of_a_machine_is_written_down():
    pattern = re.compile(r"(/home/\w+/|/Users/\w+/|/root/|/work/)")
    texts = [
        n for n in listed_files() if n.endswith((".py", ".md", ".yaml", ".yml", ".toml", ".lock", ".ipynb"))
    ]
    guilty = [
        n for n in texts if n != "tests/test_layout.py" and pattern.search((ROOT / n).read_text("utf-8"))
    ]
    assert guilty == []
