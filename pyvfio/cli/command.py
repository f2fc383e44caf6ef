"""The command line's frame: subcommands, errors, exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from pyvfio import errors
from pyvfio.cli import common

# Each command's module. Only that of the command that is run is imported, which takes time.
_MODULES = {
    "list": "buslist",
    "show": "show",
    "bind": "binding",
    "unbind": "binding",
    "read": "access",
    "write": "access",
    "shell": "shell",
    "eeh": "eeh",
    "irqroute": "irqroute",
    "nvme": "nvme",
}

_EPILOG = """\
exit codes:
  0  done
  1  the kernel refused, or anything not named below
  2  the arguments make no sense
  3  no such device
  4  the host is not set up: not bound, no IOMMU or interrupt remapping, group not viable, no VFIO,
     no KVM
  5  the host is using the device, or somebody else holds it
  6  the host has no EEH (`pyvfio eeh` on other hosts than POWER, or with EEH off)
  130  interrupted

example:
  pyvfio list
  sudo pyvfio bind 0000:01:00.0
  sudo pyvfio read 0000:01:00.0 bar0+0x0 bar0+0x8/64 config+0x0/16
  sudo pyvfio unbind 0000:01:00.0

The tests for a device of your own (tools/hwtest) and the emulated hosts for those who have none
(tools/bench) are in the project's source tree, not in the installed package.
"""


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Build the command line.

    Args:
        command: The first argument; where it names a command, what is built for the others is left
            out.
    """
    top = argparse.ArgumentParser(
        prog="pyvfio",
        description="Drive PCI devices through Linux VFIO.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    modules = [_MODULES[command]] if command in _MODULES else dict.fromkeys(_MODULES.values())
    for module in modules:
        importlib.import_module(f"pyvfio.cli.{module}").add_commands(commands)
    return top


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; None for this process's own.

    Returns:
        The exit code; see ``pyvfio --help``.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    completing = "_ARGCOMPLETE" in os.environ
    top = parser(words[0] if words and not completing else None)
    if completing:
        try:
            import argcomplete
        except ImportError:
            pass
        else:
            argcomplete.autocomplete(top)
    options = top.parse_args(words)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except errors.Error as error:
        common.notice(str(error))
        return common.exit_code(error)
    except KeyboardInterrupt:
        print("pyvfio: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has seen enough (head, less); what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status or 0
