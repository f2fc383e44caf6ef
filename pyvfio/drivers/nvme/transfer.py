"""Data of any length on its way between a namespace and memory, as many commands as it takes.

Memory that the device reaches is used as it is. Other memory is mapped for the time of the
transfer where that can be done and costs less than copying; else the data goes through DMA buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio.drivers.nvme.operation import Operation
from pyvfio.drivers.nvme.queue import Command, Queue
from pyvfio.drivers.nvme.spec import Io
from pyvfio.iommu import AddressSpace, DmaBuffer, Mapping

if TYPE_CHECKING:
    from pyvfio.drivers.nvme.namespace import Namespace

_UNDER_WAY = 32
"""Commands of one transfer, of memory that the device reaches."""
_COPIED_UNDER_WAY = 8
"""Commands of one transfer that is copied: each takes a DMA buffer."""
_COPIED_BYTES = 2 << 20
"""Bytes of such a buffer at most, unless one block has more."""
WORTH_MAPPING = 1 << 20
"""Bytes from which mapping the caller's memory costs less than copying."""


class Transfer(Operation):
    """A read or write."""

    __slots__ = (
        "_block_size",
        "_buffers",
        "_failed",
        "_iova",
        "_lock",
        "_mapping",
        "_memory",
        "_namespace",
        "_opcode",
        "_pieces",
        "_queue",
        "_timeout",
        "_under_way",
        "_window",
    )

    def __init__(
        self,
        namespace: Namespace,
        queue: Queue,
        opcode: Io,
        lba: int,
        memory: memoryview,
        iova: int | None,
        *,
        space: AddressSpace,
        largest: int,
        timeout: float | None,
    ) -> None:
        """Start it.

        Args:
            lba: the first block.
            memory: the caller's, contiguous, as bytes; writable for a read.
            iova: where the device finds it; None if it does not.
            space: the device's address space.
            largest: bytes of one command.
            timeout: seconds for each command; None for the queue's.
        """
        super().__init__(queue.line)
        self._namespace = namespace.id
        self._block_size = namespace.block_size  # now: formatting may change it
        self._queue = queue
        self._opcode = opcode
        self._memory: memoryview | None = memory
        self._timeout = timeout
        self._mapping: Mapping | None = None
        self._iova = iova
        if self._iova is None and memory.nbytes >= WORTH_MAPPING:
            # Not whole pages, or more than may be locked: it is copied.
            with suppress(errors.ArgumentError, errors.KernelError):
                self._mapping = space.map(memory, private=True)
                self._iova = self._mapping.iova
        self._window = _UNDER_WAY
        self._buffers: list[DmaBuffer] = []
        if self._iova is None:
            self._window = _COPIED_UNDER_WAY
            largest = min(largest, max(_COPIED_BYTES, self._block_size))
            largest -= largest % self._block_size
            size = min(largest, memory.nbytes)
            count = min(self._window, -(-memory.nbytes // size))
            for _ in range(count):
                try:
                    self._buffers.append(space.alloc(size))
                except errors.Error:
                    if not self._buffers:
                        raise
                    break  # fewer do it as well
            self._window = len(self._buffers)
        self._pieces = self._cut(lba, memory.nbytes, largest)
        self._lock = threading.RLock()
        self._under_way: set[int] = set()  # offsets of the pieces
        self._failed: Exception | None = None
        with queue.batch():
            self._go_on()

    def _cut(self, lba: int, size: int, largest: int) -> Iterator[tuple[int, int, int]]:
        block = self._block_size
        for offset in range(0, size, largest):
            yield lba + offset // block, offset, min(largest, size - offset)

    def _go_on(self) -> None:
        with self._lock:
            while self._failed is None and len(self._under_way) < self._window:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._under_way.add(piece[1])
                try:
                    self._start(*piece)
                except errors.Error as error:
                    self._under_way.discard(piece[1])
                    self._failed = error
            if self.done or self._under_way:
                return
            self._memory = None
            for buffer in self._buffers:
                self._queue.release(buffer)
            if self._mapping is not None:
                try:
                    self._queue.release(self._mapping)
                except errors.KernelError as error:
                    self._failed = self._failed or error
        self._finish(self._failed)

    def _start(self, lba: int, offset: int, size: int) -> None:
        memory = self._memory
        assert memory is not None
        buffer: DmaBuffer | None = None
        if self._iova is not None:
            iova = self._iova + offset
        else:
            buffer = self._buffers[-1]
            iova = buffer.iova
            if self._opcode == Io.WRITE:
                buffer.view[:size] = memory[offset : offset + size]

        def ended(command: Command) -> None:
            with self._lock:
                self._under_way.discard(offset)
                if command.error is not None:
                    self._failed = self._failed or command.error
                if buffer is not None:
                    if self._opcode == Io.READ and command.error is None:
                        memory[offset : offset + size] = buffer.view[:size]
                    self._buffers.append(buffer)
                self._go_on()

        blocks = size // self._block_size
        self._queue.command(
            self._opcode,
            lba & 0xFFFFFFFF,
            lba >> 32,
            blocks - 1,
            namespace=self._namespace,
            memory=memory if buffer is None else buffer.view,
            iova=iova,
            size=size,
            timeout=self._timeout,
            after=ended,
        )
        if buffer is not None:
            self._buffers.pop()  # only now: a refused command has taken none
