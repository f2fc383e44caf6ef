"""ioctl numbers, as ``asm/ioctl.h`` makes them.

A number packs what it does, a type letter, an index and the argument's size. Where those bits lie
depends on the architecture: a number made for x86 is ENOTTY on POWER. A :class:`Request` is the
number for the running machine and can be computed for another.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag
from typing import NamedTuple


class Direction(IntFlag):
    """Which way the argument goes, as the caller sees it: READ is kernel to caller."""

    NONE = 0
    READ = 1
    WRITE = 2


class Encoding(NamedTuple):
    """How an architecture packs an ioctl number: type and nr in 16 bits, then size, then direction.

    Attributes:
        size_bits: width of the size field.
        none: direction bits of a request without argument data (_IOC_NONE).
        read: direction bit of a request that the kernel answers (_IOC_READ).
        write: direction bit of a request that the kernel reads (_IOC_WRITE).
    """

    size_bits: int
    none: int
    read: int
    write: int


GENERIC = Encoding(size_bits=14, none=0, read=2, write=1)
"""``asm-generic/ioctl.h``: x86, arm64, riscv64, s390, loongarch64."""

POWERPC = Encoding(size_bits=13, none=1, read=2, write=4)
"""``arch/powerpc/include/uapi/asm/ioctl.h``."""

HOST = POWERPC if os.uname().machine.startswith("ppc") else GENERIC
"""The running machine's."""


class Request(int):
    """An ioctl number of the running machine that knows what it is made of.

    Attributes:
        name: the kernel's name for it.
        direction: which way the argument goes.
        type: the subsystem's letter, as a number.
        nr: the index within the subsystem.
        size: bytes of the argument (0 where the kernel does not encode it, as in all of VFIO).
    """

    name: str
    direction: Direction
    type: int
    nr: int
    size: int

    def __new__(cls, name: str, direction: Direction, type: int, nr: int, size: int = 0) -> Request:
        self = super().__new__(cls, _encode(HOST, direction, type, nr, size))
        self.name = name
        self.direction = direction
        self.type = type
        self.nr = nr
        self.size = size
        return self

    def encode(self, encoding: Encoding) -> int:
        """The number that the same request has under another encoding."""
        return _encode(encoding, self.direction, self.type, self.nr, self.size)

    def __repr__(self) -> str:
        return f"<{self.name} {int(self):#x}>"


def _encode(encoding: Encoding, direction: Direction, type: int, nr: int, size: int) -> int:
    bits = encoding.none
    if direction:
        bits = (encoding.read if direction & Direction.READ else 0) | (
            encoding.write if direction & Direction.WRITE else 0
        )
    return bits << (16 + encoding.size_bits) | size << 16 | type << 8 | nr


def IO(name: str, type: int, nr: int) -> Request:  # noqa: N802 (the kernel's _IO)
    """A request whose number says nothing of its argument."""
    return Request(name, Direction.NONE, type, nr)


def IOR(name: str, type: int, nr: int, argument: type[ctypes._CData]) -> Request:  # noqa: N802
    """A request whose argument the kernel fills."""
    return Request(name, Direction.READ, type, nr, ctypes.sizeof(argument))


def IOW(name: str, type: int, nr: int, argument: type[ctypes._CData]) -> Request:  # noqa: N802
    """A request whose argument the kernel reads."""
    return Request(name, Direction.WRITE, type, nr, ctypes.sizeof(argument))


def IOWR(name: str, type: int, nr: int, argument: type[ctypes._CData]) -> Request:  # noqa: N802
    """A request whose argument the kernel reads and fills."""
    return Request(name, Direction.READ | Direction.WRITE, type, nr, ctypes.sizeof(argument))
