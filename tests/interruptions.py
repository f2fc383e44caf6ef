"""How and when a system call is interrupted in a test."""

from __future__ import annotations

import signal

import pytest


def press() -> None:
    """Ctrl-C: a signal, which a section of the library defers."""
    signal.raise_signal(signal.SIGINT)


def throw() -> None:
    """An exception that no section can defer, as a debugger raises it."""
    raise KeyboardInterrupt


HOW = pytest.mark.parametrize("how", [press, throw])
WHEN = pytest.mark.parametrize("when", ["before", "after"])
