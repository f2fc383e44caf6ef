"""What the README shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not os.environ.get("PYVFIO_BENCH"), reason="takes a device from the host: only on the bench"
)


def test_the_first_example_runs_as_it_stands() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example is not None
    result = subprocess.run([sys.executable, "-c", example[1]], capture_output=True, text=True)
    assert result.stderr == ""
    factorial, memory, interrupts = result.stdout.splitlines()
    assert factorial == "120 120"
    assert memory.startswith("0x")
    assert interrupts == "1"
