"""Work that Ctrl-C must not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """Keep back, until the block is done, the signals that Python code of this process handles.

    Python handles signals between two steps of its main thread; elsewhere nothing can come between,
    and nothing is done. A signal whose handling is the kernel's own (it ends the process) keeps it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers = {}
    for number in _NUMBERS:
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: came.append((number, frame)))
        yield
    finally:
        # A handler that raises (Ctrl-C's) must not come between and leave the others replaced. One
        # that another thread of the process takes is not blocked here: so SIGINT is put back last.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
        try:
            for number, handler in reversed(handlers.items()):
                signal.signal(number, handler)
        finally:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            finally:
                for caught, frame in came:
                    handlers[signal.Signals(caught)](caught, frame)
