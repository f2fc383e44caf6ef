"""An eventfd: the counter through which VFIO and KVM hand over interrupts."""

from __future__ import annotations

import errno
import os
import select

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys.file import _OPEN_FILES_HINT, File


class EventFd(File):
    """A non-blocking eventfd that starts at zero."""

    __slots__ = ("_poll",)

    def __init__(self) -> None:
        try:
            fd = calls.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            number = error.errno or 0
            if number == errno.EMFILE:
                raise errors.OpenFilesLimit(
                    number, "eventfd", "eventfd", _OPEN_FILES_HINT
                ) from None
            raise errors.KernelError(number, "eventfd", "eventfd") from None
        super().__init__(fd, "eventfd")
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def take(self) -> int:
        """The events since the last call, without waiting; 0 when there were none.

        Raises:
            Closed: it was closed.
        """
        try:
            return calls.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0

    def wait(self, timeout: float | None = None) -> int:
        """Wait until there are events, and take them.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            How many events there were; 0 if the time ran out.

        Raises:
            Closed: it was closed.
        """
        count = self.take()
        if count:
            return count
        if timeout is not None and timeout <= 0:
            return 0
        # poll counts milliseconds; round up so that a short wait is never a busy one.
        self._poll.poll(None if timeout is None else -int(-timeout * 1000 // 1))
        return self.take()

    def signal(self, count: int = 1) -> None:
        """Add `count` events, as a device would.

        Raises:
            Closed: it was closed.
        """
        calls.eventfd_write(self.fileno(), count)
