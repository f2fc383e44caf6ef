"""Ctrl-C at each step of bind(), unbind() and bound(): nothing is left half done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from types import FrameType

import pytest

from pyvfio._sys import signals
from pyvfio.pci import Function, bind, bound, paths, unbind
from tests.campaign.steps import Step, Steps, in_finalizer

from .driver_core import DriverCore
from .tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")

ADDRESS = "0000:01:00.0"
# What changes something or holds something open; the rest only looks.
FILES = (
    *("pci/binding.py", "pci/record.py", "pci/events.py", "pci/modules.py", "pci/usage/disks.py"),
    *("_sys/signals.py", "_sys/sysfs.py", "_sys/file.py", "_sys/closing.py"),
)

Point = tuple[Step, int]  # and how often it was passed before, up to once


class Interruption:
    """Passes the steps of an action, and strikes at one of them.

    Attributes:
        passed: those that it came to, in order.
        struck: whether it came to the one.
    """

    def __init__(self, at: Point | None, strike: Callable[[], None]) -> None:
        self.passed: list[Point] = []
        self.struck = False
        self._at = at
        self._strike = strike
        self._counts: dict[Step, int] = {}
        self._steps = Steps(self._reach, FILES)

    def run(self, action: Callable[[], object]) -> None:
        """Run the action."""
        with self._steps:
            action()

    @property
    def distinct(self) -> list[Point]:
        """Those at which something differs: from a return to a call in its line nothing is done."""
        return [
            point
            for point, (after, _) in pairwise([*self.passed, (Step("", 0, "end"), 0)])
            if not point[0].what.startswith("return")
            or (*point[0][:2], "begin") != (after.file, after.line, after.what)
        ]

    def _reach(self, step: Step, frame: FrameType) -> None:
        count = self._counts.get(step, 0)
        self._counts[step] = count + 1
        if count < 2 and not in_finalizer(frame):
            self.passed.append((step, count))
            if self._at == self.passed[-1]:
                self.struck = True
                self._steps.stop()
                self._strike()


def by_signal() -> None:
    """Ctrl-C, as the kernel sends it."""
    signal.raise_signal(signal.SIGINT)


def by_exception() -> None:
    """What another thread may raise, which nothing can hold back."""
    raise KeyboardInterrupt


def may_raise(step: Step) -> bool:
    """Whether an exception that no signal raised is withstood at a step.

    What puts the signals' handlers back is not made for these.
    """
    return step.file != "_sys/signals.py" and step.callee_file != signals.__file__


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
def test_ctrl_c_at_each_step_leaves_nothing_half_done(
    function: Function,
    strike: Callable[[], None],
    action: Callable[[Function], None],
    record_property: Callable[[str, object], None],
) -> None:
    def prepare() -> None:
        if is_bound(function):
            assert unbind(ADDRESS) is True
        if action is give_back:
            assert bind(ADDRESS) is True

    prepare()
    action(function)  # imports what it needs
    prepare()
    whole = Interruption(None, strike)
    whole.run(lambda: action(function))
    points = whole.distinct
    if strike is by_exception:
        points = [(step, count) for step, count in points if not count and may_raise(step)]
    if points[-1][0].what == "return":
        points.pop()  # to bind() itself: nobody is left to give the function back, as after it
    assert len(points) > 100
    record_property("points", {"steps of binding": len(points)})
    missed = 0
    for point in points:
        prepare()
        interruption = Interruption(point, strike)
        caught = None
        try:
            interruption.run(lambda: action(function))
        except KeyboardInterrupt as error:
            caught = error
        assert (caught is not None) is interruption.struck, point
        if caught is None:  # what other processes do has led it another way
            missed += 1
            continue
        # The traceback is kept here, as by an interactive Python: the lock must be free all the
        # same, and what bound() has taken must be given back.
        left = is_bound(function)
        if action is not give_back:
            assert not left, point
        assert unbind(ADDRESS, timeout=0) is left, point
        assert not is_bound(function)
        del caught
    assert missed < len(points) / 10
