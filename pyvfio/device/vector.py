"""One interrupt vector: an eventfd that the kernel signals when the device interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvfio._sys import EventFd, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Vector:
    """An enabled interrupt vector. Threads may share it.

    ``await vector`` waits in asyncio, :meth:`wait` in a thread; each interrupt is taken by one of
    those who wait. It has a fileno(), so select and poll take it as it is; whoever waits that way
    calls :meth:`take` afterwards. Interrupts that come before anybody looks are counted, not lost.

    Attributes:
        index: the vector's number within its IRQ index (MSI-X entry, MSI vector; 0 for INTx).
        count: all the interrupts taken so far.
    """

    __slots__ = ("_eventfd", "count", "index")

    def __init__(self, index: int, eventfd: EventFd) -> None:
        """Made by :meth:`pyvfio.device.irq.Irq.enable`."""
        self.index = index
        self.count = 0
        self._eventfd = eventfd

    def fileno(self) -> int:
        """The eventfd's descriptor number.

        Raises:
            Closed: the vector was disabled.
        """
        return self._eventfd.fileno()

    def take(self) -> int:
        """The interrupts since the last look, without waiting.

        Raises:
            Closed: the vector was disabled.
        """
        taken = self._eventfd.take()
        self.count += taken
        return taken

    def wait(self, timeout: float | None = None, *, spin: float = 0.0) -> int:
        """Wait for the next interrupt.

        Args:
            timeout: seconds to wait at most; None waits for ever.
            spin: for so many of these seconds keep the processor busy looking, instead of sleeping
                and being woken, which takes longer than most devices.

        Returns:
            How many interrupts came since the last look; 0 if the time ran out.

        Raises:
            Closed: the vector was disabled, before or while waiting.
        """
        taken = self._eventfd.wait(timeout, spin=spin)
        self.count += taken
        return taken

    def __await__(self) -> Generator[Any, None, int]:
        """Wait for the next interrupt in asyncio; ``asyncio.wait_for`` adds a time limit.

        The event loop has a turn also where interrupts are there already, so a task that only
        awaits leaves the others theirs. A task that is cancelled takes none.

        Returns:
            How many interrupts came since the last look, at least 1.

        Raises:
            Closed: the vector was disabled, before or while waiting.
            RuntimeError: no event loop is running.
        """
        taken = yield from self._eventfd.__await__()
        self.count += taken
        return taken

    async def wait_async(self) -> int:
        """The same as a coroutine, for what takes nothing else (``asyncio.create_task``).

        Raises:
            Closed: the vector was disabled, before or while waiting.
        """
        return await self

    def watch(self, callback: Callable[[], object]) -> Watch:
        """Call a function in the running event loop whenever there are interrupts.

        For drivers: a queue is looked at without a task that waits for it.

        Args:
            callback: takes no arguments. It is called once in each turn of the loop until somebody
                takes the interrupts: it calls :meth:`take`, which finds none where another was
                quicker. What it raises goes to the loop's exception handler.

        Returns:
            The watch, a context manager; closing it ends it, and so does disabling the vector.

        Raises:
            Closed: the vector was disabled.
            RuntimeError: no event loop is running.
        """
        return self._eventfd.watch(callback)

    @property
    def enabled(self) -> bool:
        """Whether the device's interrupts still arrive here."""
        return not self._eventfd.closed

    def __repr__(self) -> str:
        state = f"{self.count} taken" if self.enabled else "disabled"
        return f"<Vector {self.index} {state}>"
