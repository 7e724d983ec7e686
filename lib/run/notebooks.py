"""Notebooks run by papermill: checked parameters, a fresh kernel each, output renamed when complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from lib.data.world import data_stage
from lib.errors import NotebookError, UserError
from lib.results import PUBLISHED, run_dir
from lib.run.live import ENGINE, LiveLine
from lib.runtime import ROOT
from lib.setups import load_setup, load_study, name_of
from lib.setups.schema import SUFFIXES
from lib.stages.targets import target_stage

NOTEBOOKS = ROOT / "notebooks"
GIVEN = ("01", "02", "03", "04", "05", "06")  # what can be run on a given network
LISTS = {
    "10": "pages",
    "11": "strengths",
    "12": "combined",
    "13": "evaded",
    "14": "compared",
    "15": "compared",
    "16": "adaptive",
    "17": "referee",
}
"""Notebooks that run on a list of the study of this name."""
SMOKE_PARAMETERS: dict[str, Any] = {}
"""The smoke copies are made with the notebooks' own defaults (setup digits; 00 on the zoo)."""


def notebook_path(name: str | int) -> Path:
    """The notebook that a number or name means: ``3``, ``"03"``, ``"targets"`` or ``"03_targets"``.

    Raises:
        UserError: if there is none, listing those there are.
    """
    text = f"{name:02d}" if isinstance(name, int) else str(name).removesuffix(".ipynb")
    text = f"{int(text):02d}" if text.isdigit() else text
    known = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for path in known:
        if text in (path.stem, path.stem[:2], path.stem[3:]):
            return path
    raise UserError(
        f"expected a notebook of {', '.join(p.stem for p in known) or 'notebooks/'}, got {str(name)!r}"
    )


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the notebook does not have (papermill would only warn) or of another type."""
    known = papermill.inspect_notebook(_literal(path))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise UserError(
            f"{path.stem}: expected parameters of {', '.join(known) or '(none)'}, got {', '.join(unknown)}"
        )
    kinds = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": (list, tuple), "dict": dict}
    for name, value in parameters.items():
        declared = re.split(r"[\[| ]", known[name]["inferred_type_name"])[0]
        wrong = declared in kinds and not isinstance(value, kinds[declared])
        if wrong or (isinstance(value, bool) and declared in ("int", "float")):
            raise UserError(f"{path.stem}: expected {name} as {declared}, got {value!r}")


def run_notebook(
    name: str | int,
    parameters: Mapping[str, Any],
    output_path: Path,
    *,
    results: Path | None = None,
    environment: Mapping[str, str] | None = None,
    resume: bool = False,
    line: LiveLine | None = None,
) -> Path:
    """Execute one notebook in a fresh kernel whose working directory is the project folder.

    Args:
        name: see :func:`notebook_path`.
        parameters: values for the notebook's parameters cell; checked by :func:`check_parameters`.
        output_path: the executed copy. Written aside and renamed when complete; a failed run leaves
            ``<stem>.failed.ipynb`` beside it and an earlier complete copy untouched.
        results: ``RESULTS_DIR`` of the kernel, where its tables go.
        environment: further variables for the kernel.
        resume: keep a complete copy made from the same notebook, parameters and ``lib``.
        line: a live line to report on.

    Raises:
        UserError: unknown notebook or parameter, or the notebook's own user error.
        NotebookError: any other failure, a dead kernel included.
    """
    source, output_path = notebook_path(name), output_path.resolve()
    check_parameters(source, parameters)
    key = _run_key(source, parameters, environment or {})
    if resume and _about(output_path).get("made_from") == key:
        return output_path
    output_path.parent.mkdir(parents=True, exist_ok=True)
    aside = output_path.with_name(f".{output_path.stem}.{os.getpid()}.ipynb")
    failed = output_path.with_name(f"{output_path.stem}.failed.ipynb")
    with tempfile.TemporaryDirectory() as scratch:
        said = Path(scratch) / "progress"
        variables = {"MIDRE_PROGRESS": str(said), "MIDRE_TRAIN": "1", **(environment or {})}
        if results is not None:
            variables["RESULTS_DIR"] = str(results.resolve())
        try:
            with _environment(variables), (line or LiveLine(1, show=False)).watch(source.stem, said):
                papermill.execute_notebook(
                    _literal(source),
                    _literal(aside),
                    parameters=dict(parameters),
                    engine_name=ENGINE,
                    kernel_name="python3",
                    progress_bar=False,
                    cwd=str(ROOT),
                    live_line=line,
                )
            _finish(
                aside, source, output_path, {"made_from": key, "partial": variables["MIDRE_TRAIN"] == "0"}
            )
        except PapermillExecutionError as error:
            os.replace(aside, failed)
            if error.ename in {kind.__name__ for kind in (UserError, *UserError.__subclasses__())}:
                raise UserError(f"notebook {source.stem}: {error.evalue}") from None
            raise NotebookError(
                source.stem, _one_line(f"{error.ename}: {error.evalue}"), failed, shown=relative(failed)
            ) from None
        except (
            Exception
        ) as error:  # a dead kernel or a lost connection; UserErrors of ours cannot come from here
            if aside.exists():
                os.replace(aside, failed)
            raise NotebookError(
                source.stem, _one_line(f"{type(error).__name__}: {error}"), failed, shown=relative(failed)
            ) from error
        finally:
            aside.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    return output_path


def run_notebooks(
    names: Sequence[str | int],
    parameters: Mapping[str, Any],
    folder: Path,
    *,
    results: Path | None = None,
    environment: Mapping[str, str] | None = None,
    resume: bool = False,
    show: bool = True,
) -> list[tuple[Path, float]]:
    """Execute several notebooks in order, each with those of ``parameters`` that it has.

    Everything is checked before the first one starts; a parameter that none of them has is refused.

    Returns:
        (executed copy, seconds) of each.
    """
    sources = [notebook_path(name) for name in names]
    known = [papermill.inspect_notebook(_literal(source)) for source in sources]
    chosen = [{k: v for k, v in parameters.items() if k in names} for names in known]
    unknown = sorted(set(parameters).difference(*known))
    if unknown:
        everything = sorted(set().union(*known))
        raise UserError(f"expected notebook parameters of {', '.join(everything)}, got {', '.join(unknown)}")
    for source, values in zip(sources, chosen, strict=True):
        check_parameters(source, values)
    made = []
    with LiveLine(len(sources), show=show) as line:
        for source, values in zip(sources, chosen, strict=True):
            begun = time.monotonic()
            copy = run_notebook(
                source.stem,
                values,
                folder / source.name,
                results=results,
                environment=environment,
                resume=resume,
                line=line,
            )
            made.append((copy, time.monotonic() - begun))
    return made


def study_notebooks(setup: str) -> list[str]:
    """The notebooks of a setup's study, in order: all but 00, which shows the shipped networks, and those that the
    study lists nothing for. On a given network, which is not compared with defences, only 01 to 06; without private
    photos only 06, which says what can be said then."""
    names = [path.stem for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) if path.stem[:2] != "00"]
    world = load_setup(setup)
    if not world.has_photos or world.is_external:
        return [name for name in names if name[:2] in (GIVEN if world.has_photos else GIVEN[-1:])]
    study = load_study(world.name)
    return [name for name in names if name[:2] not in LISTS or getattr(study, LISTS[name[:2]])]


def run_setup(
    setup: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    names: Sequence[str | int] = (),
    resume: bool = False,
    train: bool = True,
    show: bool = True,
) -> list[tuple[Path, float]]:
    """:func:`study_notebooks` (or those of ``names``) on one setup, into the ignored ``results/runs/<its name>/``;
    without ``train`` on what is made so far."""
    # kernels run in another folder
    where = str(Path(setup).expanduser().resolve()) if setup.endswith(SUFFIXES) else setup
    return run_notebooks(
        names or study_notebooks(setup),
        {"setup": where, **(parameters or {})},
        folder := run_dir(name_of(setup)),
        results=folder,
        environment={} if train else {"MIDRE_TRAIN": "0"},
        resume=resume,
        show=show,
    )


def run_smoke(*, show: bool = True) -> list[tuple[Path, float]]:
    """Re-execute every notebook with its defaults into ``results/smoke``, the reference of nbval.

    Their tables go to a temporary folder: smoke numbers are no results.
    """
    names = [p.stem for p in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]
    with tempfile.TemporaryDirectory() as scratch:
        return run_notebooks(names, SMOKE_PARAMETERS, PUBLISHED / "smoke", results=Path(scratch), show=show)


def is_partial(path: Path) -> bool:
    """Whether an executed copy shows what was made then, and nothing was trained for it."""
    return bool(_about(path).get("partial"))


def _finish(aside: Path, source: Path, output_path: Path, about: Mapping[str, Any]) -> None:
    """Record what the copy was made from, with paths that mean something on any machine, and rename it."""
    notebook = nbformat.read(aside, as_version=4)
    notebook.metadata.papermill.update(input_path=relative(source), output_path=relative(output_path))
    notebook.metadata["midre"] = dict(about)
    nbformat.write(notebook, aside)
    os.replace(aside, output_path)


def _run_key(source: Path, parameters: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """Hash of what an executed copy depends on: the notebook, its parameters and environment, the setup with its
    study, photos and given network, and the code of ``lib``."""
    digest = hashlib.sha256(source.read_bytes())
    digest.update(json.dumps([dict(parameters), dict(environment)], sort_keys=True, default=list).encode())
    if "setup" in parameters:
        setup = load_setup(parameters["setup"])
        digest.update(repr((setup, load_study(setup.name), data_stage(setup).key)).encode())
        if setup.is_external:
            digest.update(target_stage(setup, "none", 0, 1.0).key.encode())
    for path in sorted((ROOT / "lib").rglob("*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _about(path: Path) -> dict[str, Any]:
    """What an executed copy says it was made from; nothing where there is none."""
    try:
        return dict(nbformat.read(path, as_version=4).metadata.get("midre", {}))
    except (OSError, ValueError, nbformat.reader.NotJSONError, nbformat.ValidationError):
        return {}


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables for the kernel, which inherits this process's environment; restored afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _literal(path: Path) -> str:
    """A path that papermill does not take for a template."""
    return str(path).replace("{", "{{").replace("}", "}}")


def relative(path: Path) -> str:
    """A path as it is shown and recorded: from the project folder, or only its name when outside."""
    resolved = path.resolve()
    return resolved.relative_to(ROOT).as_posix() if resolved.is_relative_to(ROOT) else path.name


def _one_line(text: str) -> str:
    return " ".join(text.split())
