"""Show what pyvfio does: on devices of this machine, or on the bench when none is named."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pyvfio import errors
from tools._bench.profiles import POWER8, X86, Profile

_CHECKOUT = Path(__file__).resolve().parents[2]
_SHOWN = ("edu", "nvme", "e1000e")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/demo",
        description="Drive PCI devices from Python through VFIO: registers, DMA, interrupts, "
        "isolation. Without --device, on emulated hosts that run Debian's own kernels: a PC, and "
        "for the interrupt that was lost in 2016 a POWER8 host. It takes about two minutes, "
        "and some minutes the first time, when the hosts are downloaded and built.",
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
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="the first argument: show all that apt and pip print; so does PYVFIO_VERBOSE=1",
    )
    options = parser.parse_args(arguments)
    # To end as Ctrl-C does, with devices given back and hosts ended.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if options.device is None:
        return _on_the_bench()
    from tools._demo.story import tell

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
    command = ["tools/demo"]
    for device in X86.devices:
        if device.name in _SHOWN:
            command += ["--device", device.address]
    status = _run(X86, command)
    if status:
        return status
    print(
        "\nThe last act is on POWER8: the interrupt that QEMU lost there in 2016, and why\n"
        "(docs/the-lost-interrupt.md). The card is reset by EEH, through the firmware.\n",
        flush=True,
    )
    card = next(device for device in POWER8.devices if device.name == "e1000e")
    policies = ("--policy", "d1f6af6", "--policy", "patched")
    return _run(POWER8, ["pyvfio", "irqroute", "replay", "--device", card.address, *policies])


def _run(host: Profile, command: Sequence[str]) -> int:
    """Run a command on an emulated host; a signal to us ends the host first."""
    bench = subprocess.Popen([str(_CHECKOUT / "tools/bench"), "run", host.name, "--", *command])
    try:
        return bench.wait()
    except KeyboardInterrupt:
        bench.terminate()
        bench.wait()
        return 130


if __name__ == "__main__":
    sys.exit(main())
