"""`pyvfio bind` and `pyvfio unbind`."""

from __future__ import annotations

import argparse

from pyvfio.cli import common


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bind = commands.add_parser(
        "bind",
        help="hand devices to vfio-pci",
        description="Take a device from its driver and bind it to vfio-pci. The driver is "
        "remembered until `pyvfio unbind` gives the device back.",
        epilog="example:\n  sudo pyvfio bind 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(bind, several=True)
    bind.add_argument(
        "--force", action="store_true", help="even if the host is using it (disk, network, console)"
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


def run_bind(options: argparse.Namespace) -> None:
    from pyvfio import pci

    for function in map(common.function, options.address):
        before = function.driver
        if pci.bind(function.address, force=options.force):
            print(f"{function.address}: {before or 'no driver'} -> {function.driver}")
        else:
            print(f"{function.address}: {function.driver} already, nothing to do")


def run_unbind(options: argparse.Namespace) -> None:
    from pyvfio import pci

    for function in map(common.function, options.address):
        before = function.driver
        if pci.unbind(function.address):
            print(f"{function.address}: {before} -> {function.driver or 'no driver'}")
        else:
            print(f"{function.address}: not bound by `pyvfio bind`, left alone")
