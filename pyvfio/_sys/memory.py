"""Memory mapped into the process, whose mapping lives as long as its last view.

``mmap.mmap(fd, ...)`` duplicates the descriptor, and so would keep a closed device open. Device
memory is therefore mapped by the call itself, and unmapped by the object that all its views hold.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

from pyvfio._sys import calls
from pyvfio._sys.file import File, refused

PAGE_SIZE = mmap.PAGESIZE

_HUGE = 2 << 20
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FIXED_NOREPLACE = 0x100000
_MAP_HUGETLB = 0x40000
_MAP_HUGE_SHIFT = 26
_RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


# Where device memory is mapped: where each begins, and how many bytes.
_places: set[tuple[int, int]] = set()


class _DeviceMemory:
    """What all views of one mapping keep alive.

    Attributes:
        place: the addresses it holds, as in `_places`.
    """

    place: tuple[int, int]

    # Bound here: at the interpreter's end the module may be gone before the last view.
    def __del__(
        self,
        munmap: Callable[[int, int], None] = calls.munmap,
        places: set[tuple[int, int]] = _places,
    ) -> None:
        places.discard(self.place)
        munmap(*self.place)


def map_file(file: File, offset: int, length: int, *, writable: bool) -> memoryview:
    """Map part of a device file, shared and not inherited by a fork.

    Large mappings are aligned to 2 MiB so that the kernel can use huge pages for them.

    Args:
        offset: bytes from the start of the file, a multiple of the page size.
        length: bytes, a multiple of the page size.
        writable: False gives a read-only view.

    Raises:
        KernelError: the kernel refused to map it.
        Closed: the file was closed.
    """
    fd = file.fileno()
    align = _HUGE if length >= _HUGE else PAGE_SIZE
    size = length + align - PAGE_SIZE
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        # Addresses first, without memory behind them; then the file, aligned, over them.
        start = calls.mmap(0, size, _PROT_NONE, _RESERVE, -1, 0)
        try:
            address = -(-start // align) * align
            calls.mmap(address, length, prot, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)
            calls.madvise(address, length, mmap.MADV_DONTFORK)
        except BaseException:
            calls.munmap(start, size)
            raise
    except OSError as error:
        raise file.refused(error, "mmap") from None
    kind: Any = type(
        "DeviceMemory",
        (_DeviceMemory, ctypes.Array),
        {"_type_": ctypes.c_ubyte, "_length_": length, "place": (start, size)},
    )
    owner = kind.from_address(address)
    _places.add((start, size))
    view = memoryview(owner).cast("B")
    return view if writable else view.toreadonly()


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
