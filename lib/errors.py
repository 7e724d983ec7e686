"""The one exception a user is meant to read."""


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what was expected, what came, how to mend it.

    The command line prints it without a traceback and notebooks show it as one line
    (:func:`lib.run.notebooks.start`); everything else is a defect of ours and keeps its traceback.
    """
