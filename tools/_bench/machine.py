"""One emulated host: QEMU started, commands run on it one after another, QEMU ended.

Between bench and guest stand virtio-serial ports, each a socket pair made before QEMU starts, so
that nothing is left in a file system: `bench.control` (guest/session describes its protocol),
`bench.stdout` and `bench.stderr` of the commands, and for a shell a virtio console. The kernel's
console goes to a file of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qemu.qmp import ConnectError, EventListener, QMPClient, QMPError

from . import BenchError
from .emulator import Emulator
from .profiles import SCRATCH_BYTES, Profile
from .progress import step

SESSION = Path(__file__).parent / "guest/session"
TAIL_LINES = 80  # a panic with its traces
ENDING_SECONDS = 10
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class MachineDied(BenchError):
    """The emulated host ended before the command did."""


class BootFailed(MachineDied):
    """The emulated host ended before it could run a command."""


class QemuCrashed(MachineDied):
    """QEMU ended by a signal of its own making."""


class BootCrashed(QemuCrashed, BootFailed):
    """QEMU ended by a signal of its own making before a command could run."""


class TimeLimit(BenchError):
    """The emulated host was ended at the time limit."""


@dataclass(frozen=True)
class Options:
    """How the emulated host is started.

    Attributes:
        checkout: The directory to mount there, at the same path.
        kernel: The kernel to boot.
        initrd: The parts of the initramfs, each a cpio archive.
        disk: The root file system; None where it is in the initramfs.
        emulator: The QEMU.
        accelerator: "tcg" or "kvm".
        qemu_arguments: Further arguments for QEMU.
        kernel_arguments: Further words for the kernel's command line.
        terminal: Whether there is a console for an interactive shell.
    """

    checkout: Path
    kernel: Path
    initrd: Sequence[Path]
    disk: Path | None = None
    emulator: Emulator = field(default_factory=Emulator)
    accelerator: str = "tcg"
    qemu_arguments: Sequence[str] = ()
    kernel_arguments: str = ""
    terminal: bool = False

    def script(self, profile: Profile) -> str:
        """Return what the guest's init is to run: guest/session, after its variables."""
        variables = {
            "checkout": str(self.checkout),
            "load": " ".join(profile.load),
            "shell_tty": profile.shell_tty if self.terminal else "",
            # A shell sees the edits that its user makes outside. A command's files are worth
            # caching; the next command mounts the checkout anew.
            "mount_options": "cache=none" if self.terminal else "cache=loose",
            "TERM": os.environ.get("TERM", "dumb"),
        }
        return _script(variables, SESSION.read_text())


@dataclass(frozen=True)
class Command:
    """One command for the guest.

    Attributes:
        words: The command and its arguments; empty for an interactive shell.
        directory: Where it starts.
    """

    words: Sequence[str]
    directory: Path

    def script(self, marker: str) -> str:
        """Return the variables that guest/session reads for it.

        Args:
            marker: What is to be written at the end of its output.
        """
        size = shutil.get_terminal_size()
        variables = {
            "directory": str(self.directory),
            "command": shlex.join(self.words),
            "marker": marker,
            "rows": str(size.lines),
            "columns": str(size.columns),
        }
        if self.words and sys.stdout.isatty():
            variables["COLUMNS"] = str(size.columns)  # for tables, which cannot ask a pipe
        return _script(variables, "")


def _script(variables: dict[str, str], body: str) -> str:
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*lines, body, "# end", ""])


PORTS = ("control", "stdout", "stderr")


def qemu_arguments(
    profile: Profile, options: Options, run: Path, sockets: dict[str, int]
) -> list[str]:
    """Return QEMU's command line.

    Args:
        profile: The emulated host.
        options: How it is started.
        run: The directory of this run's files.
        sockets: Descriptors of our sockets' other ends: qmp, the PORTS, and terminal for a shell.
    """
    cpu = profile.kvm_cpu if options.accelerator == "kvm" else profile.tcg_cpu
    serial, p9, disk = profile.channel_bus
    arguments = [*options.emulator.command(profile.qemu), *cpu]
    arguments += [word.format(scratch=_escaped(run / "scratch")) for word in profile.machine]
    arguments += ["-display", "none", "-no-reboot", "-no-user-config"]
    arguments += ["-kernel", str(options.kernel), "-initrd", str(run / "initrd")]
    arguments += ["-append", f"{profile.kernel_arguments} {options.kernel_arguments}".strip()]
    arguments += ["-chardev", f"file,id=console,path={_escaped(run / 'console')}", "-serial"]
    arguments += ["chardev:console", "-device", f"virtio-serial-pci,id=bench,{serial}"]
    for name, descriptor in sockets.items():
        arguments += ["-chardev", f"socket,id={name},fd={descriptor}"]
    arguments += ["-qmp", "chardev:qmp"]
    if "terminal" in sockets:
        arguments += ["-device", "virtconsole,bus=bench.0,chardev=terminal"]
    for name in PORTS:
        arguments += ["-device", f"virtserialport,bus=bench.0,chardev={name},name=bench.{name}"]
    # The guest's root writes as the user who runs QEMU: files that a command makes in the checkout
    # belong to that user. Where QEMU may not give a file away, it does not.
    share = f"local,id=checkout,path={_escaped(options.checkout)},security_model=none"
    arguments += ["-fsdev", f"{share},multidevs=remap"]
    arguments += ["-device", f"virtio-9p-pci,fsdev=checkout,mount_tag=checkout,{p9}"]
    if options.disk:
        drive = f"file={_escaped(options.disk)},if=none,id=bench-root,format=raw,readonly=on"
        arguments += ["-drive", drive]
        arguments += ["-device", f"virtio-blk-pci,drive=bench-root,serial=bench-root,{disk}"]
    return [*arguments, *options.qemu_arguments]


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")  # QEMU's way of quoting a comma in an option


Write = Callable[[bytes], object]


class Host:
    """One emulated host that is up: commands run on it one after another.

    Made by :func:`boot`.
    """

    def __init__(
        self, qemu: asyncio.subprocess.Process, sockets: dict[str, socket.socket], files: Path
    ) -> None:
        self._qemu = qemu
        self._sockets = sockets
        self._files = files
        self._shutdown = EventListener("SHUTDOWN")
        self._qmp = QMPClient("bench")
        self._qmp.register_listener(self._shutdown)
        self._writer: asyncio.StreamWriter | None = None
        self._outputs = {name: _Output(sockets[name]) for name in ("stdout", "stderr")}

    async def _connect(self, script: str) -> None:
        """Wait until the guest is up.

        When QEMU ends, for whatever reason, its ends of all sockets close: nothing here waits for
        ever.
        """
        control = self._sockets["control"]
        self._reader, self._writer = await asyncio.open_unix_connection(sock=control)
        # Where QEMU has ended, the control port closes as well; that is reported below.
        with contextlib.suppress(ConnectError):
            await self._qmp.connect(self._sockets["qmp"])
        self._writer.write(script.encode())
        if await self._heard() != "ready":
            raise await self._death(BootFailed, "QEMU ended before the guest was up")

    @property
    def alive(self) -> bool:
        """Whether the host can run a command."""
        return self._qemu.returncode is None and not self._reader.at_eof()

    async def run(
        self,
        command: Command,
        stdout: Write,
        stderr: Write,
        time_limit: float | None = None,
        of: float | None = None,
    ) -> int:
        """Run a command and pass its output on as it comes.

        Args:
            command: The command.
            stdout: Called with what it writes to its standard output.
            stderr: The same for its standard error.
            time_limit: In seconds; None for no limit.
            of: The limit of which this is what the boot has left.

        Returns:
            Its exit status.

        Raises:
            TimeLimit, MachineDied: The host cannot be used any more; the message has the tail of
                its console.
        """
        assert self._writer is not None
        marker = f"bench-{secrets.token_hex(16)}"
        self._writer.write(f"run\n{command.script(marker)}".encode())
        parts = [
            self._status(),
            self._outputs["stdout"].copy(stdout, marker.encode()),
            self._outputs["stderr"].copy(stderr, marker.encode()),
        ]
        with contextlib.ExitStack() as stack:
            if not command.words:
                terminal = self._sockets["terminal"]
                stack.enter_context(_terminal(terminal, self._writer))
                parts.append(_Output(terminal).copy(stdout, None))
            tasks = [asyncio.ensure_future(part) for part in parts]
            try:
                # The console's end is QEMU's end: it is not waited for.
                status, *_ = await asyncio.wait_for(asyncio.gather(*tasks[:3]), time_limit)
            except asyncio.TimeoutError:
                raise TimeLimit(
                    f"the time limit of {of or time_limit:g} s is over, QEMU was ended"
                    + last_words(self._files)
                ) from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        assert status is not None
        return status

    async def _status(self) -> int:
        word, _, status = (await self._heard()).partition(" ")
        if word != "exit":
            raise await self._death(MachineDied, "the guest ended before the command did")
        return int(status)

    async def _heard(self) -> str:
        """Read a line from the guest; empty at the end of QEMU."""
        try:
            return (await self._reader.readline()).decode().rstrip("\n")
        except ConnectionError:
            return ""

    async def _death(self, kind: type[MachineDied], text: str) -> MachineDied:
        """Say why the host ended: its ends of the sockets are closed, so QEMU is ending."""
        # A panic shows as guest-reset, by panic=-1.
        for event in self._shutdown.clear():
            if isinstance(data := event["data"], dict):
                text += f" ({data['reason']})"
        with contextlib.suppress(asyncio.TimeoutError):
            status = await asyncio.wait_for(self._qemu.wait(), ENDING_SECONDS)
            if -status in CRASHES:
                kind = BootCrashed if kind is BootFailed else QemuCrashed
                text = (
                    f"QEMU itself crashed ({signal.Signals(-status).name}), which is no fault of "
                    f"the guest's: run it again; {text}"
                )
        return kind(text + last_words(self._files))

    async def _close(self) -> None:
        """End QEMU and let go of the sockets, in this order: their owner closes them."""
        with contextlib.suppress(QMPError, asyncio.TimeoutError):
            await asyncio.wait_for(self._qmp.execute("quit"), ENDING_SECONDS)
            await asyncio.wait_for(self._qemu.wait(), ENDING_SECONDS)
        if self._qemu.returncode is None:
            self._qemu.kill()
        # Nothing below waits for ever: QEMU's ends of the sockets are closed.
        with contextlib.suppress(Exception):
            await self._qmp.disconnect()
        if self._writer:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()


class _Output:
    """What comes from one of the guest's ports, cut at each command's marker."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._rest = b""

    async def copy(self, write: Write, marker: bytes | None) -> None:
        """Pass on what comes, up to the marker or to the end of QEMU."""
        loop = asyncio.get_running_loop()
        data, self._rest = self._rest, b""
        more = True
        while True:
            if marker is not None and (end := data.find(marker)) >= 0:
                self._rest = data[end + len(marker) :]
                data, more = data[:end], False
            # The marker may come in pieces: its possible beginning waits for the rest.
            held = _beginning(data, marker) if more and marker else 0
            if ready := data[: len(data) - held]:
                write(ready)
            if not more:
                return
            received = b""
            with contextlib.suppress(ConnectionResetError):
                received = await loop.sock_recv(self._source, 1 << 16)
            more, data = bool(received), data[len(data) - held :] + received


def _beginning(data: bytes, marker: bytes) -> int:
    """How many of the last bytes of `data` may be the marker's first ones."""
    longest = min(len(marker) - 1, len(data))
    return next((n for n in range(longest, 0, -1) if data.endswith(marker[:n])), 0)


@contextlib.asynccontextmanager
async def boot(
    profile: Profile, options: Options, time_limit: float | None = None
) -> AsyncIterator[Host]:
    """Run an emulated host during the body.

    Args:
        profile: The host.
        options: How it is started.
        time_limit: For the boot, in seconds; None for no limit.

    Raises:
        TimeLimit, MachineDied: With the tail of the console in the message.
    """
    profile = profile.with_qemu(options.emulator.major)
    with tempfile.TemporaryDirectory(prefix="pyvfio-bench-") as directory:
        files = Path(directory)
        with (files / "initrd").open("wb") as initrd:
            for part in options.initrd:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, initrd)
        async with _started(profile, options, files) as (qemu, sockets):
            host = Host(qemu, sockets, files)
            try:
                with step(f"Booting {profile.name} under {options.accelerator}"):
                    connecting = host._connect(options.script(profile))
                    await asyncio.wait_for(connecting, time_limit)
                yield host
            except asyncio.TimeoutError:
                raise TimeLimit(
                    f"the guest is not up after {time_limit:g} s, QEMU was ended"
                    + last_words(files)
                ) from None
            finally:
                await host._close()


@contextlib.asynccontextmanager
async def _started(
    profile: Profile, options: Options, files: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, socket.socket]]]:
    """Run QEMU during the body, which gets it and our ends of the sockets."""
    with (files / "scratch").open("wb") as scratch:
        scratch.truncate(SCRATCH_BYTES)
    names = ["qmp", *PORTS, *(["terminal"] if options.terminal else [])]
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
            *qemu_arguments(profile, options, files, descriptors),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            pass_fds=tuple(descriptors.values()),
            env=options.emulator.environment,
            # Ctrl-C is for the bench, which ends QEMU in its own way.
            start_new_session=True,
        )
        theirs.close()
        try:
            yield qemu, sockets
        finally:
            if qemu.returncode is None:
                qemu.kill()
            await qemu.wait()


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


def last_words(files: Path) -> str:
    """The ends of QEMU's messages and of the guest's console, for an error message."""
    text = ""
    for title, name in (("QEMU", "qemu"), ("the guest's console", "console")):
        with contextlib.suppress(FileNotFoundError):
            lines = (files / name).read_text(errors="replace").splitlines()
            if lines:
                text += f"\n--- the end of what {title} said:\n"
                text += "\n".join(lines[-TAIL_LINES:])
    return text
