"""Writing an initramfs: a cpio archive in the kernel's format, everything in it owned by root."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def _entry(inode: int, path: str, mode: int, data: bytes, rdev: tuple[int, int] = (0, 0)) -> bytes:
    # "newc" of Documentation/driver-api/early-userspace/buffer-format.rst: thirteen numbers of
    # eight hexadecimal digits, then name and data, each padded to four bytes.
    name = path.encode() + b"\0"
    links, owner, group, mtime, device, check = 1, 0, 0, 0, (0, 0), 0
    numbers = (inode, mode, owner, group, links, mtime, len(data), *device, *rdev, len(name), check)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return _padded(header + name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _tree(root: Path) -> Iterator[Path]:
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted((*directories, *files)):
            yield Path(directory, name)


def write(root: Path, output: BinaryIO) -> None:
    """Write the tree at `root`, with the device nodes that init needs before it mounts /dev.

    Args:
        root: A directory that may belong to an ordinary user.
        output: Where the archive goes.
    """
    inode = 1
    for path in _tree(root):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            data = os.readlink(path).encode()
        elif stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
        else:
            data = b""
        output.write(_entry(inode, str(path.relative_to(root)), status.st_mode, data))
        inode += 1
    output.write(_entry(inode, "dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)))
    output.write(_entry(0, "TRAILER!!!", 0, b""))
