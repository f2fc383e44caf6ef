"""The examples, as far as that needs no device; on the bench they are run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
NOWHERE = "ffff:ff:1f.7"


@pytest.mark.parametrize(
    "example", sorted((CHECKOUT / "examples").glob("*.py")), ids=lambda path: path.stem
)
def test_it_says_in_one_line_what_is_wrong(example: Path) -> None:
    result = subprocess.run(
        [sys.executable, example, NOWHERE, NOWHERE],
        env={"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{example.name}: ")
    assert NOWHERE in line
