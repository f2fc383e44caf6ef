"""Memory of commands that were given up while the controller may still be at work on them.

A buffer that is closed goes back into the pool, and to the next allocation. So what a command used
is not closed before the controller was disabled or reset: it is withheld until then.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvfio.iommu import AddressSpace, DmaBuffer, Mapping
from pyvfio.iommu.dma import MappedBuffer


class Withheld:
    """What one controller may still write to.

    Attributes:
        active: whether memory is withheld; else what is closed is closed at once.
    """

    def __init__(self) -> None:
        _left[:] = [left for left in _left if not left[0].closed]
        self.active = False
        self._kept: list[memoryview | Mapping | MappedBuffer] = []

    def begin(self) -> None:
        """The controller is given up: from now on memory is withheld."""
        self.active = True

    def keep(self, memory: Iterable[memoryview | None]) -> None:
        """Withhold memory that somebody else closes.

        A view keeps a block of the pool from being used again. It does not keep a mapping: of what
        the caller unmaps the device is cut off by the IOMMU.
        """
        if self.active:
            self._kept.extend(view for view in memory if view is not None)

    def close(self, memory: DmaBuffer | Mapping) -> None:
        """Close memory, now or when the controller is done with it.

        Raises:
            KernelError: as :meth:`Mapping.close`.
        """
        if not self.active:
            memory.close()
        elif isinstance(memory, (Mapping, MappedBuffer)):
            self._kept.append(memory)
        elif not memory.closed:
            self._kept.append(memory.view)
            memory.close()

    def end(self) -> None:
        """The controller was disabled or reset: it is done with all that was withheld.

        Raises:
            KernelError: as :meth:`Mapping.close`.
        """
        self.active = False
        while self._kept:
            memory = self._kept.pop()
            if not isinstance(memory, memoryview):
                memory.close()

    def leave_to(self, space: AddressSpace) -> None:
        """Withhold it as long as the address space is open: nobody will ever know."""
        if self._kept:
            _left.append((space, self._kept))
            self._kept = []


_left: list[tuple[AddressSpace, list[memoryview | Mapping | MappedBuffer]]] = []
"""What controllers may still write to that were closed without becoming idle."""
