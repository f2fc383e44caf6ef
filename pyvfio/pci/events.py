"""Waiting for the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable

# Events do not reach every container, and some conditions have none: look now and then.
_INTERVAL = 0.1


def wait_until(
    condition: Callable[[], bool], timeout: float, *, subsystem: str | None = None
) -> bool:
    """Wait until a condition holds, asking again now and then and at each event of the kernel.

    Args:
        condition: what is waited for.
        timeout: seconds to wait at most.
        subsystem: whose events to watch; they come from the kernel itself, no udevd is needed.

    Returns:
        Whether it holds.
    """
    if condition():
        return True
    deadline = time.monotonic() + timeout
    pause = time.sleep if subsystem is None else _event_waiter(subsystem)
    while not condition():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        pause(min(left, _INTERVAL))
    return True


def _event_waiter(subsystem: str) -> Callable[[float], object]:
    # Imported only here: what is waited for is nearly always there at once.
    import pyudev

    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    monitor.filter_by(subsystem)
    monitor.start()
    return lambda seconds: monitor.poll(seconds)
