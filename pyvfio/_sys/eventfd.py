"""An eventfd: the counter through which VFIO and KVM hand over interrupts."""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyvfio._sys import calls
from pyvfio._sys.file import File, refused

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Generator

    from pyvfio._sys.hub import Hub
    from pyvfio._sys.watch import Watch

_LONGEST_POLL = (1 << 31) - 1  # milliseconds, a C int

# Held while descriptors are closed, or given to somebody who must not find their number reused.
# Reentrant: a signal handler may close what the main thread is about to wait for.
lock = threading.RLock()


class EventFd(File):
    """A non-blocking eventfd that starts at zero.

    Any number of threads and tasks may wait; each event is taken by one of them. Closing wakes them
    all, and they raise :class:`~pyvfio.errors.Closed`.

    Attributes:
        hubs: of the event loops that have to do with it.
    """

    __slots__ = ("_closing", "_polls", "_waiting", "hubs")

    hubs: tuple[weakref.ref[Hub], ...]

    def __init__(self, name: str = "eventfd") -> None:
        """
        Args:
            name: for messages and traces.
        """
        try:
            fd = calls.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise refused(error, "eventfd", name) from None
        super().__init__(fd, name)
        self.hubs = ()
        # Threads in wait(); poll objects that none of them uses; and what the last one closes.
        self._waiting = 0
        self._polls: list[select.poll] = []
        self._closing = -1

    def take(self) -> int:
        """The events since the last call, without waiting; 0 when there were none.

        Raises:
            Closed: it was closed.
        """
        try:
            return calls.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0
        except OSError:
            self.fileno()  # says so if another thread has just closed it
            raise

    def wait(self, timeout: float | None = None, *, spin: float = 0.0) -> int:
        """Wait until there are events, and take them.

        Args:
            timeout: seconds to wait at most; None waits for ever.
            spin: for so many of these seconds look again and again instead of sleeping: a processor
                is busy meanwhile, and what comes is seen without it being woken first.

        Returns:
            How many events there were; 0 if the time ran out.

        Raises:
            Closed: it was closed, before or while waiting.
        """
        start = time.monotonic() if spin > 0 or timeout is not None else 0.0
        poll = self._enter()
        try:
            while True:
                milliseconds: int | None = None
                if spin > 0 and time.monotonic() - start < spin:
                    milliseconds = 0
                left = None if timeout is None else (start + timeout - time.monotonic()) * 1000
                if left is not None and milliseconds is None and left < _LONGEST_POLL:
                    # Rounded up, so that a short wait is never a busy one.
                    milliseconds = int(left) + 1 if left > 0 else 0
                # Before reading: having nothing to read is an exception, which is dear.
                if poll.poll(milliseconds) and (count := self.take()):
                    return count
                if left is not None and left <= 0:
                    return 0
        finally:
            self._leave(poll)

    def __await__(self) -> Generator[Any, None, int]:
        """Wait in asyncio until there are events, and take them.

        Returns:
            How many events there were, at least 1.

        Raises:
            Closed: it was closed, before or while waiting.
        """
        # Here, since asyncio is most of what opening a device would import.
        from pyvfio._sys import hub

        return hub.wait(self)

    def watch(self, callback: Callable[[], object]) -> Watch:
        """Call a function in the running event loop whenever there are events.

        Args:
            callback: takes no arguments. It is called once in each turn of the loop until somebody
                takes the events: it calls :meth:`take`. What it raises goes to the loop's exception
                handler.

        Returns:
            What ends it.

        Raises:
            Closed: it was closed.
            RuntimeError: no event loop is running.
        """
        from pyvfio._sys import hub

        return hub.watch(self, callback)

    def signal(self, count: int = 1) -> None:
        """Add `count` events, as a device would.

        Raises:
            Closed: it was closed.
        """
        calls.eventfd_write(self.fileno(), count)

    def close(self) -> None:
        """Close it, and wake whoever waits; closing again does nothing."""
        with lock:
            # Closed first: who wakes must find that, and not take the event that woke him.
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            for reference in self.hubs:
                hub = reference()
                if hub is not None:
                    hub.forget(fd)
            if not self._waiting:
                calls.close(fd)
                return
            # The last thread that wakes closes the descriptor: if another file had its number by
            # then, poll would go on with that.
            self._closing = fd
            with suppress(BlockingIOError):  # it has all the events that it can hold
                calls.eventfd_write(fd, 1)

    def __del__(self) -> None:
        super().__del__()
        if getattr(self, "_closing", -1) >= 0:  # Ctrl-C kept the last thread from it
            calls.close(self._closing)

    def _enter(self) -> select.poll:
        """From now on the descriptor's number stays ours until :meth:`_leave`."""
        with lock:
            fd = self.fileno()
            self._waiting += 1
        if self._polls:
            with suppress(IndexError):  # another thread was quicker
                return self._polls.pop()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return poll

    def _leave(self, poll: select.poll) -> None:
        self._polls.append(poll)
        with lock:
            self._waiting -= 1
            if self._waiting or self._closing < 0:
                return
            fd, self._closing = self._closing, -1
        calls.close(fd)


def _renew_lock() -> None:
    global lock
    lock = threading.RLock()


# Another thread of the parent may have held it.
os.register_at_fork(after_in_child=_renew_lock)
