"""An interrupt line: where the completions of one or more queues are waited for.

A line with a vector sleeps until the controller interrupts. One without looks into the completion
queues until there is something.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio.device import Vector, Watch

if TYPE_CHECKING:
    import asyncio

    from pyvfio.drivers.nvme.operation import Operation
    from pyvfio.drivers.nvme.queue import Queue

TICK = 0.5
"""Seconds between looks at the controller's health, for whoever waits that long."""


class Line:
    """Where completions are waited for, by any number of threads and asyncio tasks.

    Attributes:
        vector: the interrupt; None if there is none.
        queues: those whose completions arrive here.
    """

    def __init__(
        self,
        vector: Vector | None,
        diagnose: Callable[[], Callable[[], None] | None],
    ) -> None:
        """
        Args:
            vector: the interrupt; None looks instead of sleeping.
            diagnose: called every :data:`TICK` by whoever waits; gives what must be done to recover
                the controller, which may take seconds.
        """
        self.vector = vector
        self._diagnose = diagnose
        self.queues: list[Queue] = []
        # One thread sleeps on the vector, each of the others on a lock of its own until that one
        # is back: in threading.Condition, which is Python code, a signal's handler may raise while
        # the lock is not held, and what releases it then releases another thread's.
        self._lock = threading.Lock()
        self._sleepers: list[threading.Lock] = []
        self._asleep = False
        self._waiting = 0
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}

    def look(self) -> int:
        """Ring what is to be rung, and take the completions that there are, without waiting.

        Returns:
            How many there were.
        """
        count = 0
        for queue in self.queues:
            queue.ring()
            count += queue.reap()
        if count and self._waiting:
            self._tell()
        return count

    def wait(self, operation: Operation) -> None:
        """Wait until an operation is done."""
        tick = time.monotonic() + TICK
        while not operation.done:
            found = self.look()
            if operation.done:
                return
            # In every round: a controller that goes on posting completions gains no time by it.
            left = tick - time.monotonic()
            if left <= 0:
                tick = time.monotonic() + TICK
                if (recover := self._diagnose()) is not None:
                    recover()
            elif not found and self.vector is not None:
                self._sleep(self.vector, operation, left)

    @contextmanager
    def watched(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Let an event loop, the running one, take the completions meanwhile."""
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches[loop] = _Watch(self, loop)
        watch.tasks += 1
        try:
            yield
        finally:
            watch.tasks -= 1
            if not watch.tasks:
                del self._watches[loop]
                watch.close()

    def _sleep(self, vector: Vector, operation: Operation, seconds: float) -> None:
        counted = on_vector = False
        mine: threading.Lock | None = None
        try:
            with self._lock:
                self._waiting += 1
                counted = True
                # Looked at after being counted: whoever ends an operation looks at the count after.
                if operation.done:
                    return
                if self._asleep:
                    mine = threading.Lock()
                    mine.acquire()
                    self._sleepers.append(mine)
                else:
                    self._asleep = on_vector = True
            if mine is not None:
                mine.acquire(timeout=seconds)
            else:
                vector.wait(seconds)
        except errors.Closed:
            # Before it was closed all operations were ended.
            if not operation.done:
                raise
        finally:
            with self._lock:
                self._waiting -= counted
                if on_vector:
                    self._asleep = False
                    self._wake()
                elif mine in self._sleepers:
                    self._sleepers.remove(mine)

    def _wake(self) -> None:
        """Let those who sleep look, with the lock held."""
        while self._sleepers:
            self._sleepers.pop().release()

    def _tell(self) -> None:
        """Something was completed, perhaps for a thread that sleeps."""
        with self._lock:
            if self._asleep and self.vector is not None:
                with suppress(errors.Closed):
                    self.vector._eventfd.signal()
            self._wake()


class _Watch:
    """An event loop's watch on a line, as long as tasks of it await something there.

    Attributes:
        tasks: how many.
    """

    def __init__(self, line: Line, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks = 0
        self._line = line
        self._loop = loop
        self._recovering: asyncio.Future[None] | None = None
        self._vector = line.vector
        self._watch: Watch | None = None
        if self._vector is not None:
            self._watch = self._vector.watch(self._interrupted)
        else:
            self._turn: asyncio.Handle = loop.call_soon(self._poll)
        self._timer = loop.call_later(TICK, self._tick)

    def close(self) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.close()
        else:
            self._turn.cancel()

    def _interrupted(self) -> None:
        assert self._vector is not None
        line = self._line
        # A thread that sleeps on the vector is woken by the event, and takes it.
        leave = line._asleep
        if not leave:
            with suppress(errors.Closed):  # and all has ended: the tasks will hear of it
                self._vector.take()
        line.look()
        if not leave and line._asleep:
            line._tell()  # the event may have been meant for it

    def _poll(self) -> None:
        self._turn = self._loop.call_soon(self._poll)
        self._line.look()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        self._line.look()  # an interrupt may have been lost
        if self._recovering is None or self._recovering.done():
            recover = self._line._diagnose()
            if recover is not None:
                self._recovering = self._loop.run_in_executor(None, recover)
