"""Config spaces to test with: dumps of QEMU's devices, and ones built from a list."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from pyvfio.pci.config import ConfigSpace

DUMPS = ("e1000e", "nvme", "root-port", "virtio-net")


def lspci_text(name: str) -> str:
    """What ``lspci -xxxx`` prints for one of `DUMPS` (QEMU 7.2, before firmware touched it).

    The files leave out the lines that are zero all over.
    """
    title, *lines = (Path(__file__).parent / "dumps" / f"{name}.txt").read_text().splitlines()
    shown = dict(line.split(": ", 1) for line in lines)
    offsets = [f"{offset:02x}" for offset in range(0, 4096, 16)]
    zeros = " ".join(["00"] * 16)
    return "\n".join([title, *(f"{at}: {shown.get(at, zeros)}" for at in offsets), ""])


def dump(name: str) -> ConfigSpace:
    """One of `DUMPS`."""
    return ConfigSpace.from_lspci(lspci_text(name))


def as_lspci(data: bytes) -> str:
    """A dump as ``lspci -xxxx`` would print it, readable by ``lspci -F``."""
    lines = (f"{at:02x}: {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16))
    return "\n".join(["00:00.0 Device", *lines, ""])


def build(
    standard: Sequence[tuple[int, bytes]] = (),
    extended: Sequence[tuple[int, bytes]] = (),
    header: dict[int, bytes] | None = None,
    size: int = 4096,
) -> bytes:
    """Config space with these capabilities, one behind the other.

    Args:
        standard: (identifier, what follows the two bytes of its header).
        extended: (identifier, what follows the four bytes of its header); all of version 1.
        header: further bytes by offset.
    """
    data = bytearray(4096)
    link = 0x34
    at = 0x40
    for id, body in standard:
        data[6] |= 0x10
        data[link] = at
        data[at : at + 2 + len(body)] = bytes([id, 0]) + body
        link = at + 1
        at = (at + 2 + len(body) + 3) & ~3
        assert at <= 0x100
    at = 0x100
    for number, (id, body) in enumerate(extended, 1):
        end = (at + 4 + len(body) + 3) & ~3
        last = number == len(extended)
        data[at : at + 4] = struct.pack("<I", id | 1 << 16 | (0 if last else end << 20))
        data[at + 4 : at + 4 + len(body)] = body
        at = end
        assert at <= 0x1000
    for offset, value in (header or {}).items():
        data[offset : offset + len(value)] = value
    return bytes(data[:size])
