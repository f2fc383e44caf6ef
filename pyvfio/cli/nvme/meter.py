"""How far a transfer is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from pyvfio.cli.nvme.sizes import duration, words

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from typing_extensions import Self

_PATIENCE = 2.0
"""Seconds; what takes no longer shows nothing."""
_REDRAWN = 0.1  # seconds
_STEP = 10  # per cent between lines
_STREAM_STEP = 10.0  # seconds between lines where the end is not known


class Meter:
    """Shows on stderr how many bytes are done, at what rate, and how long the rest will take.

    Attributes:
        done: bytes.
    """

    def __init__(self, title: str, total: int | None, *, shown: bool = True) -> None:
        """A meter that stands at zero.

        Args:
            total: bytes; None if that is not known.
            shown: False for one that only counts.
        """
        self.done = 0
        self._title = title
        self._total = total
        self._began = self._last = time.monotonic()
        self._shown = shown
        self._tenths = 0
        self._bar: tuple[Progress, TaskID] | None = None

    def advance(self, count: int) -> None:
        """So many bytes more are done."""
        self.done += count
        now = time.monotonic()
        if not self._shown or now - self._began < _PATIENCE:
            return
        if self._bar is None and sys.stderr.isatty():
            self._bar = _bar(self._title, self._total)
        if self._bar is not None:
            if now - self._last > _REDRAWN or self.done == self._total:
                self._last = now
                progress, task = self._bar
                progress.update(task, completed=self.done, said=self.said())
        elif self._due(now):
            self._last = now
            print(f"{self._title}: {self.said()}", file=sys.stderr, flush=True)

    def said(self) -> str:
        """How far it is, in words."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rate = self.done / elapsed
        if self._total is None:
            return f"{words(self.done)}, {words(rate)}/s"
        text = f"{words(self.done)} of {words(self._total)}, {words(rate)}/s"
        if self._total:
            text = f"{100 * self.done // self._total} %, {text}"
        if rate and self.done < self._total:
            text += f", {duration((self._total - self.done) / rate)} left"
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def _due(self, now: float) -> bool:
        if not self._total:
            return now - self._last >= _STREAM_STEP
        tenths = 100 // _STEP * self.done // self._total
        due = tenths > self._tenths
        self._tenths = tenths
        return due


def _bar(title: str, total: int | None) -> tuple[Progress, TaskID] | None:
    """A bar, begun now; None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
    except ImportError:
        return None
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        console=Console(stderr=True, highlight=False),
        # Redrawn as bytes come, not by a thread.
        auto_refresh=False,
        transient=True,
    )
    task = progress.add_task(title, total=total, said="")
    progress.start()
    return progress, task
