"""Peak memory of our attacks as the number of people grows: each number from a fresh process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from lib import attacks
from lib.runtime import ROOT
from tests.bench.world import small_world

PEOPLE = (62, 250, 1000)
CHUNK = 8
COMMON = {"candidates": 4, "keep": 2, "steps": 2, "views": 2, "chunk": CHUNK}
BUDGETS = {
    "ppa": {**COMMON, "pool": 64},
    "mirror_genetic": {**COMMON, "pool": 256, "population": 128},  # starts that would fill memory
    "brep": {**COMMON, "pool": 5000, "directions": 8},
    # every image of the pool is scored for every person
    "rlb": {
        **COMMON,
        **{"pool": 128, "candidates": 8, "steps": 9, "hidden": 8, "batch": 8, "buffer": 200},
    },
}


def peak_megabytes(name: str, people: int) -> tuple[float, float]:
    """Peak before and after the named attack of a fresh process on ``people`` labels of a network of the ``digits``
    setup's size; what is there before are libraries, networks and photos."""
    command = [sys.executable, "-m", "tests.bench.memory", name, str(people)]
    environment = {**os.environ, "DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    return before, after


def attack(name: str, people: int) -> tuple[float, float]:
    """The same in this process."""
    world, method = small_world(people), attacks.get(name)
    before = _own_peak()
    method.invert(world.target, world.prior, world.labels, budget=method.budget(**BUDGETS[name]), seed=0)
    return before, _own_peak()


def _own_peak() -> float:
    """Megabytes. Linux hands the parent's peak down to ``ru_maxrss``; ``VmHWM`` is this program's alone."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    print(*attack(sys.argv[1], int(sys.argv[2])))
