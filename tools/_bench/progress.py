"""Progress on stderr, one line a step: a line that moves on a terminal, a plain one elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.status import Status

_console = Console(stderr=True, highlight=False)
_line_is_open = False


def say(message: str) -> None:
    """Write one line to stderr."""
    if _console.is_terminal:
        _console.print(message, markup=False, soft_wrap=True)
    else:
        _write("\n" * _line_is_open + message + "\n")


def _write(text: str) -> None:
    global _line_is_open
    print(text, end="", file=sys.stderr, flush=True)
    _line_is_open = not text.endswith("\n")


class Step:
    """One thing that takes time; `update` says how far it is."""

    def __init__(self, title: str, status: Status | None) -> None:
        self._title = title
        self._status = status

    def update(self, detail: str) -> None:
        """Show how far it is; on a terminal only."""
        if self._status is not None:
            self._status.update(f"{self._title} [dim]{detail}")


@contextlib.contextmanager
def step(title: str) -> Iterator[Step]:
    """Show `title` while the body runs, then how long it took; on a terminal from 2 s on."""
    start = time.monotonic()
    if _console.is_terminal:
        with _console.status(title) as status:
            yield Step(title, status)
    else:
        _write("\n" * _line_is_open + f"{title} ...")
        try:
            yield Step(title, None)
        except BaseException:
            if _line_is_open:
                _write("\n")
            raise
    took = time.monotonic() - start
    if _line_is_open:
        _write(f" {took:.0f} s\n")
    elif took > 2 or not _console.is_terminal:
        say(f"{title} ... {took:.0f} s")
