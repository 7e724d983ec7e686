"""The exceptions a user is meant to read."""

from pathlib import Path


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what was expected, what came, how to mend it.

    The command line prints it without a traceback and notebooks show it as one line
    (:func:`lib.run.kernel.start`); everything else is a defect of ours and keeps its traceback.
    """


class NotebookError(Exception):
    """A notebook stopped on an error that is not the user's. ``failed`` is the copy that shows it."""

    def __init__(self, name: str, reason: str, failed: Path, *, shown: str) -> None:
        super().__init__(f"notebook {name} failed: {reason}; see {shown}")
        self.failed = failed
