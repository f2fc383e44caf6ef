"""`pyvfio shell`: a Python prompt with a device open."""

from __future__ import annotations

import argparse
import code
import contextlib

from pyvfio._sys.text import printable
from pyvfio.cli import common

_BANNER = """\
{device.address} is open as `device` ({name}); leaving the prompt closes it.
  device.bars[0].read32(0)      device.config.vendor_id      device.msix.enable(1)
  buffer = device.dma.alloc(4096); buffer.iova; buffer.view"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "shell",
        help="a Python prompt with the device open",
        description="Open a device and start a Python prompt in which it is called `device`.",
        epilog="example:\n  sudo pyvfio shell 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_address(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import pyvfio

    # Line editing and history at the prompt; some Pythons are built without it.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    function = common.function(options.address)
    common.say_if_frozen(function)
    with pyvfio.open(function) as device:
        names = {"pyvfio": pyvfio, "device": device}
        name = printable(function.device_name or "unknown device")
        banner = _BANNER.format(device=device, name=name)
        code.interact(banner, local=names, exitmsg="")
