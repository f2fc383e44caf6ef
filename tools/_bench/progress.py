"""What is going on, on stderr: a line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.status import Status

_console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Write one line to stderr."""
    if _console.is_terminal:
        _console.print(message, markup=False, soft_wrap=True)
    else:
        print(message, file=sys.stderr, flush=True)


class Step:
    """One thing that takes time; `update` says how far it is."""

    def __init__(self, title: str, status: Status | None) -> None:
        self._title = title
        self._status = status

    def update(self, detail: str) -> None:
        """Show how far it is; on a terminal only."""
        if self._status is not None:
            self._status.update(f"{self._title} [dim]{detail}")

    def hide(self) -> None:
        """Leave the terminal to others, for good."""
        if self._status is not None:
            self._status.stop()


@contextlib.contextmanager
def step(title: str) -> Iterator[Step]:
    """Show `title` while the body runs, and how long it took where it was more than 2 s."""
    start = time.monotonic()
    if not _console.is_terminal:
        say(f"{title} ...")
        yield Step(title, None)
    else:
        with _console.status(title) as status:
            yield Step(title, status)
    seconds = time.monotonic() - start
    if seconds > 2:
        say(f"{title}: {seconds:.0f} s")
