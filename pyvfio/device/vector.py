"""One interrupt vector: an eventfd that the kernel signals when the device interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio._sys import EventFd

if TYPE_CHECKING:
    import asyncio


class Vector:
    """An enabled interrupt vector.

    It has a fileno(), so select, poll and asyncio take it as it is; whoever waits that way calls
    :meth:`take` afterwards. Interrupts that arrive before anybody looks are counted, not lost.

    Attributes:
        index: the vector's number within its IRQ index (MSI-X entry, MSI vector; 0 for INTx).
        count: all the interrupts taken so far.
    """

    __slots__ = ("_eventfd", "_waiting", "count", "index")

    def __init__(self, index: int, eventfd: EventFd) -> None:
        """Made by :meth:`pyvfio.device.irq.Irq.enable`."""
        self.index = index
        self.count = 0
        self._eventfd = eventfd
        self._waiting = False

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

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the next interrupt.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            How many interrupts came since the last look; 0 if the time ran out.

        Raises:
            Closed: the vector was disabled.
        """
        taken = self._eventfd.wait(timeout)
        self.count += taken
        return taken

    async def wait_async(self) -> int:
        """Wait for the next interrupt in asyncio; ``asyncio.wait_for`` adds a time limit.

        Returns:
            How many interrupts came since the last look, at least 1.

        Raises:
            Closed: the vector was disabled.
            StateError: another task is waiting for this vector.
        """
        if self._waiting:
            raise errors.StateError(f"another task is waiting for vector {self.index}")
        # Here, since it is most of what opening a device would import.
        import asyncio

        loop = asyncio.get_running_loop()
        self._waiting = True
        try:
            while not (taken := self.take()):
                fd = self.fileno()
                ready: asyncio.Future[None] = loop.create_future()
                loop.add_reader(fd, _wake, ready)
                try:
                    await ready
                finally:
                    loop.remove_reader(fd)
            return taken
        finally:
            self._waiting = False

    @property
    def enabled(self) -> bool:
        """Whether the device's interrupts still arrive here."""
        return not self._eventfd.closed

    def close(self) -> None:
        """Let go of the eventfd; :class:`~pyvfio.device.irq.Irq` disables the vector first."""
        self._eventfd.close()

    def __repr__(self) -> str:
        state = f"{self.count} taken" if self.enabled else "disabled"
        return f"<Vector {self.index} {state}>"


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
