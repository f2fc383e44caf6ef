"""What the subcommands share."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from pyvfio import errors

if TYPE_CHECKING:
    from rich.console import Console

    from pyvfio.pci import Function


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
    argument.completer = _addresses  # type: ignore[attr-defined]


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
        print(f"pyvfio: {said}", file=sys.stderr)


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


def console() -> Console:
    """The terminal.

    Raises:
        Unsupported: rich is not installed; the message says how to have it.
    """
    try:
        from rich.console import Console
    except ImportError:
        raise errors.Unsupported(
            "this output needs the package rich: pip install 'pyvfio[cli]', or use --json"
        ) from None
    return Console(highlight=False)


def _addresses(**_: object) -> list[str]:
    from pyvfio.pci import functions

    return [str(function.address) for function in functions()]
