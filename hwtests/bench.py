"""Whether the host is one where there is nothing to lose."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvfio.kvm.xics import BYPASS

ON_BENCH = "PYVFIO_BENCH" in os.environ

changes_the_host = pytest.mark.skipif(
    not ON_BENCH, reason="changes settings of the whole host for a moment: only on the bench"
)

#: How many times more often, or longer, a test goes on that repeats something at random.
REPEAT = int(os.environ.get("PYVFIO_REPEAT", "1"))


@contextmanager
def loopback_reaches_guests() -> Iterator[None]:
    """Have what VFIO fires by loopback reach a guest, for as long as the block lasts.

    Where interrupts of devices bypass software (POWER with XIVE) KVM would drop it.
    """
    if not BYPASS.exists():
        yield
        return
    if not ON_BENCH:
        pytest.skip(f"{BYPASS} must be 0, a setting of the whole host")
    with setting(BYPASS, 0):
        yield


@contextmanager
def setting(path: Path, value: int) -> Iterator[None]:
    """Have another value in a file of /proc or /sys for as long as the block lasts."""
    before = path.read_text()
    path.write_text(str(value))
    try:
        yield
    finally:
        path.write_text(before)
