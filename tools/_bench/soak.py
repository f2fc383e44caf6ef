"""Boot a host again and again with each QEMU, run a command each time, and count what went wrong.

This is how the default QEMU was chosen; docs/bench.md has the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter

from . import BenchError, emulator, machine
from .hosts import Bench, Wanted
from .progress import say

# Resets, interrupts and KVM: where QEMU 7.2 is known to have crashed.
COMMAND = (
    "python3 -m pytest -q -p no:cacheprovider --device 0000:02:00.0 hwtests/test_reset.py "
    "hwtests/test_forwarding.py hwtests/devices/test_e1000e_forwarding.py "
    "-k 'not ten_thousand and not none_is_lost'"
)
BAD_STATUS = "command failed"

EPILOG = """\
example:
  tools/bench soak x86 --boots 100 --qemu system --qemu 11
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `soak` takes besides the profile."""
    parser.add_argument("--boots", type=int, default=100, help="of each QEMU (default %(default)s)")
    parser.add_argument(
        "--qemu", action="append", choices=emulator.NAMES, help="again for more (default: all)"
    )
    parser.add_argument(
        "--command", default=COMMAND, help="for the guest's shell (default: tests of one device)"
    )
    parser.add_argument("--json", action="store_true", help="one line for each boot")


def soak(options: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status: 1 if anything went wrong."""
    qemus = options.qemu or emulator.NAMES
    outcomes: dict[str, Counter[str]] = {qemu: Counter() for qemu in qemus}
    seconds: dict[str, list[float]] = {qemu: [] for qemu in qemus}
    with Bench() as bench:
        for number in range(options.boots):
            # In turn, so that what else the machine does affects all of them.
            for qemu in qemus:
                outcome, took = _once(bench, Wanted(options.profile, qemu=qemu), options.command)
                outcomes[qemu][outcome] += 1
                seconds[qemu].append(took)
                if options.json:
                    it = {"boot": number, "qemu": qemu, "outcome": outcome, "seconds": took}
                    print(json.dumps(it), flush=True)
    for qemu in qemus:
        counts = ", ".join(f"{count} {name}" for name, count in outcomes[qemu].most_common())
        say(f"QEMU {qemu}: {counts}; median {statistics.median(seconds[qemu]):.1f} s")
    return int(any(set(counts) != {"ok"} for counts in outcomes.values()))


def _once(bench: Bench, wanted: Wanted, command: str) -> tuple[str, float]:
    start, before = time.monotonic(), len(bench.boots)
    bench.end()
    try:
        done = bench.run(wanted, command, time_limit=300)
    except BenchError as error:
        say(str(error))
        known = (machine.QemuCrashed, machine.BootFailed, machine.MachineDied, machine.TimeLimit)
        kind = next((kind for kind in known if isinstance(error, kind)), BenchError)
        return kind.__name__, time.monotonic() - start
    for boot in bench.boots[before:]:
        if boot.failure:
            say(boot.failure)
            return "boot failed", time.monotonic() - start
    if done.returncode:
        say(done.stdout + done.stderr)
        return BAD_STATUS, time.monotonic() - start
    return "ok", time.monotonic() - start
