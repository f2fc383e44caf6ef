"""Sections of work that a signal must not cut in two.

Python calls a signal's handler between two steps of its main thread, and Ctrl-C's raises there. A
system call whose result is not recorded yet would then be lost: a descriptor that nobody closes, a
mapping that nobody knows of. So the call and its record are one section::

    with deferred_signals() as section:
        fd = open(...)
        file = File(fd)
        section.undo(file.close)
        return file

A signal that comes meanwhile is handled at the end of the section. If its handler raises, what the
section has made is undone before, so that it is either made and returned, or not made.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from threading import get_ident
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

# Those of the module `signal` make an enum of each answer, which takes ten times as long.
_get_handler = _signal.getsignal
_set_handler = _signal.signal

_Handler = Callable[[int, "FrameType | None"], Any]

# A process cannot handle the first two; the others are about what it was just doing, and cannot
# wait.
_NOT_DEFERRED = {"KILL", "STOP", "SEGV", "BUS", "FPE", "ILL", "TRAP", "ABRT"}
_NUMBERS = tuple(
    each.value
    for each in signal.Signals
    if each < signal.SIGRTMIN and each.name.removeprefix("SIG") not in _NOT_DEFERRED
)


class deferred_signals:
    """Keep back, until the block is done, the signals that Python code of this process handles.

    What a handler raises then is raised at the end of the block. In other threads than the main one
    nothing can come between, and nothing is kept back. A signal whose handling is the kernel's own
    (it ends the process) keeps it, and so do real-time signals. A section inside another one is
    part of that.
    """

    __slots__ = ("_outermost", "_steps")

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._outermost = False

    def undo(self, step: Callable[..., object], *arguments: object) -> None:
        """Do something if the block ends with an exception, one of a signal's handler included.

        The step that was added last is done first, and each whatever the others raise.
        """
        self._steps.append(partial(step, *arguments))

    def __enter__(self) -> Self:
        deferral = _deferral
        if not deferral.active and get_ident() == _main_thread:
            try:
                ended = -1
                while ended != deferral.ended:  # by a section in a handler that was called here
                    ended = deferral.ended
                    deferral.handlers = _python_handlers()
                    for number in deferral.handlers:
                        _set_handler(number, deferral)
                deferral.active = self._outermost = True
            except BaseException:  # of a handler that was not replaced yet
                deferral.end()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._outermost:
            if value is not None:
                self._undo_all()
            return
        try:
            try:
                if value is not None:
                    self._undo_all()
                elif _deferral.came:
                    _deferral.deliver()
            except BaseException:
                self._undo_all()  # with signals still deferred
                raise
            finally:
                _deferral.end()
        except BaseException:
            self._undo_all()  # of a signal that came at the very last moment
            raise

    def _undo_all(self) -> None:
        if self._steps:
            try:
                self._steps.pop()()
            finally:
                self._undo_all()


def deliver() -> None:
    """Handle now what was deferred so far, where a section can be given up; else do nothing.

    For loops that wait inside a section.
    """
    if _deferral.active and get_ident() == _main_thread:
        _deferral.deliver()


class _Deferral:
    """The handler of all signals that are deferred, while they are.

    Attributes:
        active: whether they are.
        handlers: those it stands in for, by number.
        came: what came meanwhile, in order; each number once, as the kernel has it.
        ended: how many times the handlers were put back.
    """

    __slots__ = ("active", "came", "ended", "handlers")

    def __init__(self) -> None:
        self.active = False
        self.ended = 0
        self.handlers: dict[int, _Handler] = {}
        self.came: dict[int, FrameType | None] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.active:
            self.came.setdefault(number, frame)
        else:
            # It came while handlers are being replaced or put back.
            self.handlers[number](number, frame)

    def deliver(self) -> None:
        """Call the handlers of what has come: each of them, whatever those before it raise."""
        came, self.came = self.came, {}
        self._call(list(came.items()))

    def _call(self, came: list[tuple[int, FrameType | None]]) -> None:
        if came:
            number, frame = came.pop(0)
            try:
                self.handlers[number](number, frame)
            finally:
                self._call(came)

    def end(self) -> None:
        """Put the handlers back, and call those of what came meanwhile."""
        try:
            self.active = False
            self.ended += 1
            self._put_back()
        except BaseException:
            self._put_back()
            raise
        finally:
            if self.came:
                self.deliver()

    def _put_back(self) -> None:
        try:
            for number, handler in self.handlers.items():
                if _get_handler(number) is self:  # not where the block has installed another one
                    _set_handler(number, handler)
        except BaseException:
            # One that is back has raised at once, which must not leave the others replaced.
            self._put_back()
            raise


_deferral = _Deferral()
_main_thread = threading.main_thread().ident

_seen: list[object] = []
_seen_handlers: dict[int, _Handler] = {}


def _python_handlers() -> dict[int, _Handler]:
    """The signals that Python code handles, each with its handler."""
    global _seen, _seen_handlers
    found = list(map(_get_handler, _NUMBERS))
    if found != _seen:  # as a rule they are the same as the last time
        # One that could not be put back is put back at the end of the next section.
        before = _deferral.handlers
        _seen_handlers = {
            number: before[number] if handler is _deferral else handler
            for number, handler in zip(_NUMBERS, found, strict=True)
            if callable(handler)
        }
        _seen = found
    return _seen_handlers


def _begin_anew() -> None:
    # The thread that forked is the main one of the child. Another one may have forked while the
    # main thread, which is not here, deferred signals.
    global _main_thread
    _main_thread = get_ident()
    _deferral.came.clear()  # the parent's, as signals are that the kernel has pending
    if _deferral.active:
        _deferral.end()


os.register_at_fork(after_in_child=_begin_anew)
