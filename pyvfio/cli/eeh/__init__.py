"""`pyvfio eeh`: PEs of POWER: their state, freezes, and the way back."""

from __future__ import annotations

import argparse

from pyvfio.cli.eeh import holding, hostside, status

_EPILOG = """\
A PE is what POWER's PCI host bridge isolates: at an error it freezes.

status, freeze and thaw work from the host's side and never open the device, since opening (and
closing) it through VFIO thaws it. drill, reset, recover and inject hold the device while they last.

exit code 6: this host has no EEH, or it is off.

example:
  pyvfio eeh status all
  sudo pyvfio eeh drill 0000:01:00.0 --recover
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "eeh",
        help="freeze, thaw and recover a device's PE (POWER)",
        description="Extended Error Handling of POWER hosts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    below = parser.add_subparsers(required=True, metavar="WHAT")
    for module in (status, hostside, holding):
        module.add_commands(below)
