"""An eventfd: the counter through which VFIO and KVM hand over interrupts."""

from __future__ import annotations

import functools
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

from pyvfio._sys import calls
from pyvfio._sys.file import File, refused

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Generator

    from pyvfio._sys.hub import Entry, Hub
    from pyvfio._sys.watch import Watch

    _Wait = Callable[["EventFd"], Generator[Any, None, int]]
    _Watch = Callable[["EventFd", Callable[[], object]], Watch]

_LONGEST_POLL = (1 << 31) - 1  # milliseconds, a C int

# Held while descriptors are closed, or given to somebody who must not find their number reused, and
# while who leaves a closed one wakes the next.
# Reentrant: a signal handler may close what the main thread is about to wait for.
lock = threading.RLock()


class EventFd(File):
    """A non-blocking eventfd that starts at zero.

    Any number of threads and tasks may wait; each event is taken by one of them. Closing wakes them
    all, and they raise :class:`~pyvfio.errors.Closed`.

    Attributes:
        hubs: of the event loops that have to do with it.
        entry: where the loop that had to do with it last keeps what that is.
    """

    __slots__ = ("_closing", "_polls", "_waiting", "entry", "hubs")

    hubs: tuple[weakref.ref[Hub], ...]
    entry: Entry | None

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
        self.entry = None
        # One for each thread that uses the descriptor; poll objects that none of them uses; the
        # descriptor, for the last one to close. Lists, whose append and pop are atomic: a lock is
        # dearer.
        self._waiting: list[None] = []
        self._polls: list[select.poll] = []
        self._closing: list[int] = []

    def take(self) -> int:
        """The events since the last call, without waiting; 0 when there were none.

        Raises:
            Closed: it was closed, before or meanwhile.
        """
        self._waiting.append(None)
        try:
            return self._read(self.fileno())
        finally:
            self._waiting.pop()
            if self._fd < 0:
                self._leave()

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
        # In this order: who closes it looks at who is waiting after the number has gone. So the
        # descriptor stays open until we leave.
        self._waiting.append(None)
        try:
            fd = self._fd
            if fd < 0:
                raise self._closed()
            try:
                poll = self._polls.pop()
            except IndexError:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
            try:
                if timeout is not None or spin > 0:
                    return self._wait_for(fd, poll, timeout, spin)
                while True:
                    # Before reading: that there is nothing to read is an exception, which is dear.
                    poll.poll()
                    try:
                        count = calls.eventfd_read(fd)
                    except BlockingIOError:  # another was quicker
                        continue
                    if self._fd < 0:  # after reading: it may have been what closing wakes with
                        raise self._closed()
                    return count
            finally:
                self._polls.append(poll)
        finally:
            self._waiting.pop()
            if self._fd < 0:
                self._leave()

    def _wait_for(self, fd: int, poll: select.poll, timeout: float | None, spin: float) -> int:
        now = time.monotonic()
        awake_until = now + spin
        deadline = None if timeout is None else now + timeout
        while True:
            milliseconds: int | None = None
            if now < awake_until:
                milliseconds = 0
            elif deadline is not None:
                left = (deadline - now) * 1000
                if left < _LONGEST_POLL:
                    # Rounded up, so that a short wait is never a busy one.
                    milliseconds = int(left) + 1 if left > 0 else 0
            if poll.poll(milliseconds) and (count := self._read(fd)):
                return count
            if deadline is not None and deadline <= now:
                return 0
            now = time.monotonic()

    def _read(self, fd: int) -> int:
        try:
            count = calls.eventfd_read(fd)
        except BlockingIOError:
            count = 0
        if self._fd < 0:  # what was read may have been what closing wakes with
            raise self._closed()
        return count

    def __await__(self) -> Generator[Any, None, int]:
        """Wait in asyncio until there are events, and take them.

        Returns:
            How many events there were, at least 1.

        Raises:
            Closed: it was closed, before or while waiting.
        """
        return _in_asyncio()[0](self)

    def watch(self, callback: Callable[[], object]) -> Watch:
        """Call a function in the running event loop whenever there are events.

        Args:
            callback: takes no arguments. It is called once in each turn of the loop until somebody
                takes the events: it calls :meth:`take`, which finds none where another was quicker.
                What it raises goes to the loop's exception handler.

        Returns:
            What ends it.

        Raises:
            Closed: it was closed.
            RuntimeError: no event loop is running.
        """
        return _in_asyncio()[1](self, callback)

    def signal(self, count: int = 1) -> None:
        """Add `count` events, as a device would.

        Raises:
            Closed: it was closed.
        """
        self._waiting.append(None)
        try:
            calls.eventfd_write(self.fileno(), count)
        finally:
            self._waiting.pop()
            if self._fd < 0:
                self._leave()

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
            self._closing.append(fd)
            self._leave()

    def _leave(self) -> None:
        """Nothing more is done with it here since it is closed: wake the next, or close it.

        Whoever reads takes the wake-up from those who have yet to see it, so each wakes the next.
        The last closes the descriptor: if another file had its number before, the others would go
        on with that.
        """
        with lock:
            try:
                fd = self._closing.pop()  # ours alone: a signal handler may come here too
            except IndexError:  # another was the last
                return
            if not self._waiting:
                self._end(fd)
                return
            try:
                calls.eventfd_write(fd, 1)
            except BlockingIOError:  # it has all the events that it can hold, which wake them too
                pass
            finally:
                self._closing.append(fd)


@functools.cache
def _in_asyncio() -> tuple[_Wait, _Watch]:
    # When it is needed: asyncio is most of what opening a device would import.
    from pyvfio._sys import hub

    return hub.wait, hub.watch


def _renew_lock() -> None:
    global lock
    lock = threading.RLock()


# Another thread of the parent may have held it.
os.register_at_fork(after_in_child=_renew_lock)
