"""Ctrl-C that arrives in a finalizer ends the command all the same."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import weakref

import pytest

from pyvfio.cli import buslist, main
from pyvfio.cli.interrupts import raised_again

LONG = 10.0  # seconds after which it is lost


class Interrupted:
    """The signal arrives in its finalizer."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def in_callback(reference: weakref.ref[object]) -> None:
    signal.raise_signal(signal.SIGINT)


class Plain:
    """Something that can be referred to weakly."""


def clear_and_wait(things: list[object]) -> None:
    with raised_again():
        things.clear()
        time.sleep(LONG)


@pytest.mark.parametrize("where", ["finalizer", "callback"])
def test_interrupt_in_a_finalizer_is_raised_again(where: str) -> None:
    for _ in range(20):
        things: list[object] = [Interrupted() if where == "finalizer" else Plain()]
        reference = weakref.ref(things[0], in_callback) if where == "callback" else None
        with pytest.raises(KeyboardInterrupt):
            clear_and_wait(things)
        del reference


def test_command_interrupted_in_a_finalizer_ends_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: argparse.Namespace) -> None:
        Interrupted()
        time.sleep(LONG)

    monkeypatch.setattr(buslist, "run", run)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "pyvfio: interrupted\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_exceptions_of_finalizers_are_told_as_before() -> None:
    class Failing:
        def __del__(self) -> None:
            raise ZeroDivisionError

    told: list[object] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda dropped: told.append(dropped.exc_type)
    try:
        with raised_again():
            Failing()
        assert told == [ZeroDivisionError]
    finally:
        sys.unraisablehook = before
