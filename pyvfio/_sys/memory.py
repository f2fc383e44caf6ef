"""Memory mapped into the process, whose mapping lives as long as its last view.

``mmap.mmap(fd, ...)`` duplicates the descriptor, and so would keep a closed device open. Here
Python's mmap object owns only a range of addresses, and the file is mapped over it: the range
disappears with the last memoryview, and the descriptor is nobody's but its owner's.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys.file import File

PAGE_SIZE = mmap.PAGESIZE

_HUGE = 2 << 20
_MAP_FIXED = 0x10
_MAP_FIXED_NOREPLACE = 0x100000
_MAP_HUGETLB = 0x40000
_MAP_HUGE_SHIFT = 26

# Device memory is not inherited by a fork: {mmap object: (address, length)}.
_device_memory: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()


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
    reserved = mmap.mmap(
        -1, length + align - PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    address = address_of(reserved)
    start = -address % align
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        calls.mmap(address + start, length, prot, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)
    except OSError as error:
        raise errors.KernelError(error.errno or 0, "mmap", file.path) from None
    reserved.madvise(mmap.MADV_DONTFORK)
    _device_memory[reserved] = (address, len(reserved))
    view = memoryview(reserved)[start : start + length]
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
        raise errors.KernelError(error.errno or 0, "mmap", "anonymous memory") from None


def address_of(buffer: memoryview | mmap.mmap | bytearray) -> int:
    """The address of a writable buffer's first byte. The caller keeps the buffer alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _reserve_in_child() -> None:
    # The child's mmap objects would unmap ranges that are no longer theirs; give them back the
    # addresses, without memory behind them.
    for address, length in _device_memory.values():
        calls.mmap(
            address,
            length,
            0,  # PROT_NONE
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE,
            -1,
            0,
        )


os.register_at_fork(after_in_child=_reserve_in_child)
