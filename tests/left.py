"""Locks and deferred signals that a test may leave behind, for which later ones would wait."""

from __future__ import annotations

import threading

from pyvfio._sys import file as files
from pyvfio._sys import signals

_TIMEOUT = 10.0  # seconds; other threads hold the lock for a moment only


def set_right() -> list[str]:
    """Free what all files of this process share; returns in words what was held."""
    found = []
    if files.lock._is_owned():  # type: ignore[attr-defined]
        found.append("the lock of pyvfio._sys.file is held by the thread of the tests")
        while files.lock._is_owned():  # type: ignore[attr-defined]
            files.lock.release()
    if files.lock.acquire(timeout=_TIMEOUT):
        files.lock.release()
    else:
        found.append("the lock of pyvfio._sys.file is held by another thread")
        files.lock = threading.RLock()
    if signals._deferral.active:
        found.append("signals stay deferred")
        signals._deferral.end()
    return found
