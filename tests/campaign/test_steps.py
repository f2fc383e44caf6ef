"""The steps at which the campaigns strike are those at which Python looks for signals."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

import pytest

from . import steps
from .steps import Step, Steps

SOURCE = """
def called(number):
    return number

class Block:
    closed = False
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.closed = True

def locked(lock):
    with lock:
        found = sorted([2, 1])
        return called(len(found))

def in_block(block):
    with block:
        value = 1

def loop(count):
    while count:
        count -= 1
"""


@pytest.fixture
def code() -> Any:
    """Functions whose steps are told, as if they were of pyvfio."""
    module = ModuleType("code")
    exec(compile(SOURCE, f"{steps._PACKAGE}code.py", "exec"), vars(module))
    return module


def told(action: Callable[[], object]) -> list[Step]:
    found: list[Step] = []
    with Steps(lambda step, frame: found.append(step)):
        action()
    return found


def struck(at: int, action: Callable[[], object]) -> None:
    """Raise at one of the steps of an action."""
    left = [at]

    def reach(step: Step, frame: FrameType) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Steps(reach):
        action()


def test_calls_and_returns_are_steps(code: Any) -> None:
    found = [(step.what, step.callee) for step in told(lambda: code.locked(threading.RLock()))]
    for step in (
        ("begin", "locked"),
        ("return in C", "sorted"),
        ("begin", "called"),
        ("return", "called"),
    ):
        assert step in found


def test_each_turn_of_a_loop_is_a_step(code: Any) -> None:
    assert [step.what for step in told(lambda: code.loop(3))].count("loop") in (2, 3)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="a signal may come as the lock is taken")
def test_no_step_keeps_a_lock_from_being_released(code: Any) -> None:
    lock = threading.RLock()
    steps = told(lambda: code.locked(lock))
    for at in range(len(steps)):
        struck(at, lambda: code.locked(lock))
        assert not lock._is_owned(), steps[at]  # type: ignore[attr-defined]


def test_end_of_a_block_in_python_may_be_skipped(code: Any) -> None:
    found = told(lambda: code.in_block(code.Block()))
    (at,) = [
        at for at, step in enumerate(found) if (step.what, step.callee) == ("begin", "__exit__")
    ]
    block = code.Block()
    struck(at, lambda: code.in_block(block))
    assert not block.closed


def test_only_the_files_that_are_asked_for_are_told(code: Any) -> None:
    found: list[Step] = []
    with Steps(lambda step, frame: found.append(step), ("other.py",)):
        code.loop(2)
    assert found == []
