"""numpy, where it can be used."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest


def usable_numpy() -> ModuleType:
    """numpy, or a skipped test.

    Looked for in a process of its own: on a POWER8 emulated by QEMU 7.2, which does not know the
    mffsl instruction that libm uses there, importing numpy ends the process.
    """
    if "numpy" in sys.modules:
        return sys.modules["numpy"]
    found = subprocess.run([sys.executable, "-c", "import numpy"], capture_output=True)
    if found.returncode != 0:
        reason = found.stderr.decode(errors="replace").strip().splitlines()[-1:]
        pytest.skip(f"numpy is not usable here: {reason or f'status {found.returncode}'}")
    import numpy

    return numpy
