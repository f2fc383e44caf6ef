"""What the subcommands share."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio._sys.text import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pyvfio.pci import Function

# Characters of a line that is never folded.
_ENDLESS = 1 << 16


def add_address(
    parser: argparse.ArgumentParser, *, several: bool = False, or_all: bool = False
) -> None:
    """The argument BDF, with the machine's own addresses for tab completion."""
    argument = parser.add_argument(
        "address",
        metavar="BDF|all" if or_all else "BDF",
        nargs="+" if several else None,
        help="the device's address, as 0000:01:00.0 or 01:00.0" + ("; or all" if or_all else ""),
    )
    argument.completer = addresses  # type: ignore[attr-defined]


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def function(text: str) -> Function:
    """The function at an address.

    Raises:
        ArgumentError: the text is no address.
        DeviceNotFound: there is nothing there.
    """
    from pyvfio.pci import Address, Function

    return Function(Address.parse(text))


def say_if_frozen(function: Function) -> None:
    """Say what opening the function is about to undo, if its PE is frozen (POWER)."""
    from pyvfio.eeh.host import frozen_before_open

    if (said := frozen_before_open(function)) is not None:
        notice(said)


def refuse_bridge(function: Function) -> None:
    """Refuse a bridge, which nobody can hold.

    Raises:
        Unsupported: it is one.
    """
    if function.is_bridge:
        raise errors.Unsupported(
            f"{function.address} is a bridge, which VFIO does not drive: name a device below it"
        )


def print_json(value: Any) -> None:
    """One JSON document."""
    print(json.dumps(value, indent=2))


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """What is going on, on a terminal's last line, once it has taken two seconds.

    Gives what is to be called with each thing that begins.
    """
    if not sys.stderr.isatty():
        yield lambda detail: None
        return
    start = time.monotonic()
    shown = 0

    def show(detail: str) -> None:
        nonlocal shown
        if time.monotonic() - start > 2:
            text = printable(f"{title}: {detail}")
            print(f"\r{text:{shown}}", end="", file=sys.stderr, flush=True)
            shown = len(text)

    try:
        yield show
    finally:
        if shown:
            print(f"\r{'':{shown}}\r", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """What ends the command otherwise (SIGTERM, SIGHUP) leaves nothing half done either."""
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        # One that is ignored (nohup) stays so; None is one that is not Python's, which could not
        # be put back.
        if handler not in (signal.SIG_IGN, None):
            before[number] = handler
    try:
        for number in before:
            signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def notice(text: str) -> None:
    """Say something beside the command's output."""
    print(f"pyvfio: {printable(text)}", file=sys.stderr)


def print_wide(renderable: RenderableType) -> None:
    """Print for people on a terminal, and for programs elsewhere: no line is folded there.

    Raises:
        Unsupported: rich is not installed.
    """
    terminal = console()
    if terminal.is_terminal:
        terminal.print(renderable)
        return
    # Whatever COLUMNS says, which is about a terminal.
    terminal.width = _ENDLESS
    with terminal.capture() as capture:
        terminal.print(renderable)
    # Cells are filled up to the width of their column.
    for line in capture.get().splitlines():
        print(line.rstrip())


def require_rich() -> None:
    """Check that output for people can be made.

    Raises:
        Unsupported: rich is not installed; the message says how to have it.
    """
    try:
        import rich.console  # noqa: F401
    except ImportError:
        raise errors.Unsupported(
            "this output needs the package rich: pip install 'pyvfio[cli]', or use --json"
        ) from None


def console(*, width: int | None = None) -> Console:
    """The terminal.

    Args:
        width: characters of a line where there is no terminal to ask.

    Raises:
        Unsupported: rich is not installed; the message says how to have it.
    """
    require_rich()
    from rich.console import Console

    console = Console(highlight=False)
    if width is not None and not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = width
    return console


def exit_code(error: Exception) -> int:
    """The exit status for an error; see ``pyvfio --help``."""
    if isinstance(error, errors.ArgumentError):
        return 2
    if isinstance(error, errors.DeviceNotFound):
        return 3
    if isinstance(error, (errors.DeviceInUse, errors.Busy)):
        return 5
    if isinstance(error, errors.NoEeh):
        return 6
    if isinstance(error, (errors.HostError, errors.NoInterruptRemapping)):
        return 4
    return 1


def addresses(**_: object) -> list[str]:
    """The machine's own addresses, for tab completion."""
    from pyvfio.pci import functions

    return [str(function.address) for function in functions()]
