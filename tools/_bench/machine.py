"""One boot of an emulated host: QEMU started, the command's streams carried, QEMU ended.

Between bench and guest stand virtio-serial ports, each a socket pair made before QEMU starts, so
that nothing is left in a file system: `bench.control` (guest/session tells what is said on it),
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
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qemu.qmp import ConnectError, EventListener, QMPClient, QMPError

from . import BenchError
from .profiles import SCRATCH_BYTES, Profile
from .progress import step

SESSION = Path(__file__).parent / "guest/session"
TAIL_LINES = 80  # a panic with its traces
ENDING_SECONDS = 10
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class MachineDied(BenchError):
    """The emulated host ended before the command did."""


class BootFailed(MachineDied):
    """The emulated host ended before the command started."""


class QemuCrashed(MachineDied):
    """QEMU ended by a signal of its own making.

    Debian 12's QEMU 7.2 does so once in a while when one emulated processor changes the memory map
    while another one accesses a device.
    """


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
        """What the guest's init is to run: guest/session, after its variables."""
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
        if self.command and sys.stdout.isatty():
            variables["COLUMNS"] = str(size.columns)  # for tables, which cannot ask a pipe
        lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        return "\n".join([*lines, "export TERM COLUMNS", SESSION.read_text(), "# end", ""])


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
    arguments += [word.format(scratch=_escaped(run / "scratch")) for word in profile.machine]
    arguments += ["-display", "none", "-no-reboot", "-no-user-config"]
    arguments += ["-kernel", str(options.kernel), "-initrd", str(options.initrd)]
    arguments += ["-append", f"{profile.kernel_arguments} {options.kernel_arguments}".strip()]
    arguments += ["-chardev", f"file,id=console,path={_escaped(run / 'console')}", "-serial"]
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
        files = Path(directory)
        async with _started(profile, options, request, files) as sockets:
            try:
                serving = _serve(profile, options, request, sockets)
                return await asyncio.wait_for(serving, options.time_limit)
            except asyncio.TimeoutError:
                what = f"the time limit of {options.time_limit:g} s is over, QEMU was ended"
                raise TimeLimit(what + _last_words(files)) from None
            except MachineDied as error:
                raise type(error)(str(error) + _last_words(files)) from None


@contextlib.asynccontextmanager
async def _started(
    profile: Profile, options: Options, request: Request, files: Path
) -> AsyncIterator[dict[str, socket.socket]]:
    """Run QEMU during the body, which gets our ends of the sockets."""
    with (files / "scratch").open("wb") as scratch:
        scratch.truncate(SCRATCH_BYTES)
    names = ["qmp", *PORTS, *([] if request.command else ["terminal"])]
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        sockets, descriptors = {}, {}
        for name in names:
            end, qemus_end = socket.socketpair()
            end.setblocking(False)
            sockets[name] = ours.enter_context(end)
            descriptors[name] = theirs.enter_context(qemus_end).fileno()
        messages = theirs.enter_context((files / "qemu").open("wb"))
        qemu = await asyncio.create_subprocess_exec(
            # Should the bench be killed, QEMU goes, too.
            *("setpriv", "--pdeathsig", "KILL"),
            *qemu_arguments(profile, options, request, files, descriptors),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            pass_fds=tuple(descriptors.values()),
            # Ctrl-C is for the bench, which ends QEMU in its own way.
            start_new_session=True,
        )
        theirs.close()
        try:
            yield sockets
        except (MachineDied, ConnectionError) as error:
            # Its ends of the sockets are closed, so it is ending.
            with contextlib.suppress(asyncio.TimeoutError):
                status = await asyncio.wait_for(qemu.wait(), ENDING_SECONDS)
                if -status in CRASHES:
                    raise QemuCrashed(
                        f"QEMU itself crashed ({signal.Signals(-status).name}), which is no fault "
                        f"of the guest's: run it again; {error}"
                    ) from None
            raise (
                error if isinstance(error, MachineDied) else MachineDied(f"QEMU ended: {error}")
            ) from None
        finally:
            if qemu.returncode is None:
                qemu.kill()
            await qemu.wait()


async def _serve(
    profile: Profile, options: Options, request: Request, sockets: dict[str, socket.socket]
) -> int:
    """Talk to QEMU and the guest until the command has ended; returns its exit status.

    When QEMU ends, for whatever reason, its ends of all sockets close: nothing here waits forever.
    """
    reader, writer = await asyncio.open_unix_connection(sock=sockets["control"])
    shutdown = EventListener("SHUTDOWN")
    qmp = QMPClient("bench")
    qmp.register_listener(shutdown)
    with step(f"Booting {profile.name} under {options.accelerator}"):
        with contextlib.suppress(ConnectError):  # the guest's silence will tell
            await qmp.connect(sockets["qmp"])
        writer.write(request.script(profile).encode())
        if await reader.readline() != b"ready\n":
            raise BootFailed(f"QEMU ended before the guest was up{_reason(shutdown)}")

    async def finish() -> int:
        word, _, status = (await reader.readline()).decode().partition(" ")
        if word != "exit":
            raise MachineDied(f"the guest ended before the command did{_reason(shutdown)}")
        with contextlib.suppress(QMPError):  # the guest, too, is about to power off
            await qmp.execute("quit")
        return int(status)

    with contextlib.ExitStack() as stack:
        if "terminal" in sockets:
            stack.enter_context(_terminal(sockets["terminal"], writer))
        outputs = {
            "terminal": sys.stdout.buffer,
            "stdout": sys.stdout.buffer,
            "stderr": sys.stderr.buffer,
        }
        exit_status = asyncio.ensure_future(finish())
        copies = [
            asyncio.ensure_future(_copy(sockets[name], output))
            for name, output in outputs.items()
            if name in sockets
        ]
        try:
            await asyncio.gather(exit_status, *copies)
            return exit_status.result()
        finally:
            for task in (exit_status, *copies):
                task.cancel()
            with contextlib.suppress(Exception):
                await qmp.disconnect()


def _reason(shutdown: EventListener) -> str:
    """Why QEMU says that it shut down: a panic shows as guest-reset, by panic=-1."""
    reasons = [event["data"] for event in shutdown.clear()]
    return "".join(f" ({data['reason']})" for data in reasons if isinstance(data, dict))


async def _copy(source: socket.socket, output: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionResetError):
        while data := await loop.sock_recv(source, 1 << 16):
            output.write(data)
            output.flush()


@contextlib.contextmanager
def _terminal(console: socket.socket, control: asyncio.StreamWriter) -> Iterator[None]:
    """Give the user's keys to the guest's console as they are typed, and the terminal's size."""
    loop = asyncio.get_running_loop()
    keyboard = sys.stdin.fileno()

    def typed() -> None:
        with contextlib.suppress(BlockingIOError):  # nobody reads there: as a full tty, drop
            console.send(os.read(keyboard, 1 << 12))

    def resized() -> None:
        size = os.get_terminal_size(keyboard)
        control.write(f"size {size.lines} {size.columns}\n".encode())

    before = termios.tcgetattr(keyboard)
    tty.setraw(keyboard)
    loop.add_reader(keyboard, typed)
    loop.add_signal_handler(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _last_words(files: Path) -> str:
    """The ends of QEMU's messages and of the guest's console, for an error message."""
    text = ""
    for title, name in (("QEMU", "qemu"), ("the guest's console", "console")):
        with contextlib.suppress(FileNotFoundError):
            lines = (files / name).read_text(errors="replace").splitlines()
            if lines:
                text += f"\n--- the end of what {title} said:\n"
                text += "\n".join(lines[-TAIL_LINES:])
    return text
