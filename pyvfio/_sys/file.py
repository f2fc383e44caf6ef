"""One owner for a file descriptor."""

from __future__ import annotations

import errno
import os
import sys
import threading
import warnings
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from typing_extensions import Self

    from pyvfio._sys.hub import Hub
    from pyvfio.abi.ioctl import Request

# A call that signals interrupt this often is given up: a timer may leave it no time to finish.
_MOST_TRIES = 1000

# Held while descriptors are closed, or given to somebody who must not find their number reused, and
# while the last call on a closed one leaves it.
# Reentrant: a signal handler may close what the main thread is about to wait for.
lock = threading.RLock()


def refused(error: OSError, call: str, path: str) -> errors.KernelError:
    """The error for a refused call, where the errno means the same for every call."""
    number = error.errno or 0
    if number == errno.EMFILE:
        hint = "the process has no file descriptor left; raise the limit (ulimit -n)"
        return errors.OpenFilesLimit(number, call, path, hint)
    return errors.KernelError(number, call, path)


class _Descriptor:
    """The descriptor of a file, and what is to be done where the file is forgotten.

    Attributes:
        fd: the descriptor.
        path: the file's name.
        hubs: of the event loops that poll it.
        closed: whether the file was closed, and only the last call on it has yet to end.
    """

    __slots__ = ("closed", "fd", "hubs", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.hubs: Sequence[weakref.ref[Hub]] = ()
        self.closed = False


class _Open(_Descriptor):
    """One that is open: closed when its file is gone.

    An object of its own, which is made a :class:`_Descriptor` once it is closed, because a
    finalizer is Python code: what a signal's handler raises in one, as Ctrl-C's does, is dropped.
    So a file that was closed must have none.
    """

    __slots__ = ()

    def __del__(self) -> None:
        try:
            if not self.closed:
                text = f"unclosed file {self.path}, descriptor {self.fd}"
                warnings.warn(text, ResourceWarning, source=self, stacklevel=2)
        finally:
            with deferred_signals(), lock:
                release(self.fd, self.hubs)
                _live.pop(self.fd, None)
                with suppress(OSError):
                    calls.close(self.fd)


def release(fd: int, hubs: Sequence[weakref.ref[Hub]]) -> None:
    """Take a descriptor that is about to be closed out of event loops, with the lock held."""
    for reference in hubs:
        if (hub := reference()) is not None:
            hub.forget(fd)


class File(Closing):
    """A file descriptor and the one right to close it.

    Threads may share it. Where one thread closes it while others make calls on it, the last of
    these closes the descriptor: its number cannot become another file's before. A call made
    elsewhere, on the number that :meth:`fileno` gave, does not keep it.

    After a fork the child's copy is closed at once, so that a child never keeps a device open; what
    was built on it raises :class:`~pyvfio.errors.Closed` there.

    Attributes:
        path: the file's name, for messages.
        watcher: told of each ioctl after it was made: request, argument, and the result or the
            refusal; None for nobody.
    """

    __slots__ = ("__weakref__", "_closing", "_descriptor", "_fd", "path", "watcher")

    watcher: Callable[[Request, Any, int | OSError], None] | None

    def __init__(self, fd: int, path: str) -> None:
        """Own an open descriptor; :meth:`open` and :meth:`made_by` make one.

        Args:
            fd: the descriptor.
            path: the file's name, for messages.
        """
        self._fd = fd
        self._descriptor: _Descriptor = _Open(fd, path)
        self.path = path
        self.watcher = None
        self._closing: list[int] = []  # the descriptor of a closed file, for the last call on it
        _live[fd] = weakref.ref(self)

    @classmethod
    def open(cls, path: str, flags: int = os.O_RDWR) -> Self:
        """Open a file, close-on-exec.

        Raises:
            AccessDenied: EACCES or EPERM.
            OpenFilesLimit: EMFILE.
            KernelError: anything else; a missing file keeps errno ENOENT.
        """

        def opened() -> int:
            try:
                return calls.open(path, flags | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EPERM):
                    raise errors.AccessDenied(error.errno, "open", path) from None
                raise refused(error, "open", path) from None

        return cls.made_by(opened, path)

    @classmethod
    def made_by(cls, call: Callable[[], int], path: str) -> Self:
        """Own the descriptor that a system call returns, which no signal can come between.

        Args:
            call: makes the call.
            path: as for the constructor.
        """
        with deferred_signals() as section:
            file = cls(call(), path)
            section.undo(file.close)
            return file

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
            raise self.closed_error()
        return self._fd

    # A keyword-only argument would make each call a tenth slower: CPython does not specialize them.
    def ioctl(self, request: Request, arg: Any = 0, retry: bool = True) -> int:
        """ioctl(2).

        Args:
            request: what to do; its name appears in errors.
            arg: an int, or a writable buffer (ctypes structure, bytearray) that the kernel reads
                and may change.
            retry: make the call again when a signal interrupted it. Its handler is called before.

        Returns:
            The call's own result, never negative.

        Raises:
            KernelError: the kernel refused.
            Closed: the file was closed.
        """
        try:
            result = calls.ioctl(self._fd, request, arg)
            if self.watcher is not None:
                self.watcher(request, arg, result)
            return result
        except OSError as error:
            if isinstance(error, errors.Error):  # of the watcher
                raise
            if error.errno == errno.EINTR and retry:
                return self._ioctl_again(request, arg)
            raise self._ioctl_refused(error, request, arg) from None
        except ValueError:
            if self._fd < 0:
                raise self.closed_error() from None
            raise
        finally:
            if self._fd < 0:
                self._leave()

    def pread(self, size: int, offset: int) -> bytes:
        """Read exactly `size` bytes at `offset`.

        Raises:
            KernelError: the kernel refused, or gave fewer bytes (EIO).
            Closed: the file was closed.
        """
        try:
            data = calls.pread(self.fileno(), size, offset)
        except OSError as error:
            raise self.refused(error, "pread") from None
        finally:
            if self._fd < 0:
                self._leave()
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
        try:
            count = calls.pwrite(self.fileno(), data, offset)
        except OSError as error:
            raise self.refused(error, "pwrite") from None
        finally:
            if self._fd < 0:
                self._leave()
        if count != len(data):
            raise errors.KernelError(
                errno.EIO, "pwrite", self.path, f"{count} of {len(data)} bytes at {offset:#x}"
            )

    def close(self) -> None:
        """Close the descriptor; closing again does nothing.

        Raises:
            KernelError: the kernel reported an error; the descriptor is gone all the same.
        """
        with deferred_signals():
            # Closed first: a call that begins from now on finds that.
            fd, self._fd = self._fd, -1
            if fd >= 0:
                self._descriptor.closed = True
                self._release(fd)
            self._leave()

    def _ioctl_again(self, request: Request, arg: Any) -> int:
        for left in reversed(range(_MOST_TRIES - 1)):
            try:
                # By fileno(): the signal's handler may have closed the file.
                result = calls.ioctl(self.fileno(), request, arg)
            except OSError as error:
                if error.errno != errno.EINTR or not left:
                    raise self._ioctl_refused(error, request, arg) from None
            else:
                break
        if self.watcher is not None:
            self.watcher(request, arg, result)
        return result

    def _ioctl_refused(self, error: OSError, request: Request, arg: Any) -> errors.KernelError:
        if self.watcher is not None:
            self.watcher(request, arg, error)
        return self.refused(error, request.name)

    def _release(self, fd: int) -> None:
        """Hand the descriptor of a file that is closed now to the last call on it."""
        self._closing.append(fd)

    def _leave(self) -> None:
        """No more is done here with the file since it is closed: let the last one close it."""
        with deferred_signals(), lock:
            try:
                fd = self._closing.pop()  # ours alone: a signal handler may come here too
            except IndexError:  # another was the last, or it was closed before
                return
            if self._in_use(sys._getframe(1)):
                try:
                    self._wake(fd)
                finally:
                    self._closing.append(fd)
                return
            self._ended(fd)
            try:
                calls.close(fd)
            except OSError as error:
                # Linux has closed it whatever it says; EINTR is not even an error.
                if error.errno != errno.EINTR:
                    raise self.refused(error, "close") from None

    def _ended(self, fd: int) -> None:
        """Leave nothing to be done when the file is gone."""
        self._descriptor.__class__ = _Descriptor
        _live.pop(fd, None)

    def _in_use(self, leaving: FrameType) -> bool:
        """Whether a thread is within a call on it.

        That is looked up when a file is closed: keeping count of it would cost each call.

        Args:
            leaving: of this thread, which is within that one no more.
        """
        frames = {**sys._current_frames(), threading.get_ident(): leaving.f_back}
        for frame in frames.values():
            while frame is not None:
                if frame.f_code in calls_on_files and frame.f_locals.get("self") is self:
                    return True
                frame = frame.f_back
        return False

    def _wake(self, fd: int) -> None:
        """Make those return that wait in a call on the descriptor, where that is possible."""

    def _abandon(self) -> None:
        """Close the descriptor and nothing else, in the child of a fork."""
        fds = [self._fd, *self._closing]
        self._fd = -1
        self._closing.clear()
        for fd in fds:
            if fd >= 0:
                self._ended(fd)
                with suppress(OSError):
                    calls.close(fd)

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd={self._fd}"
        return f"<{type(self).__name__} {self.path} {state}>"

    def refused(self, error: OSError, call: str) -> errors.KernelError:
        """The error for a call that the kernel refused on this file."""
        return refused(error, call, self.path)

    def closed_error(self) -> errors.Closed:
        """The error for using it now that it is closed."""
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


# The code of the methods that make a call on the descriptor.
calls_on_files = {method.__code__ for method in (File.ioctl, File.pread, File.pwrite)}

# By descriptor. References without callbacks, which are Python code as finalizers are.
_live: dict[int, weakref.ref[File]] = {}


def _close_in_child() -> None:
    global lock
    lock = threading.RLock()  # another thread of the parent may have held it
    for reference in list(_live.values()):
        if (file := reference()) is not None:
            # Not what a subclass makes of closing: the parent must not notice.
            file._abandon()


os.register_at_fork(after_in_child=_close_in_child)
