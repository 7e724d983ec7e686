"""Notebooks are thin, stripped and agree with their executed copies; the driver checks and reports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from lib.errors import UserError
from lib.results import PUBLISHED
from lib.run import notebooks, publish
from lib.run.notebooks import NOTEBOOKS, NotebookError, run_notebook, run_notebooks
from lib.runtime import ROOT
from lib.setups.schema import FOLDER
from lib.store import Stage

SOURCES = sorted(NOTEBOOKS.glob("*.ipynb"))
COMMON = {"setup", "defences", "training_seeds", "attack_seeds"}
SINGLE = {  # single-purpose notebooks take their one question
    "00_start_here": {"budget"},
    "01_data": {"setup"},
    "02_random_erasing": {"setup"},
}
each_notebook = pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(path: Path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tagged(path: Path, tag: str):
    return [cell for cell in code_cells(path) if tag in cell.metadata.get("tags", [])]


def sources(path: Path) -> list[tuple[str, str]]:
    cells = [c for c in read(path).cells if "injected-parameters" not in c.metadata.get("tags", [])]
    return [(cell.cell_type, cell.source) for cell in cells]


def tree(source: str) -> ast.Module:
    """The cell as Python; IPython magics are not allowed in these notebooks, so it must parse."""
    return ast.parse(source)


def belongs_in_lib(module: ast.Module) -> list[str]:
    """The first line of every loop and definition, named lambdas included. Comprehensions are fine."""
    heavy = ast.For | ast.AsyncFor | ast.While | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    assigned = ast.Assign | ast.AnnAssign | ast.NamedExpr
    return [
        ast.unparse(node).splitlines()[0]
        for node in ast.walk(module)
        if isinstance(node, heavy) or (isinstance(node, assigned) and isinstance(node.value, ast.Lambda))
    ]


def test_notebooks_are_numbered_by_question():
    assert [p.stem[:2] for p in SOURCES] == [f"{number:02d}" for number in range(18)]


@each_notebook
def test_one_parameters_cell_with_the_allowed_names_and_literals(path):
    (cell,) = tagged(path, "parameters")
    for statement in tree(cell.source).body:
        assert isinstance(statement, ast.AnnAssign), f"annotated assignments only: {ast.unparse(statement)}"
        ast.literal_eval(statement.value)
        line = cell.source.splitlines()[statement.end_lineno - 1]
        assert "  # " in line, f"a trailing comment says what it is: {line}"
    names = set(papermill.inspect_notebook(str(path)))
    allowed = SINGLE.get(path.stem)
    assert names == COMMON or (allowed is not None and names <= COMMON | allowed), (
        f"parameters are {sorted(names)}"
    )


@each_notebook
def test_cells_are_thin(path):
    for cell in code_cells(path):
        module = tree(cell.source)
        assert not (heavy := belongs_in_lib(module)), f"{heavy} belong in lib"
        assert len(cell.source.splitlines()) <= 30, "a long cell belongs in lib"
        assert not cell.source.rstrip().endswith(";"), "nbval shows output behind a semicolon: use plt.show()"


@pytest.mark.parametrize(
    "source",
    [
        "for x in (1, 2):\n    print(x)",
        "while True:\n    pass",
        "if ready:\n    for x in y: pass",
        "def f(): pass",
        "async def f(): pass",
        "class A: pass",
        "f = lambda x: x",
        "f: object = lambda x: x",
        "print((f := lambda x: x)(1))",
    ],
)
def test_loops_and_definitions_are_noticed(source):
    assert len(belongs_in_lib(tree(source))) == 1


def test_comprehensions_and_lambdas_as_arguments_are_fine():
    assert (
        belongs_in_lib(tree("print(*(x for x in y), {k: v for k, v in z}, max(y, key=lambda v: -v))")) == []
    )


@each_notebook
def test_first_cells_and_kernel(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert re.match(rf"# {path.stem[:2]} · .+", notebook.cells[0].source), (
        "a title such as `# 05 · Inversion`"
    )
    for word in ("Question", "Answer", "Reads", "Writes"):
        assert word in notebook.cells[0].source, f"the first cell names {word}"
    setup = code_cells(path)[1]
    assert "nbval-ignore-output" in setup.metadata.get("tags", []), "versions differ between machines"
    assert re.search(r"\bstart\(\)", setup.source), (
        "user errors are one line only after lib.run.kernel.start()"
    )
    assert tagged(path, "nbval-check-output"), "nbval compares nothing here"


@each_notebook
def test_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links and not [link for link in links if not (path.parent / link).exists()]


@each_notebook
def test_smoke_copy_has_the_same_sources_and_was_executed(path):
    copy = PUBLISHED / "smoke" / path.name
    assert copy.is_file(), "run make smoke"
    assert sources(copy) == sources(path), "the executed copy is stale: run make smoke"
    executed = [cell for cell in code_cells(copy) if cell.source.strip()]
    assert all(cell.execution_count for cell in executed), "nbval never compares a cell without a count"
    assert all(cell.outputs for cell in tagged(copy, "nbval-check-output")), (
        "a check without output cannot fail"
    )
    assert not read(copy).metadata.papermill.exception
    paths = [read(copy).metadata.papermill[key] for key in ("input_path", "output_path")]
    assert paths == [f"notebooks/{path.name}", f"results/smoke/{path.name}"]


def test_no_copy_shows_what_a_library_says_to_the_error_stream():
    noisy = [
        path.relative_to(PUBLISHED).as_posix()
        for path in PUBLISHED.glob("*/[0-9][0-9]_*.ipynb")
        for cell in code_cells(path)
        if any(output.get("name") == "stderr" for output in cell.outputs)
    ]
    assert noisy == [], "warnings, logs and progress are not results"


def test_no_copy_without_a_notebook():
    copies = {p.name for p in (PUBLISHED / "smoke").glob("*.ipynb")}
    assert copies <= {p.name for p in SOURCES}


# --- the driver ---------------------------------------------------------------------------------------


@pytest.fixture
def workshop(write_notebook, tmp_path, monkeypatch):
    """Small notebooks in a folder of their own, whose path papermill could take for a template."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    write_notebook(
        "01_sum",
        "setup: str = 'digits'  # world\nseeds: list[int] = [0]  # seeds\nscale: float = 1.0  # factor",
        "import os\nfrom pathlib import Path",
        "print(setup, sum(seeds), Path.cwd().name, os.environ['RESULTS_DIR'])",
    )
    write_notebook(
        "02_user_error",
        "setup: str = 'digits'  # world",
        "from lib.run.kernel import start\nstart()",
        "from lib.errors import UserError\nraise UserError('expected a folder, got nothing; make one')",
        "print('later cells do not run')",
    )
    write_notebook("03_defect", "setup: str = 'digits'  # world", "1 / 0")
    write_notebook("04_dead_kernel", "setup: str = 'digits'  # world", "import os\nos._exit(9)")
    return tmp_path / "out {x}"


def test_parameters_reach_the_kernel_and_the_copy_is_whole(workshop):
    output = workshop / "01_sum.ipynb"
    results = workshop / "results"
    assert run_notebook("01", {"seeds": [3, 4]}, output, results=results) == output
    assert tagged(output, "injected-parameters")[0].source.endswith("seeds = [3, 4]\n")
    text = code_cells(output)[-1].outputs[0].text
    assert text.split()[:3] == ["digits", "7", ROOT.name] and str(results) in text
    assert [p.name for p in workshop.iterdir()] == ["01_sum.ipynb"], "nothing half-written stays"
    assert read(output).metadata.papermill.output_path == "01_sum.ipynb", "no absolute path in the copy"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"colour": 1}, "expected parameters of setup, seeds, scale, got colour"),
        ({"seeds": "0"}, "expected seeds as list, got '0'"),
        ({"scale": "1e-3"}, "expected scale as float, got '1e-3'"),
        ({"setup": 7}, "expected setup as str, got 7"),
    ],
)
def test_unknown_or_mistyped_parameters_are_refused_before_anything_runs(workshop, parameters, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        run_notebook("sum", parameters, workshop / "x.ipynb")
    assert not workshop.exists()


def test_a_batch_refuses_a_parameter_that_no_notebook_has(workshop):
    with pytest.raises(UserError, match="got colour"):
        run_notebooks(["01", "03"], {"setup": "digits", "colour": 1}, workshop, show=False)
    assert not workshop.exists()


def test_unknown_notebook_lists_the_known(workshop):
    with pytest.raises(UserError, match="01_sum, 02_user_error.*got '07'"):
        run_notebook("07", {}, workshop / "x.ipynb")


@pytest.mark.parametrize("name", [1, "1", "01", "sum", "01_sum", "01_sum.ipynb"])
def test_names_of_a_notebook(workshop, name):
    assert notebooks.notebook_path(name).stem == "01_sum"


def test_user_error_is_one_line_in_the_cell_and_in_the_terminal(workshop):
    output = workshop / "02_user_error.ipynb"
    with pytest.raises(UserError, match="notebook 02_user_error: expected a folder, got nothing; make one"):
        run_notebook("02", {}, output)
    assert not output.exists(), "an unfinished copy must not look finished"
    failed = code_cells(workshop / "02_user_error.failed.ipynb")
    (error,) = [out for cell in failed for out in cell.outputs if out.output_type == "error"]
    assert error.traceback == ["error: expected a folder, got nothing; make one"]
    assert failed[-1].execution_count is None


def test_a_missing_stage_is_a_user_error_too(workshop, write_notebook):
    write_notebook("05_missing", "", "from lib.store import Missing\nraise Missing('it takes 2 h; make it')")
    with pytest.raises(UserError, match="notebook 05_missing: it takes 2 h; make it"):
        run_notebook("05", {}, workshop / "05_missing.ipynb")


def test_a_defect_and_a_dead_kernel_are_not_user_errors(workshop):
    for name, reason in (("03", "ZeroDivisionError"), ("04", "DeadKernelError")):
        with pytest.raises(NotebookError, match=reason) as caught:
            run_notebook(name, {}, workshop / f"{name}.ipynb")
        assert caught.value.failed.is_file() and not (workshop / f"{name}.ipynb").exists()


def test_a_failed_rerun_keeps_the_complete_copy(workshop):
    output = workshop / "copy.ipynb"
    run_notebook("01", {}, output, results=workshop)
    before = output.read_bytes()
    with pytest.raises(NotebookError):
        run_notebook("03", {}, output)
    assert output.read_bytes() == before


def test_resume_skips_only_an_equal_run(workshop):
    output = workshop / "copy.ipynb"
    run_notebook("01", {}, output, results=workshop)
    first = output.stat().st_mtime_ns
    run_notebook("01", {}, output, results=workshop, resume=True)
    assert output.stat().st_mtime_ns == first
    run_notebook("01", {"seeds": [5]}, output, results=workshop, resume=True)
    assert output.stat().st_mtime_ns > first
    assert not notebooks.is_partial(output)
    run_notebook(
        "01", {"seeds": [5]}, output, results=workshop, environment={"MIDRE_TRAIN": "0"}, resume=True
    )
    assert notebooks.is_partial(output), "what is made so far is no complete run"


def test_a_run_depends_on_its_setup_and_photos(workshop, tmp_path, monkeypatch):
    path, source = tmp_path / "mine.yaml", notebooks.notebook_path("01")
    content = (FOLDER / "digits.yaml").read_text()
    path.write_text(content)
    key = notebooks._run_key(source, {"setup": str(path)}, {})
    assert notebooks._run_key(source, {"setup": str(path)}, {}) == key
    path.write_text(content.replace("image_size: 32", "image_size: 16"))
    assert notebooks._run_key(source, {"setup": str(path)}, {}) != key
    path.write_text(content)
    monkeypatch.setattr(notebooks, "data_stage", lambda _: Stage("data", "other photos", {}))
    assert notebooks._run_key(source, {"setup": str(path)}, {}) != key


def test_without_a_terminal_each_finished_notebook_is_one_line(workshop, capfd):
    run_notebooks(["01", "01"], {}, workshop, results=workshop)
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[IPKernelApp]")]
    assert [re.sub(r"\d+ s", "T s", line) for line in lines] == [
        "1/2 01_sum done in T s",
        "2/2 01_sum done in T s",
    ]


def test_publish_needs_a_complete_run_and_copies_by_kind(workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(publish, "run_dir", lambda setup: tmp_path / "runs" / setup)
    monkeypatch.setattr(
        publish, "study_notebooks", lambda _: [p.stem for p in sorted(notebooks.NOTEBOOKS.glob("*.ipynb"))]
    )
    with pytest.raises(UserError, match="missing 01_sum.ipynb, .*make run SETUP=tiny"):
        publish.publish("tiny")
    assert not (tmp_path / "published").exists()
    run = tmp_path / "runs" / "tiny"
    for relative in [f"{p.name}" for p in notebooks.NOTEBOOKS.glob("*.ipynb")] + [
        "tables/t.csv",
        "curves/c.csv",
    ]:
        (run / relative).parent.mkdir(parents=True, exist_ok=True)
        (run / relative).write_text(relative)
    monkeypatch.setattr(publish, "is_partial", lambda path: path.stem.startswith("01"))
    with pytest.raises(UserError, match="missing 01_sum.ipynb; make run"):
        publish.publish("tiny")
    assert publish.publish("tiny", partial=True)
    monkeypatch.setattr(publish, "is_partial", lambda _: False)
    publish.publish("tiny")
    written = {
        p.relative_to(tmp_path / "published").as_posix() for p in (tmp_path / "published").rglob("*.*")
    }
    assert {"tables/t.csv", "curves/c.csv", "tiny/01_sum.ipynb"} <= written and len(written) == 6
