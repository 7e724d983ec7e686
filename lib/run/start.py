"""``make run``: notebook 00 on the models that come with the repository, and where to read on."""

from __future__ import annotations

import os
from pathlib import Path

from nbconvert import HTMLExporter

from lib import results
from lib.reports.start_report import BUDGET, committed, comparison
from lib.reports.workbook import open_workbook
from lib.results import run_dir
from lib.run.live import LiveLine
from lib.run.notebooks import run_notebook
from lib.runtime import ROOT

NOTEBOOK = "00_start_here"


def run_start() -> int:
    """Execute notebook 00 on the shipped models into ``results/runs/start/``, print its table and what to
    open. A repeated call keeps a complete page, and an interrupted one goes on with the attacks that are
    not done. Needs no data.

    Returns:
        Exit status 0.
    """
    folder = run_dir("start")
    with LiveLine(1) as line:
        copy = run_notebook(
            NOTEBOOK, {}, folder / f"{NOTEBOOK}.ipynb", results=folder, resume=True, line=line
        )
    page = _page(copy)
    for name, text in _printed(folder):
        print(f"\n{name}\n{text}")
    print("\nread on")
    for path, what in (
        (page, "this page, for a browser"),
        (copy, "the same as a notebook, in `make lab`"),
        (ROOT / "README.md", "question, result, and what each notebook is for"),
    ):
        print(f"  {os.path.relpath(path)}  {what}")
    return 0


def _page(copy: Path) -> Path:
    """The executed notebook as one HTML file, written aside and renamed."""
    page = copy.with_suffix(".html")
    if page.exists() and page.stat().st_mtime >= copy.stat().st_mtime:
        return page
    body, _ = HTMLExporter().from_filename(str(copy))
    aside = page.with_name(f".{page.name}.{os.getpid()}")
    try:
        aside.write_text(body, encoding="utf-8")
        os.replace(aside, page)
    finally:
        aside.unlink(missing_ok=True)
    return page


def _printed(folder: Path) -> list[tuple[str, str]]:
    """The comparison as text, per setup found in the folder."""
    printed = []
    for setup, rows in results.load_tables(folder=folder).groupby("setup"):
        study = committed(open_workbook(setup, list(dict.fromkeys(rows["defence"]))))
        name = f"{setup}: {rows['n'].max()} people, attack budget {BUDGET}, 95 % intervals over people"
        printed.append((name, comparison(rows, study).to_string()))
    return printed
