"""What a notebook calls first. A file of its own, as :mod:`lib.run.notebooks` loads papermill: seconds that no kernel
needs."""

from __future__ import annotations

import importlib.metadata
import platform

from lib import runtime
from lib.errors import UserError


def start() -> None:
    """First call of every notebook: user errors as one line, the figures' style, versions on one line.

    A :class:`lib.errors.UserError` still fails its cell (and papermill and nbval), only without traceback.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((UserError,), _show_user_error)
    import pandas as pd

    pd.set_option("display.max_colwidth", None)  # findings are sentences
    from lib.plots import theme  # here, so that running notebooks from a terminal does not import matplotlib

    theme()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "numpy")
    )
    print(f"Python {platform.python_version()}, {versions}, device {runtime.device()}")


def _show_user_error(shell, etype, value, traceback, tb_offset=None) -> None:
    shell._showtraceback(etype, value, ["error: " + " ".join(str(value).split())])
