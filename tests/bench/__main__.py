"""``make bench``: seconds per identity of the published way of working and of ours, where the difference comes
from, and the memory our attack takes."""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from lib.errors import UserError
from lib.runtime import device, supports_bfloat16
from tests.bench.clock import PHASES
from tests.bench.compare import compare, summary
from tests.bench.memory import BUDGETS, CHUNK, PEOPLE, peak_megabytes
from tests.bench.world import budget_for, shipped_world

PEOPLE_TIMED, PHOTOS = 4, 8
# MIDRE's budget in small: a tenth of its steps and views, each step larger, so that the attack succeeds all the same.
TIMED = {"pool": 64, "candidates": 8, "keep": 4, "steps": 5, "views": 10, "learning_rate": 0.15}
SPEED = {
    "seconds": "s/identity",
    "ratio": "x",
    "cpu_seconds": "CPU s/identity",
    "cpu_ratio": "CPU x",
    "full_ratio": "CPU x full",
    "step": "CPU step",
}
RESULT = {
    "attack_accuracy": "AttAcc",
    "evaluator_confidence": "p evaluator",
    "target_confidence": "p target",
    "frechet": "Fréchet",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timings of each way; the median counts")
    parser.add_argument("--people", type=int, default=PEOPLE_TIMED, help="identities attacked")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; with one, processor time is work alone"
    )
    parser.add_argument("--no-ablation", action="store_true", help="only the published way and ours")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--save", type=Path, help="CSV to write: part, name, quantity, value")
    given = parser.parse_args(arguments)
    if min(given.rounds, given.threads) < 1 or not 1 <= given.people <= 62:
        raise UserError(
            "bench: expected at least 1 round and thread and 1 to 62 people, got "
            f"{given.rounds}, {given.threads} and {given.people}; correct --rounds, --threads or --people"
        )
    torch.set_num_threads(given.threads)
    began = time.monotonic()
    world = shipped_world(given.people, PHOTOS)
    budget = budget_for(world, **TIMED)
    line = compare(
        world, budget, rounds=given.rounds, ablation=not given.no_ablation, say=lambda text: _live(text)
    )
    _live("")
    table = summary(line, world, budget)
    _print_speed(table, given.people, given.rounds)
    _print_result(table, given.people * budget.keep * given.rounds)
    saved = [_long("speed", "way", table)]
    if not given.no_memory:
        rows = []
        for name, people in itertools.product(BUDGETS, PEOPLE):
            _live(f"memory of {name} on {people} people")
            rows.append((f"{name}, {people} people", *peak_megabytes(name, people)))
        _live("")
        memory = pd.DataFrame(rows, columns=["attack", "before_megabytes", "peak_megabytes"])
        _print_memory(memory)
        saved.append(_long("memory", "attack", memory))
    if given.save:
        given.save.parent.mkdir(parents=True, exist_ok=True)
        pd.concat(saved).to_csv(given.save, index=False, float_format="%.6g", lineterminator="\n")
        print(f"\nsaved {given.save}")
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return 0


def _print_speed(table: pd.DataFrame, people: int, rounds: int) -> None:
    where = device()
    print(
        f"PPA on lfw64's undefended target through its StyleGAN: {people} people, "
        f"{', '.join(f'{name} {value}' for name, value in TIMED.items())}, {PHOTOS} photos each.\n"
        f"{where}, threads {torch.get_num_threads()}, torch {torch.__version__}, {platform.machine()}, "
        f"{'native' if supports_bfloat16(where) else 'no native'} bf16; median of {rounds} interleaved rounds.\n"
    )
    rows = table.set_index("way")
    print(_text(rows[list(SPEED)].rename(columns=SPEED), 2))
    print(
        "\nCPU: processor time, which other programs disturb least. x: against the published way; x full: each\n"
        "phase scaled to MIDRE's budget (16 candidates, 50 steps, 100 views, 2000 samples for 530 people, 30\n"
        "photos each); step: against the row above.\n"
    )
    same = rows.iloc[1]
    for way in rows.index[-2:]:
        ratio, full = rows["cpu_ratio"][way], rows["full_ratio"][way]
        print(
            f"{way}: {ratio:.2f} times as fast by processor time, {full:.2f} times at MIDRE's budget", end=""
        )
        if len(rows) > 3:
            print(
                f"; {ratio / same['cpu_ratio']:.2f} and {full / same['full_ratio']:.2f}\n"
                "  against the published way with our generator's modulation",
                end="",
            )
        print()
    phases = {f"cpu_{name}": name for name in PHASES}
    print("\nCPU s/identity by phase")
    print(_text(rows[list(phases)].rename(columns=phases), 3))


def _print_result(table: pd.DataFrame, images: int) -> None:
    print(f"\nWhat they reach: means over {images} kept images")
    print(_text(table.set_index("way")[list(RESULT)].rename(columns=RESULT), 2))


def _print_memory(memory: pd.DataFrame) -> None:
    print(f"\nPeak memory of our attacks on digits-sized networks, {CHUNK} people a chunk, in MB")
    names = {"before_megabytes": "before the attack", "peak_megabytes": "peak"}
    print(_text(memory.set_index("attack").rename(columns=names), 0))


def _text(table: pd.DataFrame, digits: int) -> str:
    return table.to_string(float_format=lambda value: f"{value:.{digits}f}", index_names=False)


def _long(part: str, name: str, table: pd.DataFrame) -> pd.DataFrame:
    rows = table.melt(id_vars=name, var_name="quantity", value_name="value").rename(columns={name: "name"})
    return rows.assign(part=part)[["part", "name", "quantity", "value"]]


def _live(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
