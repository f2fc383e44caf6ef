"""Commands that boot an emulated host."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

CRASHED = "QEMU itself crashed"


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As :func:`subprocess.run`, with text captured; once more where the emulator crashed.

    That is QEMU's own fault (see ``tools/_bench/machine.py``), and says nothing of what is tested.
    """
    options = {"capture_output": True, "text": True, "check": False, **options}
    result = subprocess.run(command, **options)
    if CRASHED in str(result.stderr):
        print(result.stderr)
        result = subprocess.run(command, **options)
    return result
