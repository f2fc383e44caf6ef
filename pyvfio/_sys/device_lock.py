"""Requests for which the kernel needs its lock of a device.

The kernel answers EAGAIN instead of waiting for the lock, since its holder may be waiting for this
process: a host that takes a device away holds the lock until the device is closed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from pyvfio import errors

_T = TypeVar("_T")

_TIMEOUT = 1.0  # seconds: others than a removal hold it for less
_PAUSE = 0.01  # seconds


def retry_while_locked(call: Callable[[], _T]) -> _T:
    """Make a call again while the kernel cannot get its lock of the device, for up to a second.

    Raises:
        Busy: the lock was held all the time.
        KernelError: the kernel refused otherwise.
    """
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            return call()
        except errors.KernelError as error:
            if error.errno != errno.EAGAIN:
                raise
            if time.monotonic() >= deadline:
                raise errors.Busy.from_call(
                    error,
                    f"the host has held its lock of the device for {_TIMEOUT:g} s, as it does "
                    "while it removes, resets or rebinds one. If it is removing the device, close "
                    "it here; otherwise try again",
                ) from None
        time.sleep(_PAUSE)
