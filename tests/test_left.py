"""What a test leaves held is found and freed, so that later tests do not wait for it."""

from __future__ import annotations

import threading

from pyvfio._sys import file as files
from pyvfio._sys import signals
from pyvfio._sys.signals import deferred_signals
from tests.left import set_right


def test_nothing_is_held_as_a_rule() -> None:
    assert set_right() == []


def test_lock_that_was_left_held_is_found_and_free() -> None:
    files.lock.acquire()
    files.lock.acquire()
    assert set_right() == ["the lock of pyvfio._sys.file is held by the thread of the tests"]
    taken: list[bool] = []
    other = threading.Thread(target=lambda: taken.append(files.lock.acquire(blocking=False)))
    other.start()
    other.join()
    assert taken == [True]
    files.lock = threading.RLock()


def test_signals_that_stay_deferred_are_found_and_come_again() -> None:
    deferred_signals().__enter__()
    assert set_right() == ["signals stay deferred"]
    assert not signals._deferral.active
