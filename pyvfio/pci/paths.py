"""Where the host shows itself. Tests put other trees here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")
SYSFS = Path("/sys")
PROC = Path("/proc")
DEV = Path("/dev")

# What bind() remembers; gone with the next boot, as the bindings are.
RECORDS = Path("/run/pyvfio")
