"""Import time and memory, each in a fresh interpreter.

Byte code is cached, as it is for every import but the first, in a directory of the run's own: some
environments switch the cache off.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tools._perf.measure import interleave
from tools._perf.peers import Absent
from tools._perf.row import Aim, Comparison, Row, Samples, Setting

CHECKOUT = Path(__file__).parents[3]
ROUNDS = 15

BARE = "import pyvfio"
OPEN = "import pyvfio; pyvfio.open"
TINYGRAD = "tinygrad's PCI and VFIO part"
PERIPHERY = "python-periphery"

_PROBE = """
import os, sys, time

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = resident()
start = time.process_time()
{}
seconds = time.process_time() - start
print(seconds * 1e3, (resident() - before) / 2**20)
"""


@functools.cache
def _measure(setting: Setting) -> tuple[Samples, Samples]:
    """Processor time in milliseconds, memory in MiB."""
    absent: dict[str, str] = {}
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as cache:

        def contender(name: str, code: str, path: Path) -> Callable[[], float]:
            environment = {
                **os.environ,
                "PYTHONPATH": str(path),
                "PYTHONPYCACHEPREFIX": cache,
                "PYTHONDONTWRITEBYTECODE": "",
            }
            command = (sys.executable, "-c", _PROBE.format(code))
            taken = memory[name] = []

            def run() -> float:
                # Not in the checkout: `python -c` looks where it is started first.
                output = subprocess.check_output(command, cwd=cache, env=environment, text=True)
                milliseconds, mebibytes = map(float, output.split())
                taken.append(mebibytes)
                return milliseconds

            return run

        contenders = {
            BARE: contender(BARE, BARE, CHECKOUT),
            OPEN: contender(OPEN, OPEN, CHECKOUT),
        }
        for name, project, code in (
            (TINYGRAD, "tinygrad", "import tinygrad.runtime.support.system"),
            (PERIPHERY, "python-periphery", "import periphery"),
        ):
            try:
                contenders[name] = contender(name, code, setting.peers.directory(project))
            except Absent as reason:
                absent[name] = str(reason)
        time = interleave(contenders, setting.progress, ROUNDS)
    # The round that warms up is not among the times either.
    return Samples(time, absent), Samples({k: v[1:] for k, v in memory.items()}, absent)


def _row(name: str, title: str, unit: str, which: int, limit: float) -> Row:
    budget = f"{limit:g} {unit} allowed"

    def measure(setting: Setting) -> Samples:
        samples = _measure(setting)[which]
        return Samples({**samples.costs, budget: [limit] * ROUNDS}, samples.absent)

    comparisons = [Comparison(ours, budget, Aim(1.0)) for ours in (BARE, OPEN)]
    comparisons += [Comparison(ours, TINYGRAD, Aim(1 / 4)) for ours in (BARE, OPEN)]
    comparisons += [Comparison(OPEN, PERIPHERY)]
    return Row(name, title, unit, tuple(comparisons), measure)


ROWS = (
    _row("import-time", "import time", "ms", 0, 50),
    _row("import-memory", "import memory", "MiB", 1, 10),
)
