"""One owner for a file descriptor."""

from __future__ import annotations

import errno
import os
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from pyvfio.abi.ioctl import Request


def refused(error: OSError, call: str, path: str) -> errors.KernelError:
    """The error for a refused call, where the errno means the same for every call."""
    number = error.errno or 0
    if number == errno.EMFILE:
        hint = "the process has no file descriptor left; raise the limit (ulimit -n)"
        return errors.OpenFilesLimit(number, call, path, hint)
    return errors.KernelError(number, call, path)


class File(Closing):
    """A file descriptor and the one right to close it.

    After a fork the child's copy is closed at once, so that a child never keeps a device open; what
    was built on it raises :class:`~pyvfio.errors.Closed` there.

    Attributes:
        path: the file's name, for messages.
        watcher: told of each ioctl after it was made: request, argument, and the result or the
            refusal; None for nobody.
    """

    __slots__ = ("__weakref__", "_fd", "path", "watcher")

    watcher: Callable[[Request, Any, int | OSError], None] | None

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path
        self.watcher = None
        _live.add(self)

    @classmethod
    def open(cls, path: str, flags: int = os.O_RDWR) -> Self:
        """Open a file, close-on-exec.

        Raises:
            AccessDenied: EACCES or EPERM.
            OpenFilesLimit: EMFILE.
            KernelError: anything else; a missing file keeps errno ENOENT.
        """
        try:
            return cls(calls.open(path, flags | os.O_CLOEXEC), path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise errors.AccessDenied(error.errno, "open", path) from None
            raise refused(error, "open", path) from None

    @property
    def closed(self) -> bool:
        """Whether the descriptor is gone."""
        return self._fd < 0

    def fileno(self) -> int:
        """The descriptor's number.

        Raises:
            Closed: it was closed.
        """
        if self._fd < 0:
            raise self._closed()
        return self._fd

    def ioctl(self, request: Request, arg: Any = 0) -> int:
        """ioctl(2).

        Args:
            request: what to do; its name appears in errors.
            arg: an int, or a writable buffer (ctypes structure, bytearray) that the kernel reads
                and may change.

        Returns:
            The call's own result, never negative.

        Raises:
            KernelError: the kernel refused.
            Closed: the file was closed.
        """
        try:
            result = calls.ioctl(self._fd, request, arg)
        except OSError as error:
            if self.watcher is not None:
                self.watcher(request, arg, error)
            raise self.refused(error, request.name) from None
        except ValueError:
            if self._fd < 0:
                raise self._closed() from None
            raise
        if self.watcher is not None:
            self.watcher(request, arg, result)
        return result

    def pread(self, size: int, offset: int) -> bytes:
        """Read exactly `size` bytes at `offset`.

        Raises:
            KernelError: the kernel refused, or gave fewer bytes (EIO).
            Closed: the file was closed.
        """
        fd = self.fileno()
        try:
            data = calls.pread(fd, size, offset)
        except OSError as error:
            raise self.refused(error, "pread") from None
        if len(data) != size:
            raise errors.KernelError(
                errno.EIO, "pread", self.path, f"{len(data)} of {size} bytes at {offset:#x}"
            )
        return data

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`.

        Raises:
            KernelError: the kernel refused, or took fewer bytes (EIO).
            Closed: the file was closed.
        """
        fd = self.fileno()
        try:
            count = calls.pwrite(fd, data, offset)
        except OSError as error:
            raise self.refused(error, "pwrite") from None
        if count != len(data):
            raise errors.KernelError(
                errno.EIO, "pwrite", self.path, f"{count} of {len(data)} bytes at {offset:#x}"
            )

    def close(self) -> None:
        """Close the descriptor; closing again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            calls.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd={self._fd}"
        return f"<{type(self).__name__} {self.path} {state}>"

    def refused(self, error: OSError, call: str) -> errors.KernelError:
        """The error for a call that the kernel refused on this file."""
        return refused(error, call, self.path)

    def _closed(self) -> errors.Closed:
        return errors.Closed(f"{self.path} is closed (or was opened before this process forked)")


# For these ENODEV means that there is nothing to reset (vfio_pci_core.c).
_WITHOUT_SLOT = ("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", "VFIO_DEVICE_PCI_HOT_RESET")


class DeviceFile(File):
    """A VFIO device's descriptor: where ENODEV means that the device has gone."""

    __slots__ = ()

    def refused(self, error: OSError, call: str) -> errors.KernelError:
        if error.errno == errno.ENODEV and call in _WITHOUT_SLOT:
            meaning = "no reset of a slot or bus reaches this device alone: it is on a root bus"
            return errors.KernelError(error.errno, call, self.path, meaning)
        if error.errno == errno.ENODEV:
            meaning = "the device was removed"
            if call in ("pread", "pwrite"):
                meaning += ", or (POWER) its PE is being reset"
            return errors.DeviceGone(error.errno, call, self.path, meaning)
        return super().refused(error, call)


_live: weakref.WeakSet[File] = weakref.WeakSet()


def _close_in_child() -> None:
    for file in list(_live):
        # Not what a subclass makes of it: the parent must not notice.
        File.close(file)


os.register_at_fork(after_in_child=_close_in_child)
