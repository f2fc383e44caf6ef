"""What the kernel logs from now on (Documentation/ABI/testing/dev-kmsg)."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_LONGEST_RECORD = 8192


class KernelLog:
    """The kernel's messages since this was made."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._lines: list[str] = []

    def lines(self) -> list[str]:
        """All messages so far."""
        while True:
            try:
                record = os.read(self._fd, _LONGEST_RECORD).decode(errors="replace")
            except BlockingIOError:
                return self._lines
            except BrokenPipeError:  # some were overwritten before we came
                continue
            self._lines.append(record.partition(";")[2].partition("\n")[0])

    def wait_for(self, wanted: Callable[[str], bool], timeout: float) -> str | None:
        """The first message that is wanted, or None if none came within `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            found = next(filter(wanted, self.lines()), None)
            left = end - time.monotonic()
            if found is not None or left <= 0:
                return found
            select.select([self._fd], [], [], left)

    def wait_for_parts(self, parts: Iterable[str], timeout: float) -> str | None:
        """The first message that has all these parts, as :meth:`wait_for`."""
        parts = tuple(parts)
        return self.wait_for(lambda line: all(part in line for part in parts), timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lines()
        os.close(self._fd)
