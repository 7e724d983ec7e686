"""Shared by all tests: no thread storms under xdist, nothing written outside temporary folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own stage store and results folder unless it sets others itself."""
    folder = tmp_path_factory.mktemp("isolated")
    monkeypatch.setenv("MIDRE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("RESULTS_DIR", str(folder / "results"))


@pytest.fixture
def write_notebook(tmp_path: Path):
    """Make a small notebook: ``write_notebook("05_x", "a: int = 1", "print(a)")``; parameters first."""

    def write(name: str, parameters: str, *cells: str) -> Path:
        def cell(source: str, tags: list[str]) -> dict:
            return {
                "cell_type": "code",
                "execution_count": None,
                "id": f"c{abs(hash(source)) % 10**8}",
                "metadata": {"tags": tags},
                "outputs": [],
                "source": source,
            }

        notebook = {
            "cells": [cell(parameters, ["parameters"]), *(cell(source, []) for source in cells)],
            "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(notebook))
        return path

    return write
