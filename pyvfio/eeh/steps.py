"""What was done, step by step, each with its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Step(NamedTuple):
    """One step of a drill or a recovery.

    Attributes:
        name: what was done, in a word or two.
        said: what came of it.
        seconds: how long it took.
        failed: whether it raised an error, which `said` then tells.
    """

    name: str
    said: str
    seconds: float
    failed: bool = False


class Steps:
    """Does one step after the other.

    Attributes:
        done: the steps so far.
    """

    def __init__(self, report: Callable[[Step], object] | None = None) -> None:
        """
        Args:
            report: is told of each step as it ends.
        """
        self.done: list[Step] = []
        self._report = report

    def do(self, name: str, work: Callable[[], str]) -> str:
        """Do a step.

        Args:
            name: what it is called.
            work: does it, and returns what came of it. What it raises is raised.
        """
        began = time.monotonic()
        try:
            said = work()
        except BaseException as error:
            self._end(name, str(error) or type(error).__name__, began, failed=True)
            raise
        self._end(name, said, began)
        return said

    def _end(self, name: str, said: str, began: float, *, failed: bool = False) -> None:
        self.add(Step(name, said, time.monotonic() - began, failed))

    def add(self, step: Step) -> None:
        """Take over a step that was done elsewhere."""
        self.done.append(step)
        if self._report is not None:
            self._report(step)
