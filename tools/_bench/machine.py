"""One boot of an emulated host: QEMU started, the command's streams carried, QEMU ended.

Between bench and guest stand virtio-serial ports, each a socket pair made before QEMU starts, so
that nothing is left in a file system: `bench.control` (see guest/init for what is said on it),
`bench.stdout` and `bench.stderr` of the command, and for a shell a virtio console. The kernel's
console goes to a file of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import termios
import tty
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qemu.qmp import ConnectError, Message, QMPClient

from . import BenchError
from .profiles import SCRATCH_BYTES, Profile
from .progress import Step, say, step

TIME_LIMIT_STATUS = 124  # timeout(1) has the same
DIED_STATUS = 125
CONSOLE_TAIL_LINES = 40


class MachineDied(BenchError):
    """The emulated host ended before the command did."""


class TimeLimit(BenchError):
    """The emulated host was ended at the time limit."""


@dataclass(frozen=True)
class Request:
    """What the guest is to do.

    Attributes:
        checkout: The directory to mount there, at the same path.
        directory: Where the command starts.
        command: The command and its arguments; empty for an interactive shell.
    """

    checkout: Path
    directory: Path
    command: Sequence[str]

    def script(self, profile: Profile) -> str:
        """The shell variables that guest/init expects."""
        size = shutil.get_terminal_size()
        variables = {
            "checkout": str(self.checkout),
            "directory": str(self.directory),
            "command": shlex.join(self.command),
            "load": " ".join(profile.load),
            "shell_tty": "" if self.command else profile.shell_tty,
            # A shell sees the edits that its user makes outside; a single command's files are
            # worth caching.
            "mount_options": "cache=loose" if self.command else "cache=none",
            "rows": str(size.lines),
            "columns": str(size.columns),
            "TERM": os.environ.get("TERM", "dumb"),
        }
        lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        return "\n".join([*lines, "export TERM", "# end", ""])


@dataclass(frozen=True)
class Options:
    """How the emulated host is started.

    Attributes:
        kernel: The kernel to boot.
        initrd: The initramfs.
        time_limit: Seconds after which QEMU is ended; None for no limit.
        accelerator: "tcg" or "kvm".
        qemu_arguments: Further arguments for QEMU.
        kernel_arguments: Further words for the kernel's command line.
    """

    kernel: Path
    initrd: Path
    time_limit: float | None
    accelerator: str = "tcg"
    qemu_arguments: Sequence[str] = ()
    kernel_arguments: str = ""


PORTS = ("control", "stdout", "stderr")


def qemu_arguments(
    profile: Profile, options: Options, request: Request, run: Path, sockets: dict[str, int]
) -> list[str]:
    """QEMU's command line.

    Args:
        profile: The emulated host.
        options: How it is started.
        request: What it is to do.
        run: The directory of this run's files.
        sockets: Descriptors of our sockets' other ends: qmp, the PORTS, and terminal for a shell.
    """
    cpu = profile.kvm_cpu if options.accelerator == "kvm" else profile.tcg_cpu
    serial, p9 = profile.channel_bus
    arguments = [profile.qemu, *cpu]
    arguments += [word.format(scratch=run / "scratch") for word in profile.machine]
    arguments += ["-display", "none", "-no-reboot", "-no-user-config"]
    arguments += ["-kernel", str(options.kernel), "-initrd", str(options.initrd)]
    arguments += ["-append", f"{profile.kernel_arguments} {options.kernel_arguments}".strip()]
    arguments += ["-chardev", f"file,id=console,path={run / 'console'}", "-serial"]
    arguments += ["chardev:console", "-device", f"virtio-serial-pci,id=bench,{serial}"]
    for name, descriptor in sockets.items():
        arguments += ["-chardev", f"socket,id={name},fd={descriptor}"]
    arguments += ["-mon", "chardev=qmp,mode=control"]
    if "terminal" in sockets:
        arguments += ["-device", "virtconsole,bus=bench.0,chardev=terminal"]
    for name in PORTS:
        arguments += ["-device", f"virtserialport,bus=bench.0,chardev={name},name=bench.{name}"]
    # The guest's root writes as whoever runs QEMU: files that a command makes in the checkout
    # belong to the user who asked for it. Where QEMU may not give a file away, it does not.
    share = f"local,id=checkout,path={_escaped(request.checkout)},security_model=none"
    arguments += ["-fsdev", f"{share},multidevs=remap"]
    arguments += ["-device", f"virtio-9p-pci,fsdev=checkout,mount_tag=checkout,{p9}"]
    return [*arguments, *options.qemu_arguments]


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")  # QEMU's way of quoting a comma in an option


async def run(profile: Profile, options: Options, request: Request) -> int:
    """Boot, run the command, power off.

    Returns:
        The command's exit status.

    Raises:
        TimeLimit, MachineDied: With the tail of the console in the message.
    """
    with tempfile.TemporaryDirectory(prefix="pyvfio-bench-") as directory:
        machine = _Machine(profile, options, request, Path(directory))
        async with machine.started():
            return await machine.serve()


@dataclass
class _Machine:
    profile: Profile
    options: Options
    request: Request
    run: Path
    _ours: dict[str, socket.socket] = field(default_factory=dict)
    _shutdown_reason: str | None = None

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        names = ["qmp", *PORTS, *([] if self.request.command else ["terminal"])]
        with (self.run / "scratch").open("wb") as scratch:
            scratch.truncate(SCRATCH_BYTES)
        with contextlib.ExitStack() as stack:
            theirs = {}
            for name in names:
                self._ours[name], theirs[name] = socket.socketpair()
                stack.enter_context(theirs[name])
            descriptors = {name: end.fileno() for name, end in theirs.items()}
            with (self.run / "qemu").open("wb") as messages:
                self._qemu = await asyncio.create_subprocess_exec(
                    # Should the bench be killed, QEMU goes, too.
                    *("setpriv", "--pdeathsig", "KILL"),
                    *qemu_arguments(
                        self.profile, self.options, self.request, self.run, descriptors
                    ),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=messages,
                    stderr=messages,
                    pass_fds=descriptors.values(),
                    # Ctrl-C is for the bench, which ends QEMU in its own way.
                    start_new_session=True,
                )
        try:
            yield
        finally:
            if self._qemu.returncode is None:
                self._qemu.kill()
            await self._qemu.wait()
            for end in self._ours.values():
                end.close()

    async def serve(self) -> int:
        """Carry the command's streams until it ends; returns its exit status."""
        limit = self.options.time_limit
        serving = asyncio.create_task(self._serve())
        ended = asyncio.create_task(self._qemu.wait())
        try:
            await asyncio.wait(
                (serving, ended), timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            if serving.done():
                return await serving
            if ended.done():
                raise MachineDied(self._obituary(f"QEMU ended: {self._shutdown_reason}"))
            raise TimeLimit(self._obituary(f"the time limit of {limit:g} s is over"))
        finally:
            for task in (serving, ended):
                task.cancel()
            await asyncio.gather(serving, ended, return_exceptions=True)

    async def _serve(self) -> int:
        qmp = QMPClient("bench")
        with step(f"Booting {self.profile.name} under {self.options.accelerator}") as booting:
            await qmp.connect(self._ours["qmp"])
            reader, writer = await asyncio.open_unix_connection(sock=self._ours["control"])
            writer.write(self.request.script(self.profile).encode())
            await self._await_ready(reader, booting)
            booting.hide()
        streams = [
            asyncio.create_task(_copy(self._ours["stdout"], sys.stdout.buffer)),
            asyncio.create_task(_copy(self._ours["stderr"], sys.stderr.buffer)),
        ]
        try:
            with self._user_terminal(writer):
                status = await self._await_exit(reader)
            # What the command wrote is in the sockets before its status is; QEMU's end closes them.
            with contextlib.suppress(Exception):
                await qmp.execute("quit")
            await asyncio.gather(*streams)
        finally:
            for stream in streams:
                stream.cancel()
        return status
