"""Ctrl-C that arrives where Python drops it."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PAUSE = 0.02  # seconds


@contextmanager
def raised_again() -> Iterator[None]:
    """While the block lasts, raise a KeyboardInterrupt again that was dropped.

    An exception that a signal's handler raises in a finalizer, or in the callback of a weak
    reference, has nowhere to go: Python prints "Exception ignored in" and goes on. The signal is
    sent again as soon as the main thread has left it.
    """
    before = sys.unraisablehook
    main = threading.main_thread().ident

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if threading.get_ident() == main and issubclass(dropped.exc_type, KeyboardInterrupt):
            # Not threading's own start(), which waits until the thread runs.
            _thread.start_new_thread(send, ())
        else:
            before(dropped)

    def send() -> None:
        # Not at once: a signal that comes just before a system call does not wake who sleeps in it.
        time.sleep(_PAUSE)
        # This thread holds the interpreter's lock from here until the signal is sent, so the main
        # thread stays where it is seen.
        while main is not None and _is_in(main):
            time.sleep(_PAUSE)
        if main is not None and sys.unraisablehook is hook:
            signal.pthread_kill(main, signal.SIGINT)

    def _is_in(thread: int) -> bool:
        frame = sys._current_frames().get(thread)
        while frame is not None:
            if frame.f_code is hook.__code__:
                return True
            frame = frame.f_back
        return False

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
