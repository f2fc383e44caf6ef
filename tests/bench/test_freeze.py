"""A PE's freeze and the way back, on an emulated POWER9 host: one boot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.running import run

pytestmark = pytest.mark.bench

CHECKOUT = Path(__file__).resolve().parents[2]


def test_freeze_thaw_and_recovery_on_power9() -> None:
    result = run(
        [
            *("tools/bench", "run", "power9", "--"),
            *("python3", "-m", "pytest", "-rs", "hwtests/host/test_eeh.py"),
        ],
        cwd=CHECKOUT,
        timeout=900,
    )
    print(result.stdout, result.stderr)  # shown when the test fails
    assert result.returncode == 0
    (totals,) = (line for line in result.stdout.splitlines() if re.search(r"\d+ passed", line))
    assert "skipped" not in totals
