"""Sections that signals do not cut in two: each signal is handled, once, and after the section."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyvfio._sys import signals
from pyvfio._sys.signals import deferred_signals

NUMBERS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)


class Came(Exception):
    """Raised by a signal's handler."""


def raise_came(number: int, frame: object) -> None:
    raise Came(signal.Signals(number).name)


@contextmanager
def handled(*numbers: int, by: Any = raise_came) -> Iterator[None]:
    before = {number: signal.signal(number, by) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _handlers_are_as_before() -> Iterator[None]:
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert not signals._deferral.active
    assert not signals._deferral.came


def in_section(work: Callable[[deferred_signals], object]) -> None:
    with deferred_signals() as section:
        work(section)


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_is_handled_after_the_section(number: int) -> None:
    done: list[bool] = []

    def work(section: deferred_signals) -> None:
        signal.raise_signal(number)
        done.append(True)

    with handled(number), pytest.raises(Came):
        in_section(work)
    assert done == [True]


def test_every_signal_of_a_section_is_handled() -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        came.append(number)
        raise_came(number, frame)

    def work(section: deferred_signals) -> None:
        for number in numbers:
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)  # pending already: one, as the kernel has it

    with handled(*numbers, by=handle), pytest.raises(Came):
        in_section(work)
    assert came == numbers


def test_what_the_section_made_is_undone_in_reverse() -> None:
    undone: list[str] = []

    def refuse() -> None:
        undone.append("refused")
        raise OSError

    def work(section: deferred_signals) -> None:
        section.undo(undone.append, "first")
        section.undo(refuse)
        section.undo(undone.append, "last")
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(OSError) as caught:
        in_section(work)
    assert isinstance(caught.value.__context__, KeyboardInterrupt)
    assert undone == ["last", "refused", "first"]


def test_nothing_is_undone_without_an_exception() -> None:
    done: list[str] = []

    def work(section: deferred_signals) -> None:
        section.undo(done.append, "undone")
        signal.raise_signal(signal.SIGUSR1)

    with handled(signal.SIGUSR1, by=lambda *_: done.append("handled")):
        in_section(work)
    assert done == ["handled"]


def test_undoing_is_not_interrupted_either() -> None:
    undone: list[str] = []

    def undo() -> None:
        signal.raise_signal(signal.SIGTERM)
        undone.append("whole")

    def work(section: deferred_signals) -> None:
        section.undo(undo)
        signal.raise_signal(signal.SIGINT)

    with handled(signal.SIGTERM), pytest.raises(Came):
        in_section(work)
    assert undone == ["whole"]


def test_exception_and_signal_both_undo_once() -> None:
    undone: list[str] = []

    def work(section: deferred_signals) -> None:
        section.undo(undone.append, "undone")
        signal.raise_signal(signal.SIGINT)
        raise Came

    with pytest.raises(KeyboardInterrupt) as caught:
        in_section(work)
    assert isinstance(caught.value.__context__, Came)
    assert undone == ["undone"]


def test_inner_section_is_part_of_the_outer() -> None:
    done: list[str] = []

    def inner(section: deferred_signals) -> None:
        section.undo(done.append, "undone")
        signal.raise_signal(signal.SIGINT)

    def outer(section: deferred_signals) -> None:
        in_section(inner)
        done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        in_section(outer)
    assert done == ["went on"]


def test_inner_section_undoes_its_own_failure() -> None:
    done: list[str] = []

    def inner(section: deferred_signals) -> None:
        section.undo(done.append, "inner")
        raise Came

    with deferred_signals() as outer:
        outer.undo(done.append, "outer")
        with pytest.raises(Came):
            in_section(inner)
    assert done == ["inner"]


def test_deliver_raises_within_the_section() -> None:
    done: list[str] = []

    def work(section: deferred_signals) -> None:
        section.undo(done.append, "undone")
        signals.deliver()
        signal.raise_signal(signal.SIGINT)
        done.append("pending")
        signals.deliver()
        done.append("not reached")

    signals.deliver()  # outside of a section there is nothing to do
    with pytest.raises(KeyboardInterrupt):
        in_section(work)
    assert done == ["pending", "undone"]


def test_signal_during_the_restoring_leaves_none_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restore = signals._set_handler
    undone: list[str] = []

    def restore_and_press(number: int, handler: Any) -> None:
        restore(number, handler)
        signal.raise_signal(signal.SIGINT)

    def work(section: deferred_signals) -> None:
        section.undo(undone.append, "undone")
        monkeypatch.setattr(signals, "_set_handler", restore_and_press)

    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    with handled(*numbers, by=signal.default_int_handler):
        with pytest.raises(KeyboardInterrupt):
            in_section(work)
        assert undone == ["undone"]
        assert {signal.getsignal(number) for number in numbers} == {signal.default_int_handler}


def test_signal_during_the_beginning_leaves_none_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace = signals._set_handler
    entered: list[object] = []

    def press_and_replace(number: int, handler: Any) -> None:
        if number == signal.SIGTERM:
            monkeypatch.setattr(signals, "_set_handler", replace)
            signal.raise_signal(signal.SIGTERM)
        replace(number, handler)

    with handled(signal.SIGTERM):
        monkeypatch.setattr(signals, "_set_handler", press_and_replace)
        with pytest.raises(Came):
            in_section(entered.append)
        assert entered == []
        assert signal.getsignal(signal.SIGTERM) is raise_came


def test_section_in_a_handler_during_the_beginning_leaves_all_deferred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace = signals._set_handler

    def replace_and_send(number: int, handler: Any) -> None:
        replace(number, handler)
        if number == signal.SIGTERM:
            monkeypatch.setattr(signals, "_set_handler", replace)
            signal.raise_signal(signal.SIGTERM)

    def work(section: deferred_signals) -> None:
        deferred.extend(signal.getsignal(number) is signals._deferral for number in numbers)

    numbers = (signal.SIGINT, signal.SIGTERM)
    deferred: list[bool] = []
    with handled(signal.SIGTERM, by=lambda *_: in_section(lambda section: None)):
        monkeypatch.setattr(signals, "_set_handler", replace_and_send)
        in_section(work)
    assert deferred == [True, True]


def test_handler_set_within_the_section_stays() -> None:
    with handled(signal.SIGUSR1):
        in_section(lambda section: signal.signal(signal.SIGUSR1, signal.SIG_IGN))
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_handlers_run_with_no_signal_blocked() -> None:
    blocked: list[set[Any]] = []
    with handled(
        signal.SIGTERM, by=lambda *_: blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    ):
        in_section(lambda section: signal.raise_signal(signal.SIGTERM))
    assert blocked == [set()]


def test_other_threads_defer_nothing() -> None:
    undone: list[str] = []

    def work(section: deferred_signals) -> None:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        section.undo(undone.append, "undone")
        raise Came

    def thread() -> None:
        with pytest.raises(Came):
            in_section(work)

    other = threading.Thread(target=thread)
    other.start()
    other.join()
    assert undone == ["undone"]


def test_child_of_a_fork_defers_nothing() -> None:
    statuses: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
        statuses.append(os.waitpid(child, 0)[1])

    with deferred_signals():  # in this thread; another one forks
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        fork()
    assert statuses == [0, 0]


@pytest.mark.parametrize("forks", ["main thread", "another thread"])
def test_child_of_a_fork_handles_no_signal_of_its_parent(forks: str) -> None:
    came: list[int] = []
    statuses: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(len(came))
        statuses.append(os.waitpid(child, 0)[1])

    def work(section: deferred_signals) -> None:
        signal.raise_signal(signal.SIGUSR1)
        if forks == "main thread":
            fork()
        else:
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()

    with handled(signal.SIGUSR1, by=lambda number, _: came.append(number)):
        in_section(work)
    assert statuses == [0]
    assert came == [signal.SIGUSR1]
