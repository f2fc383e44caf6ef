"""What a device was asked to do, to be waited for or awaited."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from pyvfio import errors

if TYPE_CHECKING:
    import asyncio

    from pyvfio.drivers.nvme.line import Line


class Operation:
    """Under way until :attr:`done`; :meth:`wait` for it, or ``await`` it.

    It goes on whether or not anybody waits: cancelling the task that awaits it, or interrupting a
    wait, leaves it under way, and what it reads or writes is kept alive until it has ended.

    Attributes:
        done: whether it has ended.
        error: why it failed; None while it is under way, and after success.
    """

    __slots__ = ("_futures", "_line", "done", "error")

    def __init__(self, line: Line) -> None:
        """
        Args:
            line: where its completions arrive.
        """
        self._line = line
        self._futures: list[tuple[asyncio.Future[None], int]] = []
        self.done = False
        self.error: Exception | None = None

    def wait(self) -> int:
        """Wait until it has ended.

        Returns:
            As :meth:`result`.

        Raises:
            CommandFailed: the controller did not do it; the subclass says why.
            CommandTimedOut: it took too long.
            ControllerReset: the controller was reset meanwhile.
            ControllerFailed: it was reset and did not come back.
            DeviceGone: the device was removed.
            Closed: the controller was closed.
        """
        if not self.done:
            self._line.wait(self)
        return self.result()

    def __await__(self) -> Generator[Any, None, int]:
        """Await it in asyncio; raises as :meth:`wait`."""
        if not self.done:
            self._line.look()
        if not self.done:
            import asyncio

            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            with self._line.watched(loop):
                self._futures.append((future, threading.get_ident()))
                # Looked at after the future can be found: whoever ends it does so before he looks.
                if not self.done:
                    yield from future
        return self.result()

    async def wait_async(self) -> int:
        """The same as awaiting it, as a coroutine, which can be made a task."""
        return await self

    def result(self) -> int:
        """What it gave: of a command, dword 0 of its completion; 0 of everything else.

        Raises:
            StateError: it is under way.
            And as :meth:`wait`.
        """
        if not self.done:
            raise errors.StateError("it has not ended: wait for it first")
        if self.error is not None:
            raise self.error.with_traceback(None)  # it may be raised often, and be others' too
        return 0

    def _finish(self, error: Exception | None = None) -> None:
        """It has ended."""
        self.error = error
        self.done = True
        here = threading.get_ident() if self._futures else 0
        while self._futures:
            future, thread = self._futures.pop()
            with contextlib.suppress(RuntimeError):  # its loop was closed
                if thread == here:
                    _wake(future)
                else:
                    future.get_loop().call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
