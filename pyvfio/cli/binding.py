"""`pyvfio bind` and `pyvfio unbind`."""

from __future__ import annotations

import argparse

from pyvfio.cli import common


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bind = commands.add_parser(
        "bind",
        help="hand a device to vfio-pci",
        description="Take a device from its driver and bind it to vfio-pci. The driver is "
        "remembered until `pyvfio unbind` gives the device back.",
        epilog="example:\n  sudo pyvfio bind 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(bind)
    bind.add_argument(
        "--force", action="store_true", help="even if the host is using it (disk, network, console)"
    )
    bind.set_defaults(run=run_bind)
    unbind = commands.add_parser(
        "unbind",
        help="give a device back to the driver it had",
        description="Undo `pyvfio bind`: the device goes back to the driver it had.",
        epilog="example:\n  sudo pyvfio unbind 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(unbind)
    unbind.set_defaults(run=run_unbind)


def run_bind(options: argparse.Namespace) -> None:
    from pyvfio import pci

    function = common.function(options.address)
    before = function.driver
    pci.bind(function.address, force=options.force)
    print(f"{function.address}: {before or 'no driver'} -> {function.driver}")


def run_unbind(options: argparse.Namespace) -> None:
    from pyvfio import pci

    function = common.function(options.address)
    before = function.driver
    pci.unbind(function.address)
    print(f"{function.address}: {before or 'no driver'} -> {function.driver or 'no driver'}")
