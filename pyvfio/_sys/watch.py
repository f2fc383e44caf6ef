"""A callback for the events of an eventfd."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

from pyvfio._sys.closing import Closing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Watch(Closing):
    """A callback that an event loop runs while an eventfd has events, made by ``watch()``.

    The loop keeps it: it lasts until it is closed, the eventfd is closed, or the loop is. Close it
    in the loop's thread.
    """

    __slots__ = ("_callback", "_context", "_name", "_others")

    def __init__(
        self, name: str, callback: Callable[[], object], others: dict[Watch, None]
    ) -> None:
        """Made by :meth:`pyvfio.device.Vector.watch`.

        Args:
            name: the eventfd's, for messages.
            callback: what is called.
            others: all watches of this eventfd in this loop, to which it is added.
        """
        self._name = name
        self._callback = callback
        self._context = contextvars.copy_context()
        self._others: dict[Watch, None] | None = others
        others[self] = None

    @property
    def closed(self) -> bool:
        """Whether the callback is not called any more."""
        return self._others is None

    def close(self) -> None:
        """Call it no more; closing again does nothing."""
        others, self._others = self._others, None
        if others is not None:
            others.pop(self, None)

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call it, if it is not closed; what it raises goes to the loop's exception handler."""
        if self.closed:
            return
        try:
            self._context.run(self._callback)
        except Exception as error:
            loop.call_exception_handler(
                {"message": f"exception in the callback of {self!r}", "exception": error}
            )

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Watch {self._name} by {self._callback!r}{state}>"
