"""What nbval compares can fail: in the executed notebooks every digit, truth value and word of a checked output,
altered, is a difference to nbval, and nothing that is checked is sanitised away."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell, IPyNbFile, coalesce_streams

from lib.results import PUBLISHED
from lib.runtime import ROOT

SMOKE = sorted((PUBLISHED / "smoke").glob("*.ipynb"))
FLAGS = ("--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with", "tests/nbval.cfg", "-p", "no:python")
PICTURES = ("image/png", "image/jpeg")  # nbval compares none


@pytest.fixture
def collect(request, monkeypatch) -> Callable[[Path], list[IPyNbCell]]:
    """A notebook's code cells as nbval collects them under ``make test``. No kernel is started."""
    monkeypatch.setattr(request.config.option, "nbval_lax", True)
    monkeypatch.setattr(request.config.option, "nbval_sanitize_with", str(ROOT / "tests" / "nbval.cfg"))
    monkeypatch.setattr(IPyNbCell, "format_output_compare", lambda *_: None)  # the message only, and slow

    def cells(path: Path) -> list[IPyNbCell]:
        file = IPyNbFile.from_parent(request.session, path=path)
        file.setup_sanitize_files()
        return list(file.collect())

    return cells


def equal(cell: IPyNbCell, outputs: list[NotebookNode]) -> bool:
    """nbval's verdict if running ``cell`` gave ``outputs``."""
    stored = copy.deepcopy(cell.cell.outputs)  # joining streams writes into them
    return bool(cell.compare_outputs(coalesce_streams(outputs), coalesce_streams(stored)))


def altered(text: str) -> Iterator[tuple[str, str]]:
    """(what was altered, the text with it) for every digit, truth value and word."""
    opposite = {"True": "False", "False": "True"}
    for match in re.finditer(r"\d|[^\W\d_]+", text):
        old = match.group()
        new = str((int(old) + 1) % 10) if old.isdecimal() else opposite.get(old, old + "x")
        at = match.start()
        yield f"{old} -> {new} in {text[max(0, at - 30) : at + 30]!r}", text[:at] + new + text[match.end() :]


def mutants(outputs: list[NotebookNode]) -> Iterator[tuple[str, list[NotebookNode]]]:
    """Copies of ``outputs`` with one alteration each, in text of any kind."""
    for i, output in enumerate(outputs):
        for kind in [k for k in output.get("data", {}) if k not in PICTURES] or ["text"]:
            stored = output["data"][kind] if "data" in output else output[kind]
            for what, text in altered(stored):
                mutant = copy.deepcopy(outputs)
                (mutant[i]["data"] if "data" in output else mutant[i])[kind] = text
                yield what, mutant


def unnoticed(cell: IPyNbCell) -> list[str]:
    """The alterations of the cell's stored output that nbval takes for equal."""
    found = [(what, equal(cell, mutant)) for what, mutant in mutants(cell.cell.outputs)]
    assert found, f"cell {cell.cell_num} shows nothing that nbval compares"
    return [what for what, same in found if same]


def write(path: Path, *cells: tuple[str, str]) -> Path:
    """An executed notebook of checked cells: (source, what it printed)."""
    made = [
        nbformat.v4.new_code_cell(
            source,
            metadata={"tags": ["nbval-check-output"]},
            execution_count=count,
            outputs=[nbformat.v4.new_output("stream", name="stdout", text=printed)],
        )
        for count, (source, printed) in enumerate(cells, 1)
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


@pytest.mark.parametrize("path", SMOKE, ids=lambda p: p.stem)
def test_every_checked_output_can_fail(path, collect):
    cells = collect(path)
    checked = [cell for cell in cells if cell.options["check"]]
    tagged = [cell for cell in cells if "nbval-check-output" in cell.cell.metadata.get("tags", [])]
    assert checked == tagged != []
    for cell in checked:
        assert equal(cell, copy.deepcopy(cell.cell.outputs)), "the same output is no difference"
        assert not equal(cell, []), "an output that is missing is one"
        assert unnoticed(cell) == [], f"cell {cell.cell_num} does not check this"


def test_a_check_that_cannot_fail_is_noticed(tmp_path, collect):
    (cell,) = collect(write(tmp_path / "tiny.ipynb", ("", "accuracy 0.5 after 12.5 s, True\n")))
    assert [what.partition(" in ")[0] for what in unnoticed(cell)] == ["1 -> 2", "2 -> 3", "5 -> 6"]
    (cell,) = collect(write(tmp_path / "empty.ipynb", ("", "...\n")))
    with pytest.raises(AssertionError, match="shows nothing that nbval compares"):
        unnoticed(cell)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("<Thing at 0x7f12ab34cd56>", "<Thing at 0x7f99ab34cd00>", True),
        ("<Figure size 640x480 with 1 Axes>", "<Figure size 700x300 with 2 Axes>", True),
        ("made 2025-01-31 12:30:01.5", "made 2026-02-01", True),
        ("took 3.2 s, then 40 minutes", "took 17 s, then 1 min", True),
        ("640x480", "641x480", False),
        ("mask 0x7f12ab34", "mask 0x7f12ab35", False),
        ("3 samples of 62 seeds", "4 samples of 62 seeds", False),
        ("0.25 shown, 1200 steps", "0.26 shown, 1200 steps", False),
        ("2025-01 and 3.5 minus 1", "2025-02 and 3.5 minus 1", False),
    ],
)
def test_sanitising_hides_what_differs_between_machines_and_nothing_else(one, other, same, collect):
    cell = next(cell for cell in collect(SMOKE[0]) if cell.options["check"])
    assert (cell.sanitize(one) == cell.sanitize(other)) == same


def test_nbval_as_make_runs_it_fails_on_an_altered_output(tmp_path):
    """End to end, with a kernel: of two cells whose stored output is right and altered, the second fails."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    assert re.sub(r"\s+", " ", makefile).count(" ".join(FLAGS[:4])) == 1, "make test has other flags"
    source = "print('accuracy:', 0.5, True)"
    path = write(tmp_path / "tiny.ipynb", (source, "accuracy: 0.5 True\n"), (source, "accuracy: 0.6 True\n"))
    command = [sys.executable, "-m", "pytest", *FLAGS, "-p", "no:cacheprovider", "-q", "-rA", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert re.search(r"PASSED \S*::Cell 0", done.stdout), done.stdout
