"""`pyvfio bind` and `pyvfio unbind`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio._sys.text import printable
from pyvfio.cli import common
from pyvfio.cli.process import INTERRUPTED

if TYPE_CHECKING:
    from pyvfio.pci import Function


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bind = commands.add_parser(
        "bind",
        help="hand devices to vfio-pci",
        description="Take a device from its driver and bind it to vfio-pci. The driver is "
        "remembered until `pyvfio unbind` gives the device back. Of several devices none is taken "
        "unless all can be.",
        epilog="example:\n  sudo pyvfio bind 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(bind, several=True)
    bind.add_argument(
        "--force",
        action="store_true",
        help="even if the host is using it (disk, network, console, a program); says what for",
    )
    bind.set_defaults(run=run_bind)
    unbind = commands.add_parser(
        "unbind",
        help="give devices back to the drivers they had",
        description="Undo `pyvfio bind`: the device goes back to the driver it had.",
        epilog="example:\n  sudo pyvfio unbind 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(unbind, several=True)
    unbind.set_defaults(run=run_unbind)


def run_bind(options: argparse.Namespace) -> int:
    from pyvfio import pci

    def check(function: Function) -> None:
        pci.check_bindable(function.address, force=options.force)

    def bind(function: Function) -> None:
        before = function.driver
        if pci.bind(function.address, force=options.force, notice=common.notice):
            _say(f"{function.address}: {before or 'no driver'} -> {function.driver}")
        else:
            _say(f"{function.address}: {function.driver} already, nothing to do")

    return _one_by_one(options.address, bind, check)


def run_unbind(options: argparse.Namespace) -> int:
    from pyvfio import pci

    def unbind(function: Function) -> None:
        before = function.driver or "no driver"
        if pci.unbind(function.address):
            _say(f"{function.address}: {before} -> {function.driver or 'no driver'}")
        else:
            _say(f"{function.address}: not bound by `pyvfio bind`, left alone")

    return _one_by_one(options.address, unbind)


def _one_by_one(
    addresses: list[str],
    action: Callable[[Function], None],
    check: Callable[[Function], None] | None = None,
) -> int:
    """Do something with each of several functions, up to the first that is refused.

    Args:
        addresses: the functions'; all must be there.
        action: what is done; it prints that.
        check: done with all of several functions before anything is done with the first.

    Returns:
        The exit status.
    """
    functions = [common.function(address) for address in addresses]
    left = list(functions)
    try:
        with common.ended_as_by_ctrl_c():
            if check is not None and len(functions) > 1:
                refused = list(_refused(functions, check))
                for error in refused:
                    common.notice(str(error))
                if refused:
                    common.notice("none of the devices was taken")
                    return common.exit_code(refused[0])
            for function in functions:
                action(function)
                left.remove(function)
    except KeyboardInterrupt:
        bound = " ".join(str(function.address) for function in left if _is_bound(function))
        still = f": still bound: {bound}; `pyvfio unbind {bound}` gives back" if bound else ""
        common.notice(f"interrupted{still}")
        return INTERRUPTED
    except errors.Error as error:
        common.notice(str(error))
        if len(left) > 1:
            rest = " ".join(str(function.address) for function in left[1:])
            common.notice(f"not tried after that: {rest}")
        return common.exit_code(error)
    return 0


def _refused(
    functions: list[Function], check: Callable[[Function], None]
) -> Iterator[errors.Error]:
    for function in functions:
        try:
            check(function)
        except errors.Error as error:
            yield error


def _say(text: str) -> None:
    print(printable(text))


def _is_bound(function: Function) -> bool:
    """Whether pyvfio has bound a function and not given it back."""
    from pyvfio.pci import record

    # One that cannot be told is not claimed to be.
    with contextlib.suppress(errors.Error, OSError):
        return record.load(function) is not None
    return False
