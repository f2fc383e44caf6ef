"""Memory mapped into the process.

``mmap.mmap(fd, ...)`` duplicates the descriptor, and so would keep a closed device open. Device
memory is therefore mapped by the call itself, and unmapped by the object that all its views hold.
:func:`withdraw` ends it before that: a view that somebody keeps must not keep the device.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import mmap
import os
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

from pyvfio._sys import calls
from pyvfio._sys.file import File, refused
from pyvfio._sys.signals import deferred_signals

PAGE_SIZE = mmap.PAGESIZE

_HUGE = 2 << 20
_MOST_PIECES = 1024  # of memory that is withdrawn; a process has 65,530 mappings as a rule
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FIXED_NOREPLACE = 0x100000
_MAP_HUGETLB = 0x40000
_MAP_HUGE_SHIFT = 26
_MADV_POPULATE_WRITE = 23  # since Linux 5.14
_RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


# Where device memory is mapped: where each begins, and how many bytes.
_places: set[tuple[int, int]] = set()


class DeviceMemory:
    """What all views of one mapping keep alive: the ``obj`` of each of them.

    Attributes:
        place: the addresses it holds, as in `_places`; None once they are unmapped.
    """

    place: tuple[int, int] | None

    # Bound here: at the interpreter's end the module may be gone before the last view.
    def unmap(
        self,
        munmap: Callable[[int, int], None] = calls.munmap,
        places: set[tuple[int, int]] = _places,
    ) -> None:
        """Give the addresses back, which nobody may touch any more."""
        place, self.place = self.place, None
        if place is not None:
            places.discard(place)
            munmap(*place)

    __del__ = unmap

    def replace(self) -> None:
        """Put other memory where the device's is, which keeps no device: it reads all ones, as a
        device does that has gone.

        Raises:
            KernelError: the kernel refused.
        """
        array: Any = self
        start, size = ctypes.addressof(array), len(array)
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        try:
            # One call, so that no thread finds a hole.
            calls.mmap(start, size, prot, _RESERVE | _MAP_FIXED, -1, 0)
        except OSError as error:
            raise refused(error, "mmap", "anonymous memory") from None
        # Memory full of ones costs as much as the BAR is large, unless it is the same again and
        # again. Where it cannot be had, and beyond 2 GiB, zeros stay.
        piece = min(size, _HUGE)
        with suppress(OSError):
            fd = calls.memfd_create("pyvfio-gone", os.MFD_CLOEXEC)
            try:
                calls.pwrite(fd, b"\xff" * piece, 0)
                for number in range(min(-(-size // piece), _MOST_PIECES)):
                    offset = number * piece
                    length = min(piece, size - offset)
                    calls.mmap(start + offset, length, prot, mmap.MAP_PRIVATE | _MAP_FIXED, fd, 0)
            finally:
                calls.close(fd)


def map_file(file: File, offset: int, length: int, *, writable: bool) -> memoryview:
    """Map part of a device file, shared and not inherited by a fork.

    Large mappings are aligned to 2 MiB so that the kernel can use huge pages for them.

    Args:
        offset: bytes from the start of the file, a multiple of the page size.
        length: bytes, a multiple of the page size.
        writable: False gives a read-only view.

    Returns:
        A view whose ``obj`` is a :class:`DeviceMemory`.

    Raises:
        KernelError: the kernel refused to map it.
        Closed: the file was closed.
    """
    align = _HUGE if length >= _HUGE else PAGE_SIZE
    size = length + align - PAGE_SIZE
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    kind = _device_memory_kind(length)
    with deferred_signals() as section:
        fd = file.fileno()
        try:
            # Addresses first, without memory behind them; then the file, aligned, over them.
            start = calls.mmap(0, size, _PROT_NONE, _RESERVE, -1, 0)
            address = -(-start // align) * align
            owner = kind.from_address(address)
            owner.place = start, size
            _places.add(owner.place)
            section.undo(owner.unmap)
            calls.mmap(address, length, prot, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)
            calls.madvise(address, length, mmap.MADV_DONTFORK)
        except OSError as error:
            raise file.refused(error, "mmap") from None
        section.undo(withdraw, [weakref.ref(owner)])  # before: nobody has a view of nothing then
        view = memoryview(owner).cast("B")
        return view if writable else view.toreadonly()


@functools.lru_cache(64)
def _device_memory_kind(length: int) -> Any:
    members = {"_type_": ctypes.c_ubyte, "_length_": length, "place": None}
    return type("DeviceMemory", (DeviceMemory, ctypes.Array), members)


def withdraw(owners: Iterable[weakref.ref[Any]]) -> None:
    """End the views of device memory, so that one that is still held keeps no device.

    What :func:`release_views` cannot end keeps its addresses, and other memory takes the place of
    the device's there (:meth:`DeviceMemory.replace`).

    Args:
        owners: each a :class:`DeviceMemory`.

    Raises:
        KernelError: the kernel refused to replace memory; the rest is done.
    """
    wanted = {id(owner()) for owner in owners} - {id(None)}
    if wanted:
        release_views(lambda owner: id(owner) in wanted)
    with ExitStack() as steps:
        for owner in owners:
            if (left := owner()) is not None:
                steps.callback(left.replace)


def release_views(wanted: Callable[[object], bool]) -> None:
    """Release all memoryviews of some memory: touching one raises ValueError from then on.

    A view that somebody is using (a system call in another thread, :func:`pin`) stays as it is.

    Args:
        wanted: whether the ``obj`` of a view owns that memory.
    """
    # Slices and casts have no list of their own; the garbage collector knows all objects.
    for view in [found for found in gc.get_objects() if type(found) is memoryview]:
        with suppress(ValueError, BufferError):  # it is released already; somebody is using it
            if wanted(view.obj):
                # An array has the address and, for the memory to stay, holds a memoryview without
                # being its user: so the memory stays until all of these are gone.
                weakref.finalize(view, _let_go, view.obj).atexit = False
                view.release()
        del view


def pin(view: memoryview) -> object:
    """Keep a view from being released by others, for as long as what is returned is kept.

    For those who go on using it until they are told what has become of the device.
    """
    from pickle import PickleBuffer  # of all that holds a buffer, the one that does nothing else

    return PickleBuffer(view)


def _let_go(owner: object) -> None:
    """The last who could touch the memory of `owner` is gone."""


def populate(view: memoryview) -> None:
    """Have pages behind a writable buffer, as if each was written to; its bytes stay.

    Does nothing where the kernel cannot (before 5.14), and to a device's memory.
    """
    with suppress(OSError):
        calls.madvise(address_of(view), view.nbytes, _MADV_POPULATE_WRITE)


def allocate_shared(length: int, huge_page_size: int | None = None) -> memoryview:
    """Memory for DMA: zeroed and shared, so that a fork never moves its pages away (copy on write).

    Args:
        length: bytes, a multiple of the page size (of the huge page size, if given).
        huge_page_size: bytes of a page, from the host's hugetlb pool; None for ordinary pages.

    Raises:
        KernelError: ENOMEM when memory, or the pool of huge pages, is exhausted.
    """
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    if huge_page_size is not None:
        flags |= _MAP_HUGETLB | (huge_page_size.bit_length() - 1) << _MAP_HUGE_SHIFT
    try:
        return memoryview(mmap.mmap(-1, length, flags=flags))
    except OSError as error:
        raise refused(error, "mmap", "anonymous memory") from None


def address_of(buffer: memoryview | mmap.mmap | bytearray) -> int:
    """The address of a writable buffer's first byte. The caller keeps the buffer alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _reserve_in_child() -> None:
    # The child has no device memory, but its owners will unmap their addresses: they must not
    # become somebody else's until then.
    for start, size in _places:
        calls.munmap(start, size)
        calls.mmap(start, size, _PROT_NONE, _RESERVE | _MAP_FIXED_NOREPLACE, -1, 0)


os.register_at_fork(after_in_child=_reserve_in_child)
