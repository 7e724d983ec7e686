"""What of a finished run is committed: executed notebooks, tables, figures; each file written aside and renamed."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable
from pathlib import Path

from lib import store
from lib.errors import UserError
from lib.results import FORMATS, PUBLISHED, run_dir
from lib.run.notebooks import is_partial, relative, study_notebooks
from lib.setups import name_of


def publish(setup: str, *, partial: bool = False) -> list[Path]:
    """Copy a finished run into the committed results: notebooks to ``results/<setup>/``, the rest by kind.

    Nothing is copied unless all notebooks of the study ended well, on all that it lists, or, with ``partial``, some of
    them. Returns the files written.
    """
    name = name_of(setup)
    source = run_dir(name)
    expected = [f"{stem}.ipynb" for stem in study_notebooks(setup)]
    absent = [
        name
        for name in expected
        if not (source / name).is_file() or (not partial and is_partial(source / name))
    ]
    if partial and len(absent) < len(expected):
        expected, absent = [name for name in expected if name not in absent], []
    if absent or not expected:
        raise UserError(
            f"publish: expected complete runs in {relative(source)}, missing {', '.join(absent) or 'all'}; "
            f"make run SETUP={setup}"
        )
    return [*copy_files((source / file, PUBLISHED / name / file) for file in expected), *copy_results(name)]


def copy_results(name: str, *, new: bool = False) -> list[Path]:
    """Copy the tables, curves, values per person and figures of a setup's runs into the committed results; with
    ``new`` only what is not there yet, so that no committed page is contradicted."""
    source, copies = run_dir(name), []
    for folder in [*(kind.folder for kind in FORMATS.values()), "figures", "settled"]:
        copies += [(file, PUBLISHED / folder / file.name) for file in sorted((source / folder).glob("[!.]*"))]
    return copy_files((file, target) for file, target in copies if not (new and target.exists()))


def copy_files(copies: Iterable[tuple[Path, Path]]) -> list[Path]:
    """Copy each (file, target) aside, then rename, in order; the files written."""
    written = []
    for original, target in copies:
        target.parent.mkdir(parents=True, exist_ok=True)
        store.write_aside(target, functools.partial(shutil.copyfile, original))
        written.append(target)
    return written
