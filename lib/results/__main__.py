"""``python -m lib.results [folder]``: all tables as one CSV on standard output."""

from __future__ import annotations

import sys
from pathlib import Path

from lib.errors import UserError
from lib.results.schema import load_tables


def main(arguments: list[str]) -> int:
    """Print the tables under a results folder (default: RESULTS_DIR, else results/); exit status 0 or 2."""
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        print("usage: python -m lib.results [results folder]", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) if arguments else None
    try:
        if folder is not None and not folder.is_dir():
            raise UserError(f"expected a results folder, got {folder}; name one such as results/runs/digits")
        table = load_tables(folder=folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        table.to_csv(sys.stdout, index=False, float_format="%.6g", lineterminator="\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
