"""What people type: tools/bench list, run, shell."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import BenchError, image, machine
from .profiles import PROFILES, Profile
from .progress import say

CHECKOUT = Path(__file__).resolve().parents[2]

USAGE_STATUS = 2
TIME_LIMIT_STATUS = 124  # as timeout(1)
FAILED_STATUS = 125

EXAMPLES = """\
examples:
  tools/bench list
  tools/bench run x86 -- pyvfio list
  tools/bench run x86 -- tools/hwtest --device 0000:00:04.0
  tools/bench run x86 --qemu-args "-device virtio-rng-pci,bus=spare" -- lspci -nn
  tools/bench run power9 --kernel 64k -- pyvfio list
  tools/bench run x86 --with fio -- fio --version
  tools/bench shell x86

exit status: the command's own; 124 at the time limit; 125 when the bench itself failed, with the
end of the guest's console shown.
"""

RUN_NOTES = """\
The command runs as root in the directory you are in, if that is in the checkout, else in the
checkout. The checkout is mounted there at the same path, writable: what the command writes there
stays, and belongs to you. Everything else in the guest is gone with it.

QEMU can trace the accesses that reach a device, one line each, with the physical address; a BAR is
known by its name (edu-mmio, pci-testdev-mmio, nvme, e1000e-mmio, msix-table):
  tools/bench run x86 --qemu-args "-trace memory_region_ops_* -D /tmp/trace" -- COMMAND...
  memory_region_ops_read cpu 1 mr 0x55d7 addr 0xfe200000 value 0x10000ed size 4 name 'edu-mmio'
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Runs commands on real Linux kernels on emulated hosts with PCI devices.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="show all that apt and pip print while the bench is set up; so does PYVFIO_VERBOSE=1",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|run|shell")
    listing = verbs.add_parser("list", help="the emulated hosts and their devices")
    listing.add_argument("--json", action="store_true", help="for programs")
    booting = argparse.ArgumentParser(add_help=False)
    booting.add_argument("profile", metavar="PROFILE", help="one of those that `list` shows")
    booting.add_argument(
        "--qemu-args", type=shlex.split, default=[], metavar="ARGS", help="further QEMU arguments"
    )
    booting.add_argument(
        "--kernel",
        metavar="NAME|PATH",
        help="another of Debian's kernels, by a name that `list` shows, or a kernel image",
    )
    booting.add_argument(
        "--with",
        action="append",
        default=[],
        dest="more",
        metavar="PACKAGE",
        help="have this Debian package there, too, in an image of its own; again for more",
    )
    booting.add_argument(
        "--append", default="", metavar="WORDS", help="further words for the kernel command line"
    )
    booting.add_argument(
        "--accel", choices=("tcg", "kvm"), default="tcg", help="kvm falls back to tcg (default)"
    )
    running = verbs.add_parser(
        "run",
        parents=[booting],
        help="run a command there",
        usage="%(prog)s PROFILE [options] -- COMMAND...",
        epilog=RUN_NOTES + "\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    running.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="end the host after this time, boot included (default %(default)g)",
    )
    running.add_argument("command", nargs="+", metavar="COMMAND", help=argparse.SUPPRESS)
    verbs.add_parser("shell", parents=[booting], help="an interactive shell there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    if parsed.verbose:
        os.environ["PYVFIO_VERBOSE"] = "1"
    try:
        if parsed.verb == "list":
            print(_json() if parsed.json else _listing(), flush=True)
            return 0
        return _boot(parsed)
    except machine.TimeLimit as error:
        say(f"error: {error}")
        return TIME_LIMIT_STATUS
    except (BenchError, OSError, subprocess.CalledProcessError) as error:
        say(f"error: {error}")
        return FAILED_STATUS
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _listing() -> str:
    lines = []
    for profile in PROFILES.values():
        lines.append(f"{profile.name}: {profile.description}")
        lines += [f"  {it.address}  {it.name:<12} {it.description}" for it in profile.devices]
        lines.append(f"  bus={profile.spare_port}    a free port for --qemu-args -device")
        if profile.other_kernels:
            lines.append(
                f"  --kernel {'|'.join(profile.other_kernels)}    another of Debian's kernels"
            )
    return "\n".join(lines)


def _json() -> str:
    profiles = [
        {
            "name": profile.name,
            "description": profile.description,
            "architecture": profile.architecture,
            "other_kernels": profile.other_kernels,
            "spare_port": profile.spare_port,
            "devices": [dataclasses.asdict(device) for device in profile.devices],
        }
        for profile in PROFILES.values()
    ]
    return json.dumps(profiles, indent=2)


def _boot(parsed: argparse.Namespace) -> int:
    profile = PROFILES.get(parsed.profile)
    if profile is None:
        raise BenchError(
            f"there is no profile {parsed.profile!r}; there are: {', '.join(PROFILES)}"
        )
    command = parsed.command if parsed.verb == "run" else []
    if not command and not sys.stdin.isatty():
        raise BenchError("a shell needs a terminal; for a single command take `tools/bench run`")
    own_kernel = None
    if parsed.kernel in profile.other_kernels:
        profile = dataclasses.replace(profile, kernel_package=profile.other_kernels[parsed.kernel])
    elif parsed.kernel:
        own_kernel = Path(parsed.kernel)
        if not own_kernel.is_file():
            raise BenchError(f"--kernel {own_kernel}: no such file")
    _need_packages(profile.qemu_package, "kmod", "debian-archive-keyring")
    ours = image.get(profile, parsed.more)
    options = machine.Options(
        kernel=own_kernel or ours.kernel,
        initrd=ours.initrd,
        time_limit=parsed.timeout if command else None,
        accelerator=parsed.accel,
        qemu_arguments=parsed.qemu_args,
        kernel_arguments=parsed.append,
    )
    here = Path.cwd()
    request = machine.Request(
        checkout=CHECKOUT,
        directory=here if here.is_relative_to(CHECKOUT) else CHECKOUT,
        command=command,
    )
    try:
        return _run(profile, options, request)
    except machine.BootFailed as error:
        if options.accelerator == "tcg":
            raise
        say(f"KVM does not run guests on this machine; going on without it. ({error})")
        return _run(profile, dataclasses.replace(options, accelerator="tcg"), request)


def _need_packages(*packages: str) -> None:
    """Install Debian packages that are missing, as tools/lib/bootstrap.sh does it."""
    script = '. "$0"; need_packages "$@"'
    bootstrap = CHECKOUT / "tools/lib/bootstrap.sh"
    done = subprocess.run(["bash", "-c", script, str(bootstrap), *packages], check=False)
    if done.returncode != 0:
        raise BenchError(f"the bench needs {' '.join(packages)}")


def _run(profile: Profile, options: machine.Options, request: machine.Request) -> int:
    """Run the host; a signal that asks the bench to end ends the host first."""
    received = 0

    async def cancellable() -> int:
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(machine.run(profile, options, request))

        def end(number: int) -> None:
            nonlocal received
            received = number
            running.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, end, number)
        return await running

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        return 128 + received
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain of the same when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
