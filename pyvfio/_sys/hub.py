"""eventfds in asyncio: one epoll descriptor for each event loop, and one reader for that.

An eventfd that somebody waited for stays in the epoll instance until it is closed, so that the next
wait is no system call. Level-triggered: one that is still ready in the loop's next turn is seen
again, and nothing is lost whoever takes what and when. What is ready while nobody wants it is put
out until somebody does.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import select
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys import file as files
from pyvfio._sys.file import refused
from pyvfio._sys.signals import deferred_signals
from pyvfio._sys.watch import Watch

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyvfio._sys.eventfd import EventFd


class _Ready(asyncio.Future[int]):
    """A future whose task goes on as soon as it is given its events, not in the loop's next turn.

    A turn is a look at all the loop's descriptors. Nobody but :func:`wait` has one, so the callback
    is its task's.
    """

    __slots__ = ("_resume",)

    _resume: Callable[[], object] | None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._resume = None

    def add_done_callback(
        self, fn: Callable[[Self], object], /, *, context: contextvars.Context | None = None
    ) -> None:
        run = (context or contextvars.copy_context()).run
        self._resume = functools.partial(run, fn, self)

    def cancel(self, msg: Any | None = None) -> bool:
        """As ever, in the loop's next turn."""
        return super().cancel(msg) and self._in_next_turn()

    def fail(self, error: Exception) -> None:
        """Set an exception, which the task finds in the loop's next turn."""
        self.set_exception(error)
        self._in_next_turn()

    def give(self, count: int) -> None:
        """Set the result, and let the task go on."""
        self.set_result(count)
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    def _in_next_turn(self) -> bool:
        resume, self._resume = self._resume, None
        if resume is not None:
            self.get_loop().call_soon(resume)
        return True


class Entry:
    """What one event loop has to do with one eventfd.

    Attributes:
        eventfd: weakly, so that a loop keeps none alive.
        loop: weakly, so that an eventfd keeps none alive.
        waiters: who waits, first come first; a dict, since those who give up leave from the middle.
        watches: in the order in which they were made.
        polled: whether it is in the epoll instance.
    """

    __slots__ = ("eventfd", "loop", "polled", "waiters", "watches")

    def __init__(self, eventfd: EventFd, loop: asyncio.AbstractEventLoop) -> None:
        self.eventfd = weakref.ref(eventfd)
        self.loop = weakref.ref(loop)
        self.waiters: dict[_Ready, None] = {}
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
        self._entries: dict[int, Entry] = {}
        # Not in the context of the task that happens to be the first, which would be kept with it.
        contextvars.Context().run(loop.add_reader, self._epoll.fileno(), self._serve)

    def entry(self, eventfd: EventFd) -> Entry:
        """The entry of an eventfd, which is polled from now on."""
        try:
            entry = self._entries.get(eventfd.fileno())
            if entry is not None and entry.polled:
                return entry
            with deferred_signals(), files.lock:  # nobody closes it meanwhile
                fd = eventfd.fileno()
                with suppress(FileExistsError):
                    self._epoll.register(fd, select.EPOLLIN)
                if entry is None:
                    entry = self._entries[fd] = Entry(eventfd, self.loop)
                    descriptor = eventfd._descriptor
                    others = [hub for hub in descriptor.hubs if hub() is not None]
                    descriptor.hubs = (*others, weakref.ref(self))
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

    def _end(self, entry: Entry) -> None:
        eventfd = entry.eventfd()
        path = "an eventfd" if eventfd is None else eventfd.path
        for ready in entry.waiters:
            if not ready.done():
                ready.fail(errors.Closed(f"{path} was closed while waited for"))
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
        # Each that is ready is served once, then the loop has its turn. Of one alone it is known.
        fds = list(self._entries)
        if len(fds) != 1:
            fds = [fd for fd, _ in self._epoll.poll(0, max(1, len(fds)))]
        for fd in fds:
            entry = self._entries.get(fd)
            if entry is not None:  # the one before may have closed it
                self._serve_one(fd, entry)

    def _serve_one(self, fd: int, entry: Entry) -> None:
        if entry.watches:
            for watch in tuple(entry.watches):
                if self._entries.get(fd) is not entry:  # the one before closed the eventfd
                    return
                watch.run(self.loop)
        # Whose task was cancelled is done, and leaves when the task has its turn.
        for ready in entry.waiters:
            if not ready.done():
                break
        else:
            if not entry.watches:
                self._put_out(fd, entry)
            return
        eventfd = entry.eventfd()
        try:
            count = 0 if eventfd is None else eventfd.take()
        except errors.Closed:  # by another thread, just now: _end tells the waiters
            return
        if count:
            ready.give(count)

    def _put_out(self, fd: int, entry: Entry) -> None:
        with deferred_signals(), files.lock:
            if self._entries.get(fd) is entry and entry.polled:
                self._epoll.unregister(fd)
                entry.polled = False


def wait(eventfd: EventFd) -> Generator[Any, None, int]:
    """What ``await eventfd`` runs: wait in the running loop until there are events, take them.

    It gives the loop a turn also where there are events already, so that a task that awaits again
    and again leaves the others theirs.
    """
    loop = asyncio.get_running_loop()
    waiters = _entry(eventfd, loop).waiters
    ready = _Ready(loop)
    waiters[ready] = None
    try:
        count: int = yield from ready.__await__()
        return count
    finally:
        del waiters[ready]


def watch(eventfd: EventFd, callback: Callable[[], object]) -> Watch:
    """Call a function in the running loop while an eventfd has events."""
    with deferred_signals() as section:
        entry = _entry(eventfd, asyncio.get_running_loop())
        watch = Watch(eventfd.path, callback, entry.watches)
        section.undo(watch.close)
        return watch


def _entry(eventfd: EventFd, loop: asyncio.AbstractEventLoop) -> Entry:
    entry = eventfd.entry
    if entry is not None and entry.polled and entry.loop() is loop and not eventfd.closed:
        return entry
    with deferred_signals():
        reference = _of_loop.get(loop)
        hub = None if reference is None else reference()
        if hub is None:
            hub = Hub(loop)
            _of_loop[loop] = weakref.ref(hub)
        entry = eventfd.entry = hub.entry(eventfd)
        return entry


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
