"""An eventfd: the counter through which VFIO and KVM hand over interrupts."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from pyvfio._sys import calls
from pyvfio._sys.file import File, refused

if TYPE_CHECKING:
    import asyncio

_LONGEST_POLL = (1 << 31) - 1  # milliseconds, a C int


class EventFd(File):
    """A non-blocking eventfd that starts at zero.

    Any number of threads and tasks may wait; each event is taken by one of them. Closing wakes them
    all, and they raise :class:`~pyvfio.errors.Closed`.
    """

    __slots__ = ("_waiting",)

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
        self._waiting = 0

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

    def wait(self, timeout: float | None = None) -> int:
        """Wait until there are events, and take them.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            How many events there were; 0 if the time ran out.

        Raises:
            Closed: it was closed, before or while waiting.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (count := self.take()):
            left = None if deadline is None else (deadline - time.monotonic()) * 1000
            if left is not None and left <= 0:
                return 0
            # Rounded up, so that a short wait is never a busy one.
            milliseconds = None if left is None or left >= _LONGEST_POLL else int(left) + 1
            poll = select.poll()
            poll.register(self.fileno(), select.POLLIN)
            self._waiting += 1
            try:
                poll.poll(milliseconds)
            finally:
                self._waiting -= 1
        return count

    async def wait_async(self) -> int:
        """Wait in asyncio until there are events, and take them.

        Returns:
            How many events there were, at least 1.

        Raises:
            Closed: it was closed, before or while waiting.
        """
        # Here, since it is most of what opening a device would import.
        import asyncio

        loop = asyncio.get_running_loop()
        while not (count := self.take()):
            ready: asyncio.Future[None] = loop.create_future()
            # A descriptor of its own, for the loop to watch even while ours is closed.
            fd = os.dup(self.fileno())
            self._waiting += 1
            try:
                loop.add_reader(fd, _wake, ready)
                await ready
            finally:
                self._waiting -= 1
                loop.remove_reader(fd)
                calls.close(fd)
        return count

    def signal(self, count: int = 1) -> None:
        """Add `count` events, as a device would.

        Raises:
            Closed: it was closed.
        """
        calls.eventfd_write(self.fileno(), count)

    def close(self) -> None:
        """Close it, and wake whoever waits; closing again does nothing."""
        # Closed first: who wakes must find that, and not take the event that woke him.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                if self._waiting:
                    calls.eventfd_write(fd, 1)
            finally:
                calls.close(fd)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
