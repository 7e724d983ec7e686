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
    """Every test has its own stage store, results folder and allowance for what is made unasked; no setup is read."""
    folder = tmp_path_factory.mktemp("isolated")
    monkeypatch.setenv("MIDRE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("RESULTS_DIR", str(folder / "results"))
    monkeypatch.setattr("lib.stages.progress._UNASKED", [])
    monkeypatch.setattr("lib.store.GIVEN_AS", {})


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


# A world of three digits whose networks learn for a few steps.
TINY = {
    "name": "digits",  # so that the digits study applies
    "image_size": 16,
    "conclusive": False,
    "data": {
        "private": {"source": "digits", "classes": [0, 1, 2]},
        "public": {"source": "digits", "classes": [5, 6, 7, 8, 9]},
        "test": 0.5,
        "public_held_out": 0.1,
        "verifier_share": 0.3,
    },
    "target": {
        "network": {"kind": "residual", "widths": [4, 4, 8, 8], "stem_stride": 2},
        "recipe": {"steps": 8, "batch": 64, "learning_rate": 4.0e-3, "augmentation": {"flip": 0.0}},
    },
    "multiples": {"none": [1, 2], "re(0.1,0.4)": [1]},
    "snapshots": [0.5],
    "evaluators": {
        "main": {"network": {"kind": "residual", "widths": [4, 4, 8, 8]}, "recipe": {"steps": 8}, "seed": 1},
        "panel_1": {
            "network": {"kind": "residual", "widths": [4, 4, 4, 8]},
            "recipe": {"steps": 8},
            "seed": 2,
        },
    },
    "verifier": {
        "network": {"kind": "residual", "widths": [4, 4, 8, 8], "cosine": 8.0},
        "recipe": {"steps": 4},
        "seed": 3,
    },
    "false_accept_rate": 0.1,
    "priors": {"eigenfaces": {"components": 8}},
    "attacks": {
        "ppa": {
            "eigenfaces": {"learning_rate": 0.1, "truncation": 1.0},
            "quick": {"pool": 8, "candidates": 2, "keep": 1, "steps": 1, "views": 1},
            "sweep": {"pool": 8, "candidates": 2, "keep": 1, "steps": 1, "views": 1},
            "headline": {"pool": 16, "candidates": 6, "keep": 4, "steps": 2, "views": 2},
        }
    },
}
