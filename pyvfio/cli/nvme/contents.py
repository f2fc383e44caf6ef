"""What a disk holds, by the marks that file systems and partition tables leave at its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvfio.drivers.nvme import Namespace

_LOOKED_AT = 128 << 10
# Where and what, first come the ones within which others may lie.
_MARKS = (
    (0x200, b"EFI PART", "a GPT partition table"),
    (0x1000, b"EFI PART", "a GPT partition table"),
    (0x0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0x218, b"LVM2 001", "an LVM volume"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "part of a RAID array"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0x0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0xFF6, b"SWAPSPACE2", "swap space"),
    (0x3, b"NTFS    ", "an NTFS file system"),
    (0x1FE, b"\x55\xaa", "a partition table or boot sector"),
)


def described(disk: Namespace) -> str:
    """What a disk seems to hold, from its first 128 KiB."""
    blocks = min(-(-_LOOKED_AT // disk.block_size), disk.blocks)
    return recognised(bytes(disk.read(0, blocks)))


def recognised(data: bytes) -> str:
    """What the first bytes of a disk are of."""
    for at, mark, what in _MARKS:
        if data.startswith(mark, at):
            return what
    return "data of no kind known here" if any(data) else "zeros, at its beginning"
