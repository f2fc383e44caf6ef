"""One access of a BAR is one load or store of its width: seen from outside, in QEMU's trace."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.bench.running import run

pytestmark = pytest.mark.bench

CHECKOUT = Path(__file__).resolve().parents[2]
LIVENESS = 0x04
EDU = "0000:00:04.0"
LINE = re.compile(
    r"memory_region_ops_(read|write) .*addr (0x[0-9a-f]+) value (0x[0-9a-f]+) size (\d+)"
)


def test_one_access_is_one_load_or_store_of_its_width(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    options = f"-trace memory_region_ops_* -D {trace}"
    command = ["tools/bench", "run", "x86", "--qemu-args", options, "--"]
    result = run(
        [*command, "python3", "tests/bench/accesses.py"],
        cwd=CHECKOUT,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    made = json.loads(result.stdout.splitlines()[-1])
    bars: dict[str, tuple[int, int]] = made["bars"]

    # What the devices saw, cut at the numbers written to edu.
    pieces: list[list[tuple[str, str, int, int]]] = []
    with trace.open(errors="replace") as lines:
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
