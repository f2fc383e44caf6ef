"""Memory that a device reaches: mappings of the caller's, and buffers from a pool.

The pool maps arenas and cuts buffers out of them, so that allocating one makes no system call. What
a closed buffer leaves is kept sorted by size class, ready to go out again. Of that a fixed amount
is kept: the pool's memory is that of the buffers that are open, and that amount.

A buffer's memory is never handed out twice at a time. Every view, slice, cast or numpy array made
of a buffer holds the one object that stands for its block. A closed buffer that nobody else refers
to goes back into the pool as it is; otherwise its block does so when that object dies. A buffer
that is forgotten without being closed stays allocated: the device may still write to it, which only
the driver can know.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import weakref
from collections import deque
from contextlib import suppress
from sys import getrefcount
from typing import TYPE_CHECKING, Any, NamedTuple

from pyvfio import errors
from pyvfio._sys import memory
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.iommu.iova import IovaAllocator, IovaRange

if TYPE_CHECKING:
    from pyvfio.iommu.space import AddressSpace

GRAIN = 64
"""Blocks are multiples of this, so that no two share a cache line."""

_ARENA = 2 << 20
_LARGEST_ARENA = 16 << 20
LARGEST_BLOCK = _ARENA // 2
"""Bytes; a larger buffer is a mapping of its own."""

_IDLE = 2 << 20  # bytes that all size classes together keep ready, or one block each
_MOST_BINS = 256  # that may be empty
_MOST_KEYS = 4096
_AT_ONCE = 16  # blocks
_AT_ONCE_BYTES = 64 << 10

_ZEROS = bytes(LARGEST_BLOCK)


class Mapping(Closing):
    """Memory of the caller's that devices reach, until :meth:`close`.

    Made by :meth:`AddressSpace.map`. The memory is kept alive until then, even if the Mapping
    itself is forgotten.

    Attributes:
        iova: its address for the device.
        size: bytes.
    """

    __slots__ = ("_address", "_memory", "_space", "_uncertain", "iova", "size")

    def __init__(self, space: AddressSpace, view: memoryview, iova: int) -> None:
        self.iova = iova
        self.size = view.nbytes
        self._address = memory.address_of(view)  # the view may end: it can be of a device's BAR
        self._uncertain = (
            False  # whether the kernel still has it is unknown: a call was interrupted
        )
        self._memory: memoryview | None = view
        self._space: AddressSpace | None = space

    @property
    def closed(self) -> bool:
        """Whether devices no longer reach it."""
        return self._space is None

    def close(self) -> None:
        """Unmap it; closing again does nothing.

        Raises:
            KernelError: the kernel unmapped something else; the memory is then kept until the
                address space is closed.
        """
        if self._space is not None:
            self._space._unmap_mapping(self)

    def _forget(self) -> None:
        """It is unmapped: let the memory go."""
        self._space = self._memory = None

    def __repr__(self) -> str:
        return f"<Mapping iova={self.iova:#x} size={self.size:#x}{' closed' * self.closed}>"


class DmaBuffer(Closing):
    """Memory that devices and this process share, until :meth:`close`. It has no lock: it is one
    thread's at a time.

    Made by :meth:`AddressSpace.alloc`, zeroed.

    Attributes:
        iova: its address for the device.
        size: bytes.
    """

    __slots__ = ("_lease", "_view", "iova", "size")

    def __init__(self, lease: Lease, size: int, view: memoryview) -> None:
        """For :meth:`AddressSpace.alloc`."""
        self.iova = lease[0]
        self.size = size
        self._view: memoryview | None = view
        self._lease: Lease | None = lease

    @property
    def view(self) -> memoryview:
        """Its bytes (format "B"); ``numpy.frombuffer(view, "<u4")`` takes them without a copy.

        A view stays valid as long as somebody holds it, even when the buffer was closed, until the
        address space is closed: touching it raises ValueError then. A numpy array stays valid.

        Raises:
            Closed: the buffer was closed.
        """
        if self._view is None:
            raise errors.Closed(f"the DMA buffer at IOVA {self.iova:#x} is closed")
        return self._view

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._lease is None

    def close(self) -> None:
        """Give it back; closing again does nothing. The device must be done with it.

        Its memory is used again once nobody holds a view of it. A buffer larger than 1 MiB, or of
        huge pages, is unmapped at once.
        """
        # Written out, since a call costs as much as all the rest.
        lease = self._lease
        if lease is not None:
            self._lease = self._view = None
            if getrefcount(lease[1]) == _VIEW_IDLE and getrefcount(lease[2]) == _ORIGIN_IDLE:
                bin = lease[3]
                free = bin.free
                free.append(lease)
                if len(free) > bin.keep:
                    bin.trim()
            else:
                try:
                    block: Any = lease.view.obj
                except ValueError:  # it ended with the address space
                    return
                block.closed = True

    def __repr__(self) -> str:
        return f"<DmaBuffer iova={self.iova:#x} size={self.size:#x}{' closed' * self.closed}>"


class MappedBuffer(DmaBuffer):
    """A buffer that is a mapping of its own, unmapped when it is closed."""

    __slots__ = ("_mapping",)

    def __init__(self, mapping: Mapping, size: int, view: memoryview) -> None:
        """For :meth:`AddressSpace.alloc`."""
        super().__init__(Lease(mapping.iova, view, view, None), size, view)
        self._mapping = mapping

    def close(self) -> None:
        """Unmap it; closing again does nothing. The device must be done with it."""
        self._lease = self._view = None
        self._mapping.close()


class Place(NamedTuple):
    """A block's place in an arena.

    Attributes:
        iova: its first byte for the device.
        address: its first byte in this process.
        arena: keeps the memory alive.
    """

    iova: int
    address: int
    arena: Arena


class Arena:
    """One mapping that serves many buffers."""

    def __init__(self, mapping: Mapping, memory: memoryview, address: int) -> None:
        self.mapping = mapping
        self.memory = memory
        self.address = address
        self.last = mapping.iova + mapping.size - 1
        self.iovas = IovaAllocator([IovaRange(mapping.iova, self.last)])


class Lease(NamedTuple):
    """A block ready to be used, and used again.

    Attributes:
        iova: its first byte for the device.
        view: its bytes; `view.obj` is the block.
        origin: what the view and all slices and casts of it hold (CPython's "managed buffer").
        bin: where it goes when it is given back.
    """

    iova: int
    view: memoryview
    origin: object
    bin: Any

    @classmethod
    def of(cls, iova: int, view: memoryview, bin: Bin | None) -> Lease:
        (origin,) = gc.get_referents(view)
        return cls(iova, view, origin, bin)


_idle = Lease.of(0, memoryview(bytearray(1)), None)
# How often view and origin are referred to when nobody uses them.
_VIEW_IDLE = getrefcount(_idle[1])
_ORIGIN_IDLE = getrefcount(_idle[2])


class _Block:
    """The object that all views of a block keep alive: its end is the end of the last view."""

    bin: Bin
    place: Place
    closed = False  # the buffer was closed while somebody still had a view

    def __del__(self) -> None:
        # Runs anywhere, at any time: append is atomic and takes no lock.
        if self.closed:
            self.bin.free.append(self.bin.lease(self.place))


@functools.cache
def _block_kind(size: int) -> Any:
    """The class of blocks of a size; there are no more than size classes."""
    return type("Block", (_Block, ctypes.Array), {"_type_": ctypes.c_ubyte, "_length_": size})


def _class_size(size: int) -> int:
    """Bytes of the blocks that serve a size: multiples of GRAIN, then eight steps to each doubling.

    So there are 96 of them, and a block is at most an eighth larger than what was asked for.
    """
    step = max(1 << max((size - 1).bit_length() - 4, 0), GRAIN)
    return -(-size // step) * step


class Bin:
    """All free blocks of one size class, alignment and highest address.

    Attributes:
        size: bytes of a block.
        free: those ready to be used.
        keep: more free ones than this make the pool give memory back to the host.
        trim: makes it do so.
        zeros: as many zeros as a block has bytes.
        carved: how many blocks there are, free or not.
    """

    __slots__ = ("_kind", "carved", "free", "keep", "size", "trim", "zeros")

    def __init__(self, pool: Pool, size: int) -> None:
        self.size = size
        self.free: list[Lease] | deque[Lease] = []
        self.zeros = memoryview(_ZEROS)[:size]
        self.keep = 1
        self.trim = pool.trim
        self.carved = 0
        self._kind = _block_kind(size)

    def lease(self, place: Place) -> Lease:
        """Make a block ready to be used."""
        block = self._kind.from_address(place.address)
        block.bin, block.place = self, place
        return Lease.of(place.iova, memoryview(block).cast("B"), self)

    def carve(self, place: Place) -> Lease:
        """Make a block of a place in an arena."""
        self.carved += 1
        return self.lease(place)

    def abandon(self) -> None:
        """The mapping is gone: let each block's memory go as its last view goes."""
        self.free = deque(maxlen=0)


class Pool:
    """The arenas of an address space, guarded by its lock.

    Attributes:
        found: the bin of each size, alignment, highest address and kind of page that was asked for.
    """

    def __init__(self, space: AddressSpace) -> None:
        self.found: dict[tuple[int, int | None, int | None, bool | int], Bin] = {}
        self._bins: dict[tuple[int, int | None, int | None], Bin] = {}
        self._most_bins = _MOST_BINS
        self._space = space
        self._arenas: list[Arena] = []
        self._leaving: list[Arena] = []  # to be unmapped

    def carve(self, size: int, align: int | None, max_iova: int | None) -> tuple[Bin, Lease]:
        """A block where no bin has one ready.

        Args:
            size: bytes, a multiple of GRAIN.
            align: of its IOVA; None so that a block up to a page's size lies in one page.
            max_iova: the last address it may touch.
        """
        with deferred_signals() as section, self._space._lock:
            bin = self._bin(size, align, max_iova)
            if bin.free:  # asked for by another size, or by so many that it was forgotten
                with suppress(IndexError):  # another thread took the last one
                    return bin, bin.free.pop()
            size = bin.size
            if align is None:
                align = min(1 << (size - 1).bit_length(), self._space.page_size)
            align = max(align, GRAIN)
            place = self._place(size, align, max_iova)
            if place is None:
                self._collect()
                place = self._place(size, align, max_iova)
            if place is None:
                self._grow(max(size, align), max_iova)
                place = self._place(size, align, max_iova)
                assert place is not None  # an arena begins at a multiple of its size
            lease = bin.carve(place)
            section.undo(bin.free.append, lease)
            # Some more at once, which costs a fraction of coming here again for each.
            for _ in range(min(_AT_ONCE, _AT_ONCE_BYTES // size, bin.keep)):
                if (place := self._place(size, align, max_iova)) is None:
                    break
                bin.free.append(bin.carve(place))
            return bin, lease

    def trim(self, keep: int = 1) -> None:
        """Give arenas that lie idle back to the host, all but `keep` of them."""
        with deferred_signals(), self._space._lock:
            self._collect()
            # First, so that nothing is allocated from one that may be unmapped.
            for arena in [arena for arena in self._arenas if arena.iovas.unused][keep:]:
                self._leaving.append(arena)
                self._arenas.remove(arena)
            while self._leaving:
                self._leaving[-1].mapping.close()  # where that fails, it is tried again next time
                self._leaving.pop()

    def arenas(self) -> list[weakref.ref[Arena]]:
        """The arenas; after :meth:`abandon` those that are left have blocks in use."""
        return [weakref.ref(arena) for arena in self._arenas]

    def abandon(self) -> None:
        """The mappings are gone: start again, with nothing."""
        for bin in self._bins.values():
            bin.abandon()
        self.found.clear()
        self._bins.clear()
        self._arenas.clear()
        self._leaving.clear()

    def _bin(self, size: int, align: int | None, max_iova: int | None) -> Bin:
        key = (_class_size(size), align, max_iova)
        bin = self._bins.get(key)
        if bin is None:
            if len(self._bins) >= self._most_bins:
                self._drop_bins()
            bin = self._bins[key] = Bin(self, key[0])
            for each in self._bins.values():
                each.keep = max(_IDLE // len(self._bins) // each.size, 1)
        if len(self.found) >= _MOST_KEYS:
            self.found.clear()
        self.found[size, align, max_iova, False] = bin
        return bin

    def _drop_bins(self) -> None:
        """Forget the bins of which no block is in use."""
        self._collect()
        for key, bin in tuple(self._bins.items()):
            if not bin.carved:
                del self._bins[key]
        self.found.clear()
        # Where many are in use this is not to be done for each one more.
        self._most_bins = max(_MOST_BINS, 2 * len(self._bins))

    def _place(self, size: int, align: int, max_iova: int | None) -> Place | None:
        for arena in self._arenas:
            if max_iova is None or arena.last <= max_iova:
                try:
                    iova = arena.iovas.allocate(size, align)
                except errors.NoSpace:
                    continue
                return Place(iova, arena.address + iova - arena.mapping.iova, arena)
        return None

    def _collect(self) -> None:
        """Take the bins' blocks back, so that they merge and serve any size."""
        for bin in self._bins.values():
            while bin.free:
                try:
                    block: Any = bin.free.pop().view.obj
                except IndexError:  # another thread took the last one
                    break
                place: Place = block.place
                place.arena.iovas.free(place.iova, bin.size)
                bin.carved -= 1

    def _grow(self, least: int, max_iova: int | None) -> None:
        """Map another arena: as much again as there is, or less where that is refused."""
        space = self._space
        size = min(max(_ARENA, sum(arena.mapping.size for arena in self._arenas)), _LARGEST_ARENA)
        size = 1 << (size - 1).bit_length()
        while True:
            view = memory.allocate_shared(max(size, space.page_size))
            try:
                mapping = space._map_memory(view, align=view.nbytes, max_iova=max_iova)
            except (errors.LockedMemoryLimit, errors.NoSpace):
                if size // 2 < least or size <= space.page_size:
                    raise
                size //= 2
            else:
                self._arenas.append(Arena(mapping, view, memory.address_of(view)))
                return


def arena_of(owner: object) -> object:
    """The arena of a block; None of anything else."""
    return owner.place.arena if isinstance(owner, _Block) else None
