"""Show what pyvfio does: on devices of this machine, or on the bench when none is named."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pyvfio import errors
from tools._bench.profiles import X86

_CHECKOUT = Path(__file__).resolve().parents[2]
_SHOWN = ("edu", "nvme", "e1000e")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/demo",
        description="Drive PCI devices from Python through VFIO: registers, DMA, interrupts, "
        "isolation. Without --device, on an emulated host that runs Debian's own kernel: about a "
        "minute, and some minutes the first time, when the host is downloaded and built.",
        epilog="example:\n  tools/demo\n  sudo tools/demo --device 0000:01:00.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device",
        action="append",
        metavar="BDF",
        help="a device of this machine, bound to vfio-pci for the demo and given back after it; "
        "may be repeated",
    )
    options = parser.parse_args(arguments)
    if options.device is None:
        return _on_the_bench()
    from tools._demo.story import tell

    # To end as Ctrl-C does, with the device given back.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        for address in options.device:
            tell(address)
    except errors.Error as error:
        print(f"tools/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _on_the_bench() -> int:
    print(
        "No --device was named, so the devices are emulated and everything else is real:\n"
        "QEMU starts a PC with an Intel IOMMU, Debian's kernel boots on it, and pyvfio runs\n"
        "there as root.\n",
        flush=True,
    )
    command = [str(_CHECKOUT / "tools/bench"), "run", X86.name, "--", "tools/demo"]
    for device in X86.devices:
        if device.name in _SHOWN:
            command += ["--device", device.address]
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
