"""What makes Ctrl-C end a command with one line and status 130, at any instant.

Imports nothing that takes time.
"""

from __future__ import annotations

# The part of `signal` that is built into Python; the rest of that module takes a while to import.
import _signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False  # as in pyvfio/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130

_SOON = 0.05  # seconds


def run(name: str | None, command: Callable[[], int]) -> int:
    """Run the command of this process.

    Args:
        name: the program's, for the line that Ctrl-C ends it with; None for no line.
        command: imports what it needs; its result is the exit status. It raises KeyboardInterrupt
            when it is interrupted, once nothing is left half done.

    Returns:
        The exit status.
    """
    try:
        sys.unraisablehook = _unraisable
        status = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
        if name is not None:
            _say(f"{name}: interrupted\n")
    except BrokenPipeError:
        # The reader has seen enough (head, less); what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    finally:
        # All is done: what comes now would only cut the end of Python short.
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    return status


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    """Raise Ctrl-C again where Python would drop it: in __del__, or while a module is imported."""
    if issubclass(failure.exc_type, KeyboardInterrupt):
        # Not from in here, where it would be dropped as well.
        _signal.signal(_signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), _signal.SIGINT))
        _signal.setitimer(_signal.ITIMER_REAL, _SOON)
    else:
        sys.__unraisablehook__(failure)


def _say(line: str) -> None:
    try:  # noqa: SIM105 - contextlib would have to be imported
        os.write(2, line.encode())
    except OSError:
        pass
