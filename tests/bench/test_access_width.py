"""One access of a BAR is one load or store of its width: seen from outside, in QEMU's trace."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.bench.conftest import Hosts

pytestmark = [pytest.mark.bench, pytest.mark.xdist_group("x86 trace")]

LIVENESS = 0x04
EDU = "0000:00:04.0"
LINE = re.compile(
    r"memory_region_ops_(read|write) .*addr (0x[0-9a-f]+) value (0x[0-9a-f]+) size (\d+)"
)


def traced(hosts: Hosts, trace: Path, command: str) -> tuple[str, list[str]]:
    """Run a command on a host that traces accesses; returns its output and the trace's lines."""
    before = trace.stat().st_size if trace.exists() else 0
    options = f"-trace memory_region_ops_* -D {trace}"
    result = hosts.run("x86", command, qemu_args=options)
    with trace.open(errors="replace") as lines:
        # QEMU begins the file anew when the host is replaced.
        lines.seek(before if trace.stat().st_size >= before else 0)
        return result.stdout, lines.readlines()


def test_trace_shows_an_access_with_its_width(hosts: Hosts, trace: Path) -> None:
    read = "setpci -s 0:4.0 COMMAND=2; busybox devmem $(sed -n '1s/ .*//p' "
    read += "/sys/bus/pci/devices/0000:00:04.0/resource) 32"
    printed, lines = traced(hosts, trace, read)
    assert printed == "0x010000ED\n"
    (access,) = (line for line in lines if "'edu-mmio'" in line)
    assert "memory_region_ops_read" in access
    assert "value 0x10000ed size 4" in access


def test_one_access_is_one_load_or_store_of_its_width(hosts: Hosts, trace: Path) -> None:
    printed, lines = traced(hosts, trace, "python3 tests/bench/accesses.py")
    made = json.loads(printed.splitlines()[-1])
    bars: dict[str, tuple[int, int]] = made["bars"]

    # What the devices saw, cut at the numbers written to edu.
    pieces: list[list[tuple[str, str, int, int]]] = []
    for line in lines:
        match = LINE.search(line)
        if match is None:
            continue
        at = int(match[2], 16)
        for address, (base, size) in bars.items():
            if base <= at < base + size:
                seen = (address, match[1], at - base, int(match[4]))
                if seen == (EDU, "write", LIVENESS, 4):
                    assert int(match[3], 16) == len(pieces)
                    pieces.append([])
                elif pieces:
                    pieces[-1].append(seen)
    accesses = [tuple(access) for access in made["accesses"]]
    # After the last number come the devices' closing, and whatever their drivers do.
    assert pieces[:-1] == [[access] for access in accesses]
    assert {access[3] for access in accesses} == {1, 2, 4, 8}
