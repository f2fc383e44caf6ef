"""The system calls that pyvfio makes, by name.

Callers use ``calls.ioctl(...)``, never the function itself, so that replacing an attribute of this
module replaces the call everywhere.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
from collections.abc import Callable
from typing import Any

open = os.open
close = os.close
read = os.read
pread = os.pread
pwrite = os.pwrite
memfd_create = os.memfd_create
eventfd = os.eventfd
eventfd_read = os.eventfd_read
eventfd_write = os.eventfd_write
epoll = select.epoll

# With a writable buffer (a ctypes structure, a bytearray) the kernel's changes are seen in it.
ioctl: Callable[[int, int, Any], int] = fcntl.ioctl

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FAILED = ctypes.c_void_p(-1).value


def mmap(address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
    """mmap(2) at an address, which Python's mmap module cannot do.

    Returns:
        The address mapped.

    Raises:
        OSError: as the kernel says.
    """
    result = _mmap(address, length, prot, flags, fd, offset)
    if result is None or result == _MAP_FAILED:
        raise _error()
    return int(result)


def munmap(address: int, length: int) -> None:
    """munmap(2).

    Raises:
        OSError: as the kernel says.
    """
    if _munmap(address, length):
        raise _error()


def madvise(address: int, length: int, advice: int) -> None:
    """madvise(2).

    Raises:
        OSError: as the kernel says.
    """
    if _madvise(address, length, advice):
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
