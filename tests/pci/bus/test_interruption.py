"""Ctrl-C at each line of bind(), unbind() and bound(): nothing is left half done."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pyvfio
from pyvfio.pci import Function, bind, bound, paths, unbind

from .driver_core import DriverCore
from .tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")

ADDRESS = "0000:01:00.0"
PACKAGE = str(Path(pyvfio.__file__).parent)
# What changes something or holds something open; the rest only looks.
FILES = tuple(
    f"{PACKAGE}/{name}.py"
    for name in (
        *("pci/binding", "pci/record", "pci/events", "pci/modules", "pci/usage/disks"),
        *("_sys/signals", "_sys/sysfs", "_sys/file", "_sys/closing"),
    )
)

Line = tuple[str, int, int]  # file, line, and how often it was passed before, up to twice


class Lines:
    """Counts the lines of pyvfio that are run, and strikes at one of them.

    Attributes:
        passed: the lines that were run, in order.
    """

    def __init__(self, at: Line | None, strike: Callable[[], None]) -> None:
        self.passed: list[Line] = []
        self._at = at
        self._strike = strike
        self._counts: dict[tuple[str, int], int] = {}

    def run(self, action: Callable[[], object]) -> None:
        """Run the action."""
        sys.settrace(self._trace)
        try:
            action()
        finally:
            sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        # What strikes in a finalizer is dropped by Python.
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name == "__del__":
            return None
        if event == "line":
            place = (frame.f_code.co_filename[len(PACKAGE) :], frame.f_lineno)
            count = self._counts[place] = self._counts.get(place, -1) + 1
            if count < 2:
                self.passed.append((*place, count))
                if self._at == self.passed[-1]:
                    self._strike()
        return self._trace


def by_signal() -> None:
    """Ctrl-C, as the kernel sends it."""
    signal.raise_signal(signal.SIGINT)


def by_exception() -> None:
    """What a debugger or another thread may raise, which nothing can hold back."""
    raise KeyboardInterrupt


def take(function: Function) -> None:
    bind(ADDRESS)


def give_back(function: Function) -> None:
    unbind(ADDRESS)


def hold(function: Function) -> None:
    with bound(ADDRESS):
        pass


@pytest.fixture
def function(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Function:
    for name in ("vfio-pci", "e1000e"):
        tree.driver(name)
    DriverCore(tree, monkeypatch)
    return tree.function(driver="e1000e", override="e1000e", group=3)


def is_bound(function: Function) -> bool:
    """Whether it is bound, with a record, or given back, without one; nothing else will do."""
    state = function.driver, function.driver_override, os.path.exists(record())
    assert state in (("vfio-pci", "e1000e", True), ("e1000e", "e1000e", False))
    assert not os.path.exists(f"{record()}.new")
    return state[2]


def record() -> str:
    return str(paths.RECORDS / f"{ADDRESS}.json")


# A descriptor whose owner is interrupted while it is made is closed by its finalizer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("action", [take, give_back, hold])
@pytest.mark.parametrize("strike", [by_signal, by_exception])
def test_ctrl_c_at_each_line_leaves_nothing_half_done(
    function: Function, strike: Callable[[], None], action: Callable[[Function], None]
) -> None:
    def prepare() -> None:
        if is_bound(function):
            assert unbind(ADDRESS) is True
        if action is give_back:
            assert bind(ADDRESS) is True

    prepare()
    action(function)  # imports what it needs
    prepare()
    whole = Lines(None, strike)
    whole.run(lambda: action(function))
    # What puts the signals' handlers back is not made for exceptions that no signal raised.
    lines = [
        line
        for line in whole.passed
        if strike is by_signal or not line[0].endswith("/_sys/signals.py")
    ]
    assert len(lines) > 100
    for line in lines:
        prepare()
        with pytest.raises(KeyboardInterrupt) as caught:
            Lines(line, strike).run(lambda: action(function))
        # The traceback is kept here, as by an interactive Python: the lock must be free all the
        # same, and what bound() has taken must be given back.
        left = is_bound(function)
        if action is not give_back:
            assert not left, line
        assert unbind(ADDRESS, timeout=0) is left, line
        assert not is_bound(function)
        del caught
