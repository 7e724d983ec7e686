"""What a notebook calls first. A file of its own, as :mod:`lib.run.notebooks` loads papermill: seconds that no kernel
needs."""

from __future__ import annotations

import importlib.metadata
import platform

import pandas as pd
from IPython import get_ipython

from lib import runtime
from lib.errors import UserError
from lib.plots import theme


def start() -> None:
    """First call of every notebook: user errors as one line, the figures' style, versions on one line.

    A :class:`lib.errors.UserError` still fails its cell (and papermill and nbval), only without traceback.
    """
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((UserError,), _show_user_error)
    pd.set_option("display.max_colwidth", None)  # findings are sentences
    theme()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "numpy")
    )
    print(f"Python {platform.python_version()}, {versions}, device {runtime.device()}")


def _show_user_error(shell, etype, value, traceback, tb_offset=None) -> None:
    shell._showtraceback(etype, value, ["error: " + " ".join(str(value).split())])
