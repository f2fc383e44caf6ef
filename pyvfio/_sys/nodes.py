"""What kind of file a path leads to, without waiting for a file server."""

from __future__ import annotations

import ctypes
import stat
import struct
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
]

# linux/fcntl.h, linux/stat.h
_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE = 0x1
_STATX_SIZE = 256
_STX_MODE = struct.Struct("=28xH")
_STX_RDEV = struct.Struct("=128xII")


def new_buffer() -> ctypes.Array[ctypes.c_char]:
    """Room for the kernel's answer."""
    return ctypes.create_string_buffer(_STATX_SIZE)


class Node(NamedTuple):
    """A device node, by what it stands for."""

    block: bool
    major: int
    minor: int

    @classmethod
    def parse(cls, text: str, *, block: bool) -> Node | None:
        """From ``"major:minor"``, as sysfs writes it; None where it is anything else."""
        major, _, minor = text.partition(":")
        if not (major.isdecimal() and minor.isdecimal()):
            return None
        return cls(block, int(major), int(minor))

    @property
    def number(self) -> str:
        """``"major:minor"``."""
        return f"{self.major}:{self.minor}"


def node_at(path: str, buffer: ctypes.Array[ctypes.c_char] | None = None) -> Node | None:
    """The device node at a path; None where there is another file, or none.

    Unlike stat(2) it does not ask a file server, which may no longer answer: the type and the
    number of a node never change.

    Args:
        path: the path.
        buffer: what :func:`new_buffer` gave, to be quick with many paths; one thread may use it.
    """
    if buffer is None:
        buffer = new_buffer()
    name = path.encode(errors="surrogateescape")
    if _libc.statx(_AT_FDCWD, name, _AT_STATX_DONT_SYNC, _STATX_TYPE, buffer):
        return None
    (mode,) = _STX_MODE.unpack_from(buffer)
    if not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
        return None
    return Node(stat.S_ISBLK(mode), *_STX_RDEV.unpack_from(buffer))
