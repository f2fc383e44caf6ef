"""Many reads or writes of one size, kept under way many at a time: the fast way.

They share one object, are written into the queue in one go, and one doorbell is rung for all that
there was room for.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pyvfio import errors
from pyvfio.drivers.nvme.operation import Operation
from pyvfio.drivers.nvme.queue import FAILED, Queue, ended_badly


class Burst(Operation):
    """Commands that differ in block and memory only."""

    __slots__ = (
        "_at",
        "_blocks",
        "_failed",
        "_iovas",
        "_lbas",
        "_lock",
        "_namespace",
        "_opcode",
        "_queue",
        "_size",
        "_under_way",
        "_waits",
        "_window",
        "expired",
        "memory",
        "name",
        "timeout",
    )

    def __init__(
        self,
        queue: Queue,
        opcode: int,
        namespace: int,
        lbas: Sequence[int],
        memory: memoryview,
        iova: int,
        *,
        blocks: int,
        window: int,
        name: str,
    ) -> None:
        """
        Args:
            lbas: the first block of each command.
            memory: kept alive until all have ended; a piece for each, in order.
            iova: of the memory.
            blocks: of each command.
            window: how many may be under way.
            name: what they do, for messages.
        """
        super().__init__(queue.line)
        self._queue = queue
        self._opcode = opcode
        self._namespace = namespace
        self._lbas = lbas
        self.memory: memoryview | None = memory
        self._blocks = blocks
        self._size = memory.nbytes // len(lbas)
        self._iovas = range(iova, iova + memory.nbytes, self._size)
        self._window = min(window, queue.depth - 1)
        self.name = name
        self._at = 0  # the first that was not placed
        self._lock = threading.Lock()
        self._under_way: dict[int, int] = {}  # identifier: which
        self._waits = False  # for room in the queue
        self._failed: Exception | None = None
        self.expired = False
        self.timeout = queue.timeout

    def place(self, queue: Queue) -> bool:
        """As :meth:`Work.place`."""
        self._waits = False
        if self._failed is not None:
            return True
        under_way, at = self._under_way, self._at
        end = min(at + self._window - len(under_way), len(self._lbas))
        identifiers = queue.place_blocks(
            self,
            self._opcode,
            self._namespace,
            self._size,
            self._blocks - 1,
            self._lbas[at:end],
            self._iovas[at:end],
        )
        # In this order: another thread, that sees all placed and none under way, ends it.
        under_way.update(zip(identifiers, range(at, end), strict=False))
        self._at = at + len(identifiers)
        self._waits = self._at < end
        return not self._waits

    def completed(self, identifier: int, entry: int, result: int) -> None:
        """As :meth:`Work.completed`."""
        which = self._under_way.pop(identifier)
        if entry & FAILED and self._failed is None:
            name = f"{self.name} {self._lbas[which]} (number {which} of {len(self._lbas)})"
            self._failed = ended_badly(self, entry, name)

    def advance(self) -> None:
        """As :meth:`Work.advance`."""
        if self._failed is None and self._at < len(self._lbas) and not self._waits:
            try:
                self._queue.start(self)
            except errors.Error as error:
                self._failed = error
        self._finish_if_ended()

    def failed(self, error: Exception) -> None:
        """As :meth:`Work.failed`."""
        self._under_way.clear()
        self._failed = self._failed or error
        self._finish_if_ended()

    def _finish_if_ended(self) -> None:
        with self._lock:
            more = self._failed is None and self._at < len(self._lbas)
            if self.done or self._under_way or more:
                return
            self.memory = None
        self._finish(self._failed)
