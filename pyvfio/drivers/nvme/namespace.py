"""A namespace: blocks that are read and written (NVM Command Set 1.0)."""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio.drivers.nvme import spec
from pyvfio.drivers.nvme.burst import Burst
from pyvfio.drivers.nvme.identify import NamespaceIdentity
from pyvfio.drivers.nvme.operation import Operation
from pyvfio.drivers.nvme.queue import Command, Queue
from pyvfio.drivers.nvme.spec import Io
from pyvfio.drivers.nvme.transfer import Transfer

if TYPE_CHECKING:
    from pyvfio.drivers.nvme.controller import Controller


_LONGEST_RANGE = (1 << 32) - 1  # blocks of one range to deallocate


class Namespace:
    """A disk, as far as a host is concerned.

    Everything comes in two forms: ``read()`` waits until it is done, ``start_read()`` gives an
    operation at once, to wait for or to await. `queue` chooses one of the controller's I/O queues,
    else it is the first.

    Attributes:
        id: the namespace's ID.
        identity: what it says of itself.
        blocks: its size, in blocks.
        block_size: bytes of a block.
    """

    def __init__(self, controller: Controller, id: int, identity: NamespaceIdentity) -> None:
        """Made by :class:`~pyvfio.drivers.nvme.controller.Controller`."""
        self._controller = controller
        self.id = id
        self._update(identity)

    def _update(self, identity: NamespaceIdentity | None) -> None:
        """It was formatted, or is no more."""
        if identity is None:
            self.blocks = 0
        else:
            self.identity = identity
            self.blocks = identity.blocks
            self.block_size = identity.current.block_size

    @property
    def size(self) -> int:
        """Its size, in bytes."""
        return self.blocks * self.block_size

    # Blocking.

    def read(self, lba: int, blocks: int, *, queue: Queue | None = None) -> bytearray:
        """Read blocks into new memory.

        Args:
            lba: the first block.
            blocks: how many.

        Raises:
            RangeError: there are fewer blocks.
            Unsupported: its blocks carry metadata, or are larger than what a command moves.
            And as :meth:`Operation.wait`.
        """
        self._check(lba, blocks)
        data = bytearray(blocks * self.block_size)
        self.start_read(lba, data, queue=queue).wait()
        return data

    def read_into(self, lba: int, buffer: Any, *, queue: Queue | None = None) -> None:
        """Read blocks into a writable buffer of whole blocks; raises as :meth:`read`."""
        self.start_read(lba, buffer, queue=queue).wait()

    def write(self, lba: int, data: Any, *, queue: Queue | None = None) -> None:
        """Write a buffer of whole blocks; raises as :meth:`read`.

        With a volatile cache it is safe from a loss of power after :meth:`flush`.
        """
        self.start_write(lba, data, queue=queue).wait()

    def flush(self, *, queue: Queue | None = None) -> None:
        """Let everything whose writing has ended become permanent."""
        self.start_flush(queue=queue).wait()

    def deallocate(self, ranges: Sequence[tuple[int, int]], *, queue: Queue | None = None) -> None:
        """Tell that blocks are no longer needed; what they read as is up to the disk.

        Args:
            ranges: (first block, how many).

        Raises:
            Unsupported: the controller has no such command.
            And as :meth:`read`.
        """
        self.start_deallocate(ranges, queue=queue).wait()

    def read_many(
        self,
        lbas: Sequence[int],
        memory: Any,
        *,
        blocks: int = 1,
        depth: int = 64,
        queue: Queue | None = None,
    ) -> None:
        """Read many pieces of one size; see :meth:`start_read_many`."""
        self.start_read_many(lbas, memory, blocks=blocks, depth=depth, queue=queue).wait()

    def write_many(
        self,
        lbas: Sequence[int],
        memory: Any,
        *,
        blocks: int = 1,
        depth: int = 64,
        queue: Queue | None = None,
    ) -> None:
        """Write many pieces of one size; see :meth:`start_write_many`."""
        self.start_write_many(lbas, memory, blocks=blocks, depth=depth, queue=queue).wait()

    # Started.

    def start_read(
        self, lba: int, buffer: Any, *, queue: Queue | None = None, timeout: float | None = None
    ) -> Operation:
        """Start reading blocks.

        A transfer of any length becomes commands of at most :attr:`Controller.max_transfer` bytes.
        Nothing is copied if the device reaches the memory: a DMA buffer (its view, or what was made
        of it) or memory mapped by ``device.dma.map()``, at a multiple of 4 bytes.

        Args:
            lba: the first block.
            buffer: writable, contiguous, of whole blocks.
            timeout: seconds for each command; None for the controller's.
        """
        memory = memoryview(buffer)
        if memory.readonly:
            raise errors.ArgumentError("what is read needs a writable buffer")
        return self._start(Io.READ, lba, memory, queue, timeout)

    def start_write(
        self, lba: int, data: Any, *, queue: Queue | None = None, timeout: float | None = None
    ) -> Operation:
        """Start writing blocks; as :meth:`start_read`, and `data` may be read-only."""
        return self._start(Io.WRITE, lba, memoryview(data), queue, timeout)

    def start_flush(self, *, queue: Queue | None = None, timeout: float | None = None) -> Operation:
        """Start a :meth:`flush`."""
        return self._queue(queue).command(Io.FLUSH, namespace=self.id, timeout=timeout)

    def start_deallocate(
        self, ranges: Sequence[tuple[int, int]], *, queue: Queue | None = None
    ) -> Operation:
        """Start a :meth:`deallocate`."""
        if not self._controller.identity.can_deallocate:
            raise errors.Unsupported("the controller has no Dataset Management command")
        for lba, blocks in ranges:
            self._check(lba, blocks)
        # No more than are refused: the blocks that a device claims may be any number.
        ranges = list(islice(_cut(ranges), spec.MOST_RANGES + 1))
        if not 0 < len(ranges) <= spec.MOST_RANGES:
            raise errors.RangeError(
                f"1 to {spec.MOST_RANGES} ranges can be deallocated at a time; one of more than "
                f"{_LONGEST_RANGE} blocks counts as several"
            )
        queue = self._queue(queue)
        buffer = self._controller.space.alloc(16 * len(ranges))
        for index, (lba, blocks) in enumerate(ranges):
            struct.pack_into("<IIQ", buffer.view, 16 * index, 0, blocks, lba)

        def ended(command: Command) -> None:
            command.queue.release(buffer)

        try:
            return queue.command(
                Io.DATASET_MANAGEMENT,
                len(ranges) - 1,
                spec.DEALLOCATE,
                namespace=self.id,
                memory=buffer.view,
                iova=buffer.iova,
                size=buffer.size,
                name=f"deallocate {len(ranges)} ranges",
                after=ended,
            )
        except errors.Error:
            buffer.close()
            raise

    def start_read_many(
        self,
        lbas: Sequence[int],
        memory: Any,
        *,
        blocks: int = 1,
        depth: int = 64,
        queue: Queue | None = None,
    ) -> Operation:
        """Start reading many pieces of one size, `depth` commands at a time.

        This is the way with the least work in Python for each command: doorbells are rung for as
        many as there is room for.

        Args:
            lbas: the first block of each piece; a sequence of integers, or a numpy array.
            memory: writable memory that the device reaches (see :meth:`start_read`), with room for
                each piece, in order.
            blocks: of each piece, no more than a command can move.
            depth: commands under way.

        Raises:
            ArgumentError: the device does not reach the memory, or its size is another.
            TypeError: a block's number is no integer.
            RangeError, Unsupported: as :meth:`read`.
        """
        return self._start_many(Io.READ, lbas, memory, blocks, depth, queue)

    def start_write_many(
        self,
        lbas: Sequence[int],
        memory: Any,
        *,
        blocks: int = 1,
        depth: int = 64,
        queue: Queue | None = None,
    ) -> Operation:
        """Start writing many pieces of one size; as :meth:`start_read_many`."""
        return self._start_many(Io.WRITE, lbas, memory, blocks, depth, queue)

    def _start(
        self, opcode: Io, lba: int, memory: memoryview, queue: Queue | None, timeout: float | None
    ) -> Operation:
        memory = _bytes(memory)
        blocks, rest = divmod(memory.nbytes, self.block_size)
        if rest or not blocks:
            raise errors.ArgumentError(
                f"{memory.nbytes} bytes are not whole blocks of {self.block_size}"
            )
        self._check(lba, blocks)
        controller = self._controller
        queue = self._queue(queue)
        iova = self._iova_of(memory)
        if iova is not None and memory.nbytes <= controller.max_transfer:
            return queue.command(
                opcode,
                lba & 0xFFFFFFFF,
                lba >> 32,
                blocks - 1,
                namespace=self.id,
                memory=memory,
                iova=iova,
                size=memory.nbytes,
                timeout=timeout,
            )
        return Transfer(
            self,
            queue,
            opcode,
            lba,
            memory,
            iova,
            space=controller.space,
            largest=controller.max_transfer // self.block_size * self.block_size,
            timeout=timeout,
        )

    def _iova_of(self, memory: memoryview) -> int | None:
        """Where the device finds memory, if it can be used as it is."""
        iova = self._controller.space.iova_of(memory)
        return None if iova is None or iova & 3 else iova

    def _start_many(
        self,
        opcode: Io,
        lbas: Sequence[int],
        memory: Any,
        blocks: int,
        depth: int,
        queue: Queue | None,
    ) -> Operation:
        # A list of our own, which nobody changes while it is worked through.
        numbers = lbas.tolist() if hasattr(lbas, "tolist") else lbas
        lbas = [operator.index(number) for number in numbers]
        view = _bytes(memoryview(memory))
        size = blocks * self.block_size
        if not lbas or blocks < 1 or view.nbytes != len(lbas) * size:
            raise errors.ArgumentError(
                f"{len(lbas)} pieces of {blocks} blocks are {len(lbas) * size} bytes; "
                f"the memory has {view.nbytes}"
            )
        if size > self._controller.max_transfer:
            raise errors.ArgumentError(
                f"a command moves {self._controller.max_transfer} bytes at most, not {size}"
            )
        if depth < 1:
            raise errors.ArgumentError(f"depth must be at least 1, not {depth}")
        self._check(min(lbas), blocks)
        self._check(max(lbas), blocks)
        iova = self._iova_of(view)
        if iova is None:
            raise errors.ArgumentError(
                "the device does not reach this memory at a multiple of 4: "
                "take a buffer of device.dma.alloc(), or map yours with device.dma.map()"
            )
        queue = self._queue(queue)
        burst = Burst(
            queue,
            opcode,
            self.id,
            lbas,
            view,
            iova,
            blocks=blocks,
            window=depth,
            name=f"{opcode.name.lower()} of {blocks} blocks from",
        )
        queue.start(burst)
        return burst

    def _queue(self, queue: Queue | None) -> Queue:
        queues = self._controller.queues
        if queue is None:
            return queues[0]
        if queue not in queues:
            raise errors.ArgumentError(f"{queue!r} is none of this controller's I/O queues")
        return queue

    def _check(self, lba: int, blocks: int) -> None:
        if not self.blocks:
            raise errors.StateError(f"there is no namespace {self.id} any more")
        if lba < 0 or blocks < 1 or lba + blocks > self.blocks:
            raise errors.RangeError(
                f"namespace {self.id} has blocks 0 to {self.blocks - 1}: "
                f"{blocks} from {lba} on is outside"
            )
        if self.block_size > self._controller.max_transfer:
            raise errors.Unsupported(
                f"namespace {self.id} has blocks of {self.block_size} bytes, and a command moves "
                f"{self._controller.max_transfer} at most"
            )
        if self.identity.current.metadata_size:
            raise errors.Unsupported(
                f"namespace {self.id} has {self.identity.current.metadata_size} bytes of metadata "
                "with each block, which this driver does not carry: format it without"
            )

    def __repr__(self) -> str:
        return f"<Namespace {self.id}: {self.blocks} blocks of {self.block_size} bytes>"


def _bytes(memory: memoryview) -> memoryview:
    if not memory.c_contiguous:
        raise errors.ArgumentError("data must lie in contiguous memory")
    return memory.cast("B") if memory.nbytes else memory


def _cut(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same blocks, in ranges whose lengths fit 32 bits."""
    for lba, blocks in ranges:
        for start in range(lba, lba + blocks, _LONGEST_RANGE):
            yield start, min(_LONGEST_RANGE, lba + blocks - start)
