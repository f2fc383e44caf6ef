"""eventfds in asyncio: one epoll descriptor for each event loop, and one reader for that.

An eventfd that somebody waited for stays in the epoll instance until it is closed, so that the next
wait is no system call. Level-triggered: one that is still ready in the loop's next turn is seen
again, and nothing is lost whoever takes what and when. What is ready while nobody wants it is put
out until somebody does.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import select
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys import eventfd as eventfds
from pyvfio._sys.file import refused
from pyvfio._sys.watch import Watch


class _Entry:
    """What one event loop has to do with one eventfd.

    Attributes:
        eventfd: weakly, so that a loop keeps none alive.
        waiters: who waits, first come first; a dict, since those who give up leave from the middle.
        watches: in the order in which they were made.
        polled: whether it is in the epoll instance.
    """

    __slots__ = ("eventfd", "polled", "waiters", "watches")

    def __init__(self, eventfd: eventfds.EventFd) -> None:
        self.eventfd = weakref.ref(eventfd)
        self.waiters: dict[asyncio.Future[int], None] = {}
        self.watches: dict[Watch, None] = {}
        self.polled = False


class Hub:
    """All eventfds that one event loop has to do with.

    The loop's reader alone keeps it, so a loop that is closed takes it along; and it goes when the
    last of its eventfds is closed. Only :meth:`forget` may be called in other threads.
    """

    __slots__ = ("__weakref__", "_entries", "_epoll", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._epoll = calls.epoll()
        except OSError as error:
            raise refused(error, "epoll_create1", "asyncio") from None
        self.loop = loop
        self._entries: dict[int, _Entry] = {}
        # Not in the context of the task that happens to be the first, which would be kept with it.
        contextvars.Context().run(loop.add_reader, self._epoll.fileno(), self._serve)

    def entry(self, eventfd: eventfds.EventFd) -> _Entry:
        """The entry of an eventfd, which is polled from now on."""
        try:
            entry = self._entries.get(eventfd.fileno())
            if entry is not None and entry.polled:
                return entry
            with eventfds.lock:  # nobody closes it meanwhile
                fd = eventfd.fileno()
                self._epoll.register(fd, select.EPOLLIN)
                if entry is None:
                    entry = self._entries[fd] = _Entry(eventfd)
                    others = [hub for hub in eventfd.hubs if hub() is not None]
                    eventfd.hubs = (*others, weakref.ref(self))
                entry.polled = True
                return entry
        except OSError as error:
            self._close_if_empty()
            raise refused(error, "epoll_ctl", eventfd.path) from None
        except errors.Closed:
            self._close_if_empty()
            raise

    def forget(self, fd: int) -> None:
        """An eventfd is about to be closed, with the lock held, in whatever thread."""
        entry = self._entries.get(fd)
        if entry is None:
            return
        if entry.polled:
            self._epoll.unregister(fd)
        del self._entries[fd]  # last: with none left the loop's thread closes the epoll instance
        with suppress(RuntimeError):  # the loop is closed, nobody waits there
            self.loop.call_soon_threadsafe(self._end, entry)

    def _end(self, entry: _Entry) -> None:
        eventfd = entry.eventfd()
        path = "an eventfd" if eventfd is None else eventfd.path
        for ready in entry.waiters:
            if not ready.done():
                ready.set_exception(errors.Closed(f"{path} was closed while waited for"))
        entry.waiters.clear()
        for watch in list(entry.watches):
            watch.close()
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if not self._entries and not self._epoll.closed:
            self.loop.remove_reader(self._epoll.fileno())
            self.close()
            _of_loop.pop(self.loop, None)

    def close(self) -> None:
        """Close the epoll descriptor alone."""
        self._epoll.close()

    def _serve(self) -> None:
        # Each that is ready is served once, then the loop has its turn.
        for fd, _ in self._epoll.poll(0, max(1, len(self._entries))):
            entry = self._entries.get(fd)
            if entry is not None:  # the one before may have closed it
                self._serve_one(fd, entry)

    def _serve_one(self, fd: int, entry: _Entry) -> None:
        if entry.watches:
            for watch in tuple(entry.watches):
                if self._entries.get(fd) is not entry:  # the one before closed the eventfd
                    return
                watch.run(self.loop)
        # Whose task was cancelled is done, and leaves when the task has its turn.
        ready = next((ready for ready in entry.waiters if not ready.done()), None)
        if ready is None:
            if not entry.watches:
                self._put_out(fd, entry)
            return
        eventfd = entry.eventfd()
        try:
            count = 0 if eventfd is None else eventfd.take()
        except errors.Closed:  # by another thread, just now: _end tells the waiters
            return
        if count:
            del entry.waiters[ready]
            ready.set_result(count)

    def _put_out(self, fd: int, entry: _Entry) -> None:
        with eventfds.lock:
            if self._entries.get(fd) is entry:
                self._epoll.unregister(fd)
                entry.polled = False


def wait(eventfd: eventfds.EventFd) -> Generator[Any, None, int]:
    """What ``await eventfd`` runs: wait in the running loop until there are events, take them.

    It gives the loop a turn also where there are events already, so that a task that awaits again
    and again leaves the others theirs.
    """
    hub = _running()
    waiters = hub.entry(eventfd).waiters
    ready = hub.loop.create_future()
    waiters[ready] = None
    del hub  # which the loop keeps, and nobody else
    try:
        count: int = yield from ready.__await__()
        return count
    except BaseException:
        waiters.pop(ready, None)
        # Cancelled after it was given events, before it could say so: they are for who waits next.
        if ready.done() and not ready.cancelled() and ready.exception() is None:
            with suppress(errors.Closed):
                eventfd.signal(ready.result())
        raise


def watch(eventfd: eventfds.EventFd, callback: Callable[[], object]) -> Watch:
    """Call a function in the running loop while an eventfd has events."""
    return Watch(eventfd.path, callback, _running().entry(eventfd).watches)


def _running() -> Hub:
    loop = asyncio.get_running_loop()
    reference = _of_loop.get(loop)
    hub = None if reference is None else reference()
    if hub is None:
        hub = Hub(loop)
        _of_loop[loop] = weakref.ref(hub)
    return hub


_of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Hub]] = (
    weakref.WeakKeyDictionary()
)


def _close_in_child() -> None:
    # The descriptors alone: what is in the epoll instances is the parent's as well.
    for reference in list(_of_loop.values()):
        hub = reference()
        if hub is not None:
            hub.close()
    _of_loop.clear()


os.register_at_fork(after_in_child=_close_in_child)
