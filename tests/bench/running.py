"""Commands that boot an emulated host."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

ITS_OWN_FAULT = ("QEMU itself crashed", "QEMU ended before the guest was up", "QEMU ended: ")


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As :func:`subprocess.run`, with text captured; once more where the emulator crashed.

    That is QEMU's own fault (see ``tools/_bench/machine.py``), and says nothing of what is tested;
    so it is where it ended before anything was run in it.
    """
    options = {"capture_output": True, "text": True, "check": False, **options}
    result = subprocess.run(command, **options)
    if any(fault in str(result.stderr) for fault in ITS_OWN_FAULT):
        print(result.stderr)
        result = subprocess.run(command, **options)
    return result
