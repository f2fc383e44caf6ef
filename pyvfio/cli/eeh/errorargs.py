"""The options that say how to inject which error."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyvfio import errors

if TYPE_CHECKING:
    from pyvfio.eeh import InjectedError


def add(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.add_argument(
        "--injector", metavar="NAME", help="what injects; the first that works here if not given"
    )
    parser.add_argument(
        "--function",
        metavar="NAME",
        help="on which access, e.g. load-memory-address (a wrong name lists them); the injector's "
        "own if not given",
    )
    parser.add_argument("--bits", default="32", help="width of the bus error: 32 (default) or 64")
    parser.add_argument(
        "--error-address", default="0", metavar="ADDRESS", help="where; 0 (default): anywhere"
    )
    parser.add_argument(
        "--error-mask", default="0", metavar="MASK", help="bits of the address that must match"
    )


def parse(options: argparse.Namespace) -> InjectedError | None:
    """The error that is asked for; None for the injector's own.

    Raises:
        ArgumentError: the options make no sense.
    """
    from pyvfio.eeh import ErrorFunction, InjectedError

    details = [_number(options, name) for name in ("bits", "error_address", "error_mask")]
    if options.function is None:
        if details != [32, 0, 0]:
            raise errors.ArgumentError(
                "--bits, --error-address and --error-mask go with --function"
            )
        return None
    return InjectedError(ErrorFunction.parse(options.function), *details)


def _number(options: argparse.Namespace, name: str) -> int:
    text = getattr(options, name)
    try:
        return int(text, 0)
    except ValueError:
        raise errors.ArgumentError(f"--{name.replace('_', '-')}: {text!r} is no number") from None
