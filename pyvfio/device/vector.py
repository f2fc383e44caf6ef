"""One interrupt vector: an eventfd that the kernel signals when the device interrupts."""

from __future__ import annotations

from pyvfio._sys import EventFd


class Vector:
    """An enabled interrupt vector.

    It has a fileno(), so select, poll and asyncio take it as it is; whoever waits that way calls
    :meth:`take` afterwards. Interrupts that arrive before anybody looks are counted, not lost.

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

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the next interrupt.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            How many interrupts came since the last look; 0 if the time ran out.

        Raises:
            Closed: the vector was disabled, before or while waiting.
        """
        taken = self._eventfd.wait(timeout)
        self.count += taken
        return taken

    async def wait_async(self) -> int:
        """Wait for the next interrupt in asyncio; ``asyncio.wait_for`` adds a time limit.

        Returns:
            How many interrupts came since the last look, at least 1.

        Raises:
            Closed: the vector was disabled, before or while waiting.
        """
        taken = await self._eventfd.wait_async()
        self.count += taken
        return taken

    @property
    def enabled(self) -> bool:
        """Whether the device's interrupts still arrive here."""
        return not self._eventfd.closed

    def __repr__(self) -> str:
        state = f"{self.count} taken" if self.enabled else "disabled"
        return f"<Vector {self.index} {state}>"
