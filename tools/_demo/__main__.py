"""Show what pyvfio does: on devices of this machine, or on the bench when none is named."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pyvfio import errors
from tools._bench.profiles import POWER8, X86

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
    if status := _bench("run", X86.name, "--", *command).returncode:
        print(f"\nThe demo did not run: the emulated PC ended with status {status}, see above.")
        return status
    return _last_act()


def _last_act() -> int:
    """Show the lost interrupt, where a POWER host can be had; the demo has run in any case."""
    got = _bench("get", POWER8.name, "--json", stdout=subprocess.PIPE)
    if got.returncode == 128 + signal.SIGINT:
        return got.returncode
    if got.returncode:
        reason = json.loads(got.stdout)["error"] if got.stdout else "its set-up failed, see above"
        return _left_out(reason)
    print(
        "\nThe last act is on POWER8: the interrupt that QEMU lost there in 2016, and why\n"
        "(docs/the-lost-interrupt.md). The card is reset by EEH, through the firmware.\n",
        flush=True,
    )
    card = POWER8.device("e1000e")
    policies = ("--policy", "d1f6af6", "--policy", "patched")
    replay = ("pyvfio", "irqroute", "replay", "--device", card.address, *policies)
    status = _bench("run", POWER8.name, "--", *replay).returncode
    if status and status != 128 + signal.SIGINT:
        return _left_out(f"its host ended with status {status}, see above")
    return status


def _left_out(reason: str) -> int:
    print(
        "\nThe demo ran, but for its last act on POWER8 (the interrupt that was lost in 2016):\n"
        f"{reason}\nTo try that again: tools/demo, or tools/bench get {POWER8.name}"
    )
    return 0


def _bench(*arguments: str, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run tools/bench; a signal to us ends the host first."""
    command = [str(_CHECKOUT / "tools/bench"), *arguments]
    with subprocess.Popen(command, stdout=stdout, text=True) as bench:
        try:
            printed, _ = bench.communicate()
        except KeyboardInterrupt:
            bench.terminate()
            bench.communicate()
            return subprocess.CompletedProcess(command, 128 + signal.SIGINT, "")
    return subprocess.CompletedProcess(command, bench.returncode, printed)


if __name__ == "__main__":
    sys.exit(main())
