"""Reading and writing sysfs attributes."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys.file import File, refused

_NUMBERS = {
    10: re.compile(r"-?[0-9]{1,20}"),
    16: re.compile(r"(?:0x)?[0-9a-fA-F]{1,16}"),
}
"""Those of 64 bits at most: int() takes underlines and other digits as well, and any length."""


def read(path: Path) -> str:
    """An attribute's text, without the newline at its end.

    Raises:
        KernelError: it cannot be read; errno tells why (ENOENT: no such attribute).
    """
    return read_bytes(path).decode(errors="replace").rstrip("\n\0")


def read_bytes(path: Path) -> bytes:
    """A binary attribute's contents, all of it.

    Raises:
        KernelError: it cannot be read.
    """
    with File.open(str(path), os.O_RDONLY) as file:
        pieces = []
        try:
            # From its beginning to its end: some files of debugfs cannot be read at an offset.
            while more := calls.read(file.fileno(), 1 << 16):
                pieces.append(more)
        except OSError as error:
            raise refused(error, "read", str(path)) from None
        return b"".join(pieces)


def number(text: str, path: Path, base: int = 16) -> int:
    """The number that an attribute holds.

    Args:
        text: what was read.
        path: where, for messages.
        base: 10 or 16.

    Raises:
        KernelError: it is not a number (EPROTO).
    """
    if not _NUMBERS[base].fullmatch(text):
        raise nonsense(path, repr(text[:40]), "a number")
    return int(text, base)


def nonsense(path: Path, found: str, wanted: str) -> errors.KernelError:
    """The error for an attribute that holds something else than it must."""
    return errors.KernelError(
        errno.EPROTO, "read", str(path), f"it holds {found}, and must hold {wanted}"
    )


def size(path: Path) -> int:
    """The size that a binary attribute says it has, in bytes.

    Raises:
        KernelError: there is no such attribute.
    """
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise refused(error, "stat", str(path)) from None


def write(path: Path, text: str) -> None:
    """Write an attribute.

    Raises:
        AccessDenied: only root may.
        KernelError: the kernel refused the value.
    """
    with File.open(str(path), os.O_WRONLY) as file:
        file.pwrite(text.encode(), 0)


def link_name(path: Path) -> str | None:
    """The last part of what a link points to (a driver, a group), or None where there is none.

    Raises:
        KernelError: the link cannot be read.
    """
    try:
        return os.path.basename(os.readlink(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise refused(error, "readlink", str(path)) from None


def entries(path: Path) -> list[str]:
    """The names in a directory, sorted; none where there is no such directory.

    Raises:
        OpenFilesLimit: EMFILE.
        KernelError: it cannot be read.
    """
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise refused(error, "listdir", str(path)) from None
