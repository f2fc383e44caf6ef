"""An eventfd: the counter through which VFIO and KVM hand over interrupts."""

from __future__ import annotations

import errno
import functools
import os
import select
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys import file as files
from pyvfio._sys.file import File, refused
from pyvfio._sys.signals import deferred_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

    from pyvfio._sys.hub import Entry
    from pyvfio._sys.watch import Watch

    _Wait = Callable[["EventFd"], Generator[Any, None, int]]
    _Watch = Callable[["EventFd", Callable[[], object]], Watch]

_LONGEST_POLL = (1 << 31) - 1  # milliseconds, a C int
_LARGEST = (1 << 64) - 2  # what the counter can hold


class EventFd(File):
    """A non-blocking eventfd that starts at zero.

    Any number of threads and tasks may wait; each event is taken by one of them. Closing wakes them
    all, and they raise :class:`~pyvfio.errors.Closed`.

    Attributes:
        entry: where the loop that had to do with it last keeps what that is.
    """

    __slots__ = ("_polls", "_waiting", "entry")

    entry: Entry | None

    def __init__(self, name: str = "eventfd") -> None:
        """
        Args:
            name: for messages and traces.
        """
        self.entry = None
        # One for each thread within a call on it; poll objects that none of them uses. Lists, whose
        # append and pop are atomic: a lock is dearer.
        self._waiting: list[None] = []
        self._polls: list[select.poll] = []
        with deferred_signals() as section:
            try:
                fd = calls.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            except OSError as error:
                raise refused(error, "eventfd", name) from None
            super().__init__(fd, name)
            section.undo(self.close)

    def take(self) -> int:
        """The events since the last call, without waiting; 0 when there were none.

        Raises:
            Closed: it was closed, before or meanwhile.
        """
        waiting = self._waiting
        try:
            waiting.append(None)
            return self._read(self.fileno())
        finally:
            if waiting:
                del waiting[-1]
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
        waiting = self._waiting
        try:
            # In this order: close() looks at who is waiting after the number has gone. So the
            # descriptor stays open until this thread leaves.
            waiting.append(None)
            fd = self._fd
            if fd < 0:
                raise self.closed_error()
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
                    except OSError as error:
                        raise self.refused(error, "eventfd_read") from None
                    if self._fd < 0:  # after reading: it may have been what closing wakes with
                        raise self.closed_error()
                    return count
            finally:
                self._polls.append(poll)
        finally:
            if waiting:
                del waiting[-1]
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
        except OSError as error:
            raise self.refused(error, "eventfd_read") from None
        if self._fd < 0:  # what was read may have been what closing wakes with
            raise self.closed_error()
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
            RangeError: the counter cannot hold that number.
            KernelError: it cannot hold it together with the events that are there (EAGAIN).
            Closed: it was closed.
        """
        waiting = self._waiting
        try:
            waiting.append(None)
            calls.eventfd_write(self.fileno(), count)
        except (OverflowError, ValueError):
            if self._fd < 0:
                raise self.closed_error() from None
            raise self._too_many(count) from None
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise self._too_many(count) from None
            failure = self.refused(error, "eventfd_write")
            if error.errno == errno.EAGAIN:
                failure = failure.from_call(
                    failure, f"{count} more events do not fit in its counter: take() some first"
                )
            raise failure from None
        finally:
            if waiting:
                del waiting[-1]
            if self._fd < 0:
                self._leave()

    def close(self) -> None:
        """Close it, and wake whoever waits; closing again does nothing."""
        super().close()

    def _release(self, fd: int) -> None:
        with files.lock:
            files.release(fd, self._descriptor.hubs)
            super()._release(fd)

    def _in_use(self, leaving: FrameType) -> bool:
        # Thousands may be closed at a time, and nearly none is in use. One that is marked need not
        # be either: Ctrl-C may have kept a call from taking its mark back.
        return bool(self._waiting) and super()._in_use(leaving)

    def _abandon(self) -> None:
        self._waiting.clear()  # of threads that are not in the child
        super()._abandon()

    def _wake(self, fd: int) -> None:
        # Whoever reads takes the wake-up from those who have yet to see it, so each wakes the next.
        # One that has all the events that it can hold wakes them by these.
        with suppress(BlockingIOError):
            calls.eventfd_write(fd, 1)

    def _too_many(self, count: int) -> errors.RangeError:
        return errors.RangeError(f"an eventfd counts 0 to {_LARGEST:#x} events, not {count}")


files.calls_on_files |= {each.__code__ for each in (EventFd.take, EventFd.wait, EventFd.signal)}


@functools.cache
def _in_asyncio() -> tuple[_Wait, _Watch]:
    # When it is needed: asyncio is most of what opening a device would import.
    from pyvfio._sys import hub

    return hub.wait, hub.watch
