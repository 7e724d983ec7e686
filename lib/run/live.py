"""What a person sees while notebooks run: one live line, fed by papermill's engine and by the stages."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from papermill.engines import NBClientEngine, papermill_engines
from tqdm import tqdm

ENGINE = "midre"
"""The name under which papermill knows :class:`Engine`."""


class LiveLine:
    """One line in the terminal: which notebook of how many, its cell, and what the stage says it is doing.

    Without a terminal it prints one line per finished notebook instead.
    """

    def __init__(self, total: int, *, show: bool = True):
        self.total, self.done, self.show = total, 0, show
        self.terminal = sys.stderr.isatty()
        self._title, self._cell, self._lock = "", "", threading.Lock()
        self._bar = tqdm(
            total=total, bar_format="{desc} [{elapsed}]", leave=False, disable=not (show and self.terminal)
        )

    def __enter__(self) -> LiveLine:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def cell(self, number: int, total: int, description: str | None) -> None:
        """Called by the engine when a cell starts."""
        with self._lock:
            self._cell = f"cell {number}/{total}" + (
                f" · {description.replace('_', ' ')}" if description else ""
            )

    @contextlib.contextmanager
    def watch(self, title: str, said: Path) -> Iterator[None]:
        """Show a notebook while it runs, with what :func:`lib.stages.progress.report` last wrote to ``said``."""
        with self._lock:
            self._title, self._cell = title, "starting"
        begun, stop = time.monotonic(), threading.Event()
        thread = threading.Thread(target=self._refresh, args=(said, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        self.done += 1
        if self.show:
            text = f"{self.done}/{self.total} {title} done in {time.monotonic() - begun:.0f} s"
            tqdm.write(text, file=sys.stderr) if self.terminal else print(text, file=sys.stderr, flush=True)

    def _refresh(self, path: Path, stop: threading.Event) -> None:
        while not stop.wait(0.25):
            try:
                said = path.read_text(encoding="utf-8")
            except OSError:
                said = ""
            with self._lock:
                parts = [f"{self.done + 1}/{self.total} {self._title}", self._cell, said]
            width = shutil.get_terminal_size().columns - 12
            self._bar.set_description_str(" · ".join(filter(None, parts))[: max(width, 20)])


class Engine(NBClientEngine):
    """papermill's own engine, which also tells the live line which cell has started."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, live_line=None, **kwargs):
        begin = nb_man.cell_start
        total = len(nb_man.nb.cells)

        def cell_start(cell, cell_index=None, **more):
            if live_line is not None:
                live_line.cell((cell_index or 0) + 1, total, nb_man.get_cell_description(cell))
            return begin(cell, cell_index, **more)

        nb_man.cell_start = cell_start
        quiet = ["--log-level=40"]  # else each kernel warns about its local sockets, across the live line
        return super().execute_managed_notebook(nb_man, kernel_name, extra_arguments=quiet, **kwargs)


papermill_engines.register(ENGINE, Engine)
