"""Both ends of a transfer: a range of a namespace, a file, a stream, a hex dump."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyvfio import errors
from pyvfio._sys import File
from pyvfio._sys.file import refused

if TYPE_CHECKING:
    from pyvfio.drivers.nvme import Namespace


class Started(NamedTuple):
    """A read or write that is under way.

    Attributes:
        memory: what it fills or takes; shorter than was asked for where a source ends.
        wait: waits for its end, raises where it failed; does nothing where it has ended.
    """

    memory: memoryview
    wait: Callable[[], object] = bool


class End(Protocol):
    """What is read from or written to.

    Attributes:
        name: for people.
        grain: bytes; offsets and lengths are multiples of it.
        size: bytes that it has, or takes; None if that is not known or not limited.
        again: what was transferred can be read again.
    """

    name: str
    grain: int
    size: int | None
    again: bool

    def read(self, offset: int, memory: memoryview) -> Started:
        """Begin to read at a byte offset."""

    def write(self, offset: int, memory: memoryview) -> Started:
        """Begin to write at a byte offset."""

    def flush(self) -> None:
        """Make what was written last."""


class DiskEnd:
    """A range of a namespace."""

    again = True

    def __init__(self, name: str, disk: Namespace, lba: int = 0) -> None:
        """From a block on, to the end of the namespace.

        Raises:
            RangeError: the namespace ends before that block.
        """
        if lba > disk.blocks:
            raise errors.RangeError(
                f"LBA {lba} is outside: namespace {disk.id} has {disk.blocks} blocks"
            )
        self.name = name
        self.grain = disk.block_size
        self.size: int | None = disk.size - lba * disk.block_size
        self._disk = disk
        self._lba = lba

    def read(self, offset: int, memory: memoryview) -> Started:
        """Begin to read at a byte offset into memory that the device reaches."""
        return Started(memory, self._disk.start_read(self._at(offset), memory).wait)

    def write(self, offset: int, memory: memoryview) -> Started:
        """Begin to write at a byte offset from memory that the device reaches."""
        return Started(memory, self._disk.start_write(self._at(offset), memory).wait)

    def flush(self) -> None:
        """Make what was written survive a loss of power."""
        self._disk.flush()

    def _at(self, offset: int) -> int:
        return self._lba + offset // self.grain


class FileEnd:
    """A file, a block device, or a stream (a pipe, a terminal, /dev/zero), read or written."""

    grain = 1

    def __init__(self, path: str, *, writing: bool) -> None:
        """Open it; "-" is standard input or output.

        A file is emptied at the first write: one that is never begun loses nothing.

        Raises:
            DeviceInUse: a block device that is mounted, or otherwise somebody's own.
            AccessDenied, OpenFilesLimit, KernelError: it cannot be opened.
        """
        standard = path == "-"
        self.name = ("standard output" if writing else "standard input") if standard else path
        self._empty = False
        self._file = _standard(writing, self.name) if standard else _open(path, writing=writing)
        fd = self._file.fileno()
        mode = os.fstat(fd).st_mode
        self.is_disk = stat.S_ISBLK(mode)
        self.again = self.is_disk or (stat.S_ISREG(mode) and not standard)
        # Also of a block device, whose stat tells no size.
        limited = self.is_disk or (self.again and not writing)
        self.size: int | None = os.lseek(fd, 0, os.SEEK_END) if limited else None

    def read(self, offset: int, memory: memoryview) -> Started:
        """Read until the memory is full or the file ends; it is done when this returns."""
        fd = self._file.fileno()
        done = 0
        while done < len(memory):
            rest = memory[done:]
            try:
                count = os.preadv(fd, [rest], offset + done) if self.again else os.readv(fd, [rest])
            except OSError as error:
                raise self._file.refused(error, "read") from None
            if not count:
                break
            done += count
        return Started(memory[:done])

    def write(self, offset: int, memory: memoryview) -> Started:
        """Write all of the memory; it is done when this returns."""
        fd = self._file.fileno()
        done = 0
        if not self._empty:
            self._empty = True
            if self.again and not self.is_disk:
                os.ftruncate(fd, 0)
        try:
            while done < len(memory):
                rest = memory[done:]
                if self.again:
                    done += os.pwritev(fd, [rest], offset + done)
                else:
                    done += os.writev(fd, [rest])
        except BrokenPipeError:
            raise  # the command's frame knows what to do
        except OSError as error:
            raise self._file.refused(error, "write") from None
        return Started(memory)

    def flush(self) -> None:
        """Make what was written last; what is read again then comes from the disk, if it can."""
        if not self.again:
            return
        fd = self._file.fileno()
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self._file.refused(error, "fsync") from None

    def close(self) -> None:
        """Close it; closing again does nothing."""
        self._file.close()


class HexEnd:
    """A hex dump on standard output. Lines that repeat are shown once, then as an asterisk."""

    name = "standard output"
    grain = 1
    size: int | None = None
    again = False

    def __init__(self, first: int) -> None:
        """A dump of what stands from a byte of the disk on."""
        self._at = first
        self._last = b""
        self._repeats = False

    def read(self, offset: int, memory: memoryview) -> Started:
        """A dump is never read."""
        raise errors.ArgumentError("a hex dump cannot be read")

    def write(self, offset: int, memory: memoryview) -> Started:
        """Print it."""
        data = bytes(memory)
        lines = []
        for start in range(0, len(data), 16):
            row = data[start : start + 16]
            if row != self._last:
                lines.append(_row(self._at + start, row))
            elif not self._repeats:
                lines.append("*")
            self._repeats = row == self._last
            self._last = row
        self._at += len(data)
        if lines:
            print("\n".join(lines))
        return Started(memory)

    def flush(self) -> None:
        """Print where it ends."""
        print(f"{self._at:08x}", flush=True)


def _row(address: int, data: bytes) -> str:
    halves = (data[:8].hex(" "), data[8:].hex(" "))
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    return f"{address:08x}  {halves[0]:23}  {halves[1]:23}  |{text}|"


def _standard(writing: bool, name: str) -> File:
    # A descriptor of its own, which may be closed; what print() holds goes out before.
    sys.stdout.flush()
    return File(os.dup(1 if writing else 0), name)


def _open(path: str, *, writing: bool) -> File:
    flags = os.O_CLOEXEC | (os.O_RDWR | os.O_CREAT if writing else os.O_RDONLY)
    is_disk = False
    try:
        mode = os.stat(path).st_mode
        is_disk = stat.S_ISBLK(mode)
        if is_disk:
            flags |= os.O_EXCL
            flags &= ~os.O_CREAT
        elif writing and not stat.S_ISREG(mode):
            flags = os.O_CLOEXEC | os.O_WRONLY
    except OSError:
        # Opening it tells what is the matter. A name in /dev is a disk's, misspelt.
        if os.path.dirname(os.path.abspath(path)) == "/dev":
            flags &= ~os.O_CREAT
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        number = error.errno or 0
        if is_disk and number == errno.EBUSY:
            raise errors.DeviceInUse(
                f"{path} is in use: mounted (it or a partition), swap space, or part of an array "
                "or volume. Unmount or release it first",
                [path],
            ) from None
        if number in (errno.EACCES, errno.EPERM):
            raise errors.AccessDenied(number, "open", path) from None
        raise refused(error, "open", path) from None
    return File(fd, path)
