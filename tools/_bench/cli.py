"""The command line: tools/bench list, run, shell, get, soak, clean."""

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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from . import BenchError, cache, emulator, kernel, machine, soak
from .preparation import CHECKOUT, prepare
from .profiles import PROFILES, Profile
from .progress import say
from .suites import DEFAULT_QEMU, ROOT_SUITES

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
  tools/bench run x86 --kernel 7 --qemu 11 -- uname -r
  tools/bench run x86 --with fio -- fio --version
  tools/bench shell x86
  tools/bench clean --unused 7

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
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="list|run|shell|get|soak|clean"
    )
    listing = verbs.add_parser(
        "list", help="the emulated hosts, their devices, kernels and QEMUs, and what is cached"
    )
    listing.add_argument("--json", action="store_true", help="for programs")
    cleaning = verbs.add_parser(
        "clean",
        help="remove root file systems, kernels, QEMUs and packages from the cache",
        description="Removes what was made and downloaded for the emulated hosts; the next run "
        "makes it again.",
        epilog="example:\n  tools/bench clean --unused 7",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cleaning.add_argument(
        "--unused",
        type=float,
        metavar="DAYS",
        help="only what was not used for so many days (default: everything)",
    )
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
        "--suite",
        choices=ROOT_SUITES,
        help="take root file system and kernel from this suite of Debian (default: the first that "
        "can be had whole)",
    )
    booting.add_argument(
        "--qemu",
        choices=emulator.NAMES,
        default=DEFAULT_QEMU,
        help="the machine's own QEMU, or another version in a directory of the cache "
        "(default %(default)s)",
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
    getting = verbs.add_parser(
        "get", parents=[booting], help="download and make all that `run` needs, and boot nothing"
    )
    getting.add_argument(
        "--json", action="store_true", help="print what was got, or why it could not be, as JSON"
    )
    soaking = verbs.add_parser(
        "soak",
        help="boot it many times with each QEMU, test a device each time, count what went wrong",
        epilog=soak.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    soaking.add_argument("profile", choices=PROFILES, metavar="PROFILE", help="as for run")
    soak.add_arguments(soaking)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    if parsed.verbose:
        os.environ["PYVFIO_VERBOSE"] = "1"
    # While images are made these end the bench as Ctrl-C does, apt and compilers with it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        if parsed.verb == "list":
            print(_json() if parsed.json else _listing(), flush=True)
            return 0
        if parsed.verb == "get":
            return _get(parsed)
        if parsed.verb == "clean":
            say(f"{_megabytes(cache.clean(parsed.unused))} freed in {cache.directory()}")
            return 0
        if parsed.verb == "soak":
            return soak.soak(parsed)
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
        lines += [
            f"  {it.address}  {it.name:<12} {it.description}; from QEMU {addition.since} on"
            for addition in profile.additions
            for it in addition.devices
        ]
        lines.append(f"  bus={profile.spare_port}    a free port for --qemu-args -device")
        lines.append(f"  --kernel {'|'.join(kernel.names(profile))}")
    lines.append(f"--qemu {'|'.join(emulator.NAMES)} (default {DEFAULT_QEMU})")
    entries = cache.entries()
    lines.append(f"cached in {cache.directory()}:" if entries else "nothing is cached")
    lines += [
        f"  {_megabytes(it.size):>8}  used {it.age / 86400:3.0f} days ago  {it.path.name}"
        for it in entries
    ]
    return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _json() -> str:
    profiles = [
        {
            "name": profile.name,
            "description": profile.description,
            "architecture": profile.architecture,
            "kernels": kernel.names(profile),
            "spare_port": profile.spare_port,
            "devices": [dataclasses.asdict(device) for device in profile.devices],
            "devices_of_newer_qemu": [
                {"since": addition.since, **dataclasses.asdict(device)}
                for addition in profile.additions
                for device in addition.devices
            ],
        }
        for profile in PROFILES.values()
    ]
    cached = [
        {"name": it.path.name, "bytes": it.size, "seconds_since_use": round(it.age)}
        for it in cache.entries()
    ]
    return json.dumps(
        {
            "profiles": profiles,
            "qemus": emulator.NAMES,
            "default_qemu": DEFAULT_QEMU,
            "cached": cached,
        },
        indent=2,
    )


def _get(parsed: argparse.Namespace) -> int:
    try:
        options = _options(_profile(parsed), parsed)
    except BenchError as error:
        if parsed.json:
            print(json.dumps({"profile": parsed.profile, "error": str(error)}))
        raise
    if parsed.json:
        got = {"kernel": options.kernel, "disk": options.disk, "qemu": options.emulator.directory}
        paths = {name: path and str(path) for name, path in got.items()}
        print(json.dumps({"profile": parsed.profile, **paths}))
    return 0


def _profile(parsed: argparse.Namespace) -> Profile:
    if parsed.profile not in PROFILES:
        raise BenchError(
            f"there is no profile {parsed.profile!r}; there are: {', '.join(PROFILES)}"
        )
    return PROFILES[parsed.profile]


def _options(profile: Profile, parsed: argparse.Namespace) -> machine.Options:
    return prepare(
        profile,
        kernel_name=parsed.kernel,
        qemu=parsed.qemu,
        suite=parsed.suite,
        more=parsed.more,
        accelerator=parsed.accel,
        qemu_arguments=parsed.qemu_args,
        kernel_arguments=parsed.append,
        terminal=parsed.verb == "shell",
    )


def _boot(parsed: argparse.Namespace) -> int:
    profile = _profile(parsed)
    words = parsed.command if parsed.verb == "run" else []
    if parsed.verb == "shell" and not sys.stdin.isatty():
        raise BenchError("a shell needs a terminal; for a single command take `tools/bench run`")
    options = _options(profile, parsed)
    here = Path.cwd()
    command = machine.Command(words, here if here.is_relative_to(CHECKOUT) else CHECKOUT)
    time_limit = parsed.timeout if words else None
    try:
        return _run(profile, options, command, time_limit)
    except machine.BootFailed as error:
        if options.accelerator == "tcg":
            raise
        say(f"KVM does not run guests on this machine; going on without it. ({error})")
        options = dataclasses.replace(options, accelerator="tcg")
        return _run(profile, options, command, time_limit)


def _run(
    profile: Profile,
    options: machine.Options,
    command: machine.Command,
    time_limit: float | None,
) -> int:
    """Run the host; a signal that asks the bench to end ends the host first."""
    received = 0

    async def boot_and_run() -> int:
        start = time.monotonic()
        async with machine.boot(profile, options, time_limit) as host:
            left = None if time_limit is None else time_limit - (time.monotonic() - start)
            stdout, stderr = _writer(sys.stdout), _writer(sys.stderr)
            return await host.run(command, stdout, stderr, left, of=time_limit)

    async def cancellable() -> int:
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(boot_and_run())

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
        # The reader of our output has gone; Python would complain of the same when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _writer(stream: TextIO) -> machine.Write:
    def write(data: bytes) -> None:
        stream.buffer.write(data)
        stream.buffer.flush()

    return write
