"""The command line: ``python -m lib.run start | setup NAME | batch NAME | keep NAME | publish NAME |
settle NAME ATTACK | smoke | cache ls|rm | promote NAME``."""

from __future__ import annotations

import argparse
import os
import sys

from lib.errors import NotebookError, UserError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.do(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.run", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, do, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(do=do)
        return sub

    command("start", _start, "notebook 00 on the shipped zoo")
    setup = command("setup", _setup, "the notebooks on a setup, training what is missing")
    setup.add_argument("setup", help="digits, lfw64, ... or a .yaml file")
    setup.add_argument("--dry", action="store_true", help="only print the stages and the time left")
    setup.add_argument("--defences", nargs="*", default=[], help="instead of the study's")
    setup.add_argument("--training-seeds", nargs="*", type=int, default=[])
    setup.add_argument("--attack-seeds", nargs="*", type=int, default=[])
    setup.add_argument("--notebooks", nargs="*", default=[], help="only these, such as 03 06")
    setup.add_argument("--made", action="store_true", help="train nothing: show what is made so far")
    settle = command("settle", _settle, "try an attack's grid of constants on a throw-away target")
    settle.add_argument("setup")
    settle.add_argument("attacks", nargs="+", help="such as mirror brep")
    command("smoke", _smoke, "make results/smoke anew (the nbval reference)")
    publish = command("publish", _publish, "copy a finished run into the committed results")
    publish.add_argument("setup")
    publish.add_argument("--partial", action="store_true", help="also if not all notebooks are there yet")
    batch = command("batch", _batch, "make what a study's tables lack, and keep it")
    batch.add_argument("setup")
    batch.add_argument("--unit", help="only this one of those that the Snakefile makes side by side")
    batch.add_argument("--match", default="", help="only what has this in its label, such as ppa")
    keep = command("keep", _keep, "copy what is measured so far, and its records, into the committed results")
    keep.add_argument("setup")
    promote = command(
        "promote", _promote, "copy the networks that are shipped from the cache into results/zoo"
    )
    promote.add_argument("setup")
    cache = command("cache", _cache, "list or remove cached stages and unfinished trainings")
    cache.add_argument("action", choices=["ls", "rm"])
    cache.add_argument("pattern", nargs="?", help="rm: a key (eight digits do), or words of a kind or label")
    return parser


def _start(_: argparse.Namespace) -> int:
    from lib.run.start import run_start

    return run_start()


def _setup(options: argparse.Namespace) -> int:
    from lib.reports.workbook import open_workbook
    from lib.results import run_dir
    from lib.run.notebooks import notebook_path, run_setup
    from lib.run.plan import describe, plan

    book = open_workbook(options.setup, options.defences, options.training_seeds, options.attack_seeds)
    for name in options.notebooks:
        notebook_path(name)
    if not options.made:
        print(describe(plan(book)))
    if options.dry:
        return 0
    chosen = {
        "defences": options.defences,
        "training_seeds": options.training_seeds,
        "attack_seeds": options.attack_seeds,
    }
    given = {key: value for key, value in chosen.items() if value}
    made = run_setup(
        options.setup, given, names=options.notebooks, resume=not options.made, train=not options.made
    )
    for path, seconds in made:
        print(f"  {path.stem:<24} {seconds:6.1f} s")
    print(f"read on in {os.path.relpath(run_dir(book.setup.name))}")
    return 0


def _settle(options: argparse.Namespace) -> int:
    from lib.run.settle import settle
    from lib.setups import load_setup

    os.environ["MIDRE_TRAIN"] = "1"
    for attack in options.attacks:
        print(settle(load_setup(options.setup), attack).to_string(index=False))
    return 0


def _smoke(_: argparse.Namespace) -> int:
    from lib.run.notebooks import run_smoke

    for path, seconds in run_smoke():
        print(f"  {path.stem:<24} {seconds:6.1f} s")
    return 0


def _publish(options: argparse.Namespace) -> int:
    from lib.run.batch import copy_records
    from lib.run.publish import publish
    from lib.setups import name_of

    written = publish(options.setup, partial=options.partial) + copy_records(name_of(options.setup))
    print(f"{len(written)} files written to results/")
    return 0


def _batch(options: argparse.Namespace) -> int:
    from lib.reports.workbook import open_workbook
    from lib.run.batch import make, make_unit

    os.environ["MIDRE_TRAIN"] = "1"
    book = open_workbook(options.setup)
    if options.unit:
        failures = make_unit(book, options.unit, match=options.match)
    else:
        failures = make(book, match=options.match)
    return 1 if failures else 0


def _keep(options: argparse.Namespace) -> int:
    from lib.reports.workbook import open_workbook
    from lib.run.batch import keep

    written = keep(open_workbook(options.setup))
    print(f"{len(written)} files written to results/")
    return 0


def _promote(options: argparse.Namespace) -> int:
    from lib.stages.zoo import promote_zoo

    for path in promote_zoo(options.setup):
        print(f"  {path.name}")
    return 0


def _cache(options: argparse.Namespace) -> int:
    import pandas as pd

    from lib import store

    if options.action == "rm":
        if not options.pattern:
            raise UserError("cache rm: expected a key, or words of a kind or label; `cache ls` lists them")
        kept = [f"{row['kind']}-{row['key']}" for row in store.matching(options.pattern, "records")]
        if kept:
            print(
                f"recorded in {store.RECORDS}, where they are found again; remove what is of an earlier draft: "
                f"{' '.join(f'{stem}.*' for stem in kept)}"
            )
        for label in store.remove(options.pattern):
            print(f"removed {label}")
        return 0
    rows = list(store.listing())
    print(pd.DataFrame(rows).to_string(index=False) if rows else "nothing is cached yet")
    return 0


if __name__ == "__main__":
    sys.exit(main())
