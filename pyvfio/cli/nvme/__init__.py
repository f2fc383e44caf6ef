"""`pyvfio nvme`: an NVMe disk, driven from here instead of by the kernel's driver."""

from __future__ import annotations

import argparse

from pyvfio.cli.nvme import bench, copy, show, transfer

_EPILOG = """\
The device is bound to vfio-pci for the while, reset, and then given back to the driver it had. A
disk that the host uses (mounted, swap space, part of an array) is refused: exit code 5.

example:
  sudo pyvfio nvme identify 0000:01:00.0
  sudo pyvfio nvme read 0000:01:00.0 --lba 0 --blocks 1
  sudo pyvfio nvme copy 0000:01:00.0 backup.img --verify
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "nvme",
        help="an NVMe disk: identify, read, write, copy, measure",
        description="Drive an NVMe disk from this process, past the kernel's driver and its cache.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    below = parser.add_subparsers(required=True, metavar="WHAT")
    for module in (show, transfer, copy, bench):
        module.add_commands(below)
