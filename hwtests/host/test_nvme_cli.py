"""`pyvfio nvme` on the bench's disk: what it writes, Linux's driver reads, and the other way round.

Only for the bench, whose disk is nobody's.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hwtests import forked
from hwtests.nvme_nodes import node
from pyvfio.pci import Function

pytestmark = pytest.mark.skipif(
    not os.environ.get("PYVFIO_BENCH"), reason="overwrites a disk: only on the bench"
)

DISK = "0000:01:00.0"
MIB = 1 << 20
BLOCK = 512
WAIT = 120.0


def noise(size: int, seed: int) -> bytes:
    """Data in which no block is like another, made faster than by chance."""
    return b"".join(
        struct.pack("<QQ", seed, at) * (BLOCK // 16) for at in range(-(-size // BLOCK))
    )[:size]


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    """Whatever a command does, the kernel's driver has the disk again."""
    yield
    assert Function(DISK).driver == "nvme"
    assert Function(DISK).driver_override is None


@contextmanager
def kernels_disk(flags: int = os.O_RDWR) -> Iterator[int]:
    """The disk as the kernel's driver has it, once it has found the namespace."""
    file = os.open(node(Function(DISK)), flags)
    try:
        yield file
    finally:
        os.close(file)


def kernel_reads(offset: int, size: int) -> bytes:
    with kernels_disk(os.O_RDONLY) as file:
        return os.pread(file, size, offset)


def kernel_writes(offset: int, data: bytes) -> None:
    with kernels_disk() as file:
        assert os.pwrite(file, data, offset) == len(data)
        os.fsync(file)


def nvme(*arguments: str, status: int = 0, stdin: bytes = b"") -> tuple[bytes, str]:
    """Run the command; its stdout and stderr."""
    result = forked.pyvfio("nvme", *arguments, stdin=stdin)
    said = result.stderr.decode()
    assert result.returncode == status, result.stdout[:1000] + result.stderr
    return result.stdout, said


def disk_size() -> int:
    with kernels_disk(os.O_RDONLY) as file:
        return os.lseek(file, 0, os.SEEK_END)


def test_identify_and_smart_show_what_the_kernel_knows() -> None:
    size = disk_size()
    (known,) = (Function(DISK).sysfs / "nvme").iterdir()
    serial, model = ((known / name).read_text().strip() for name in ("serial", "model"))
    entry = json.loads(nvme("identify", DISK, "--json")[0])
    assert (entry["serial"], entry["model"]) == (serial, model)
    (namespace,) = entry["namespaces"]
    assert (namespace["id"], namespace["size"]) == (1, size)
    shown = nvme("identify", DISK)[0].decode()
    assert serial in shown
    assert "64 MiB" in shown
    shown = nvme("smart", DISK)[0].decode()
    # QEMU's: 323 K.
    assert "no warnings" in shown
    assert "50 °C" in shown


def test_what_is_written_the_kernel_reads(tmp_path: Path) -> None:
    kernel_writes(0, noise(8 * MIB, 1))
    data = noise(3 * MIB + 5 * BLOCK, 2)
    (tmp_path / "data").write_bytes(data)
    nvme("write", DISK, str(tmp_path / "data"), "--lba", "7", "--yes")
    assert kernel_reads(0, 7 * BLOCK) == noise(8 * MIB, 1)[: 7 * BLOCK]
    assert kernel_reads(7 * BLOCK, len(data)) == data
    after = 7 * BLOCK + len(data)
    assert kernel_reads(after, BLOCK) == noise(8 * MIB, 1)[after : after + BLOCK]
    piped = noise(2 * BLOCK + 9, 3)
    nvme("write", DISK, "-", "--offset", "4K", "--yes", "--pad", stdin=piped)
    assert kernel_reads(4096, 3 * BLOCK) == piped + bytes(BLOCK - 9)


def test_what_the_kernel_wrote_is_read(tmp_path: Path) -> None:
    data = noise(5 * MIB, 4)
    kernel_writes(MIB, data)
    raw, _ = nvme("read", DISK, "--offset", "1M", "--size", "5MiB")
    assert raw == data
    output = tmp_path / "output"
    nvme("read", DISK, "--lba", str(MIB // BLOCK + 1), "--blocks", "3", "-o", str(output))
    assert output.read_bytes() == data[BLOCK : 4 * BLOCK]
    dump = nvme("read", DISK, "--offset", "1M", "--hex")[0].decode().splitlines()
    assert dump[0].startswith(f"{MIB:08x}  {data[:8].hex(' ')}  {data[8:16].hex(' ')}  |")
    assert dump[-1] == f"{MIB + BLOCK:08x}"
    last = disk_size() // BLOCK - 1
    assert "not all there" in nvme("read", DISK, "--lba", str(last), "--blocks", "2", status=2)[1]


def test_a_file_is_copied_to_the_disk_and_back(tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    size = disk_size()
    image.write_bytes(noise(size, 5))
    said = nvme("copy", str(image), DISK, "--yes", "--verify")[1]
    assert "read back and found the same" in said
    assert kernel_reads(0, size) == image.read_bytes()
    assert "64 MiB copied" in nvme("copy", DISK, str(back), "--verify")[1]
    assert back.read_bytes() == image.read_bytes()
    image.write_bytes(bytes(size + 1))
    assert "do not fit" in nvme("copy", str(image), DISK, "--yes", status=2)[1]
    assert "active are: 1 (64 MiB)" in nvme("copy", f"{DISK}:2", str(back), status=2)[1]
    assert back.stat().st_size == size, "what is refused loses nothing"


def test_a_disk_that_is_used_is_refused(tmp_path: Path) -> None:
    disk = node(Function(DISK))
    subprocess.run(["mke2fs", "-q", disk], check=True)
    subprocess.run(["mount", "-t", "ext4", disk, tmp_path], check=True)
    try:
        for arguments in (
            ["write", DISK, "/dev/zero", "--lba", "0", "--yes"],
            ["read", DISK],
        ):
            assert f"is mounted on {tmp_path}" in nvme(*arguments, status=5)[1]
        # The kernel's name of the same disk, as an end of a copy.
        said = nvme("copy", str(disk), DISK, "--yes", status=5)[1]
        assert f"{disk} is in use: mounted" in said
    finally:
        subprocess.run(["umount", tmp_path], check=True)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.screen = ""
        self.status: int | None = None
        self._pid, self._terminal = pty.fork()
        if not self._pid:
            os.execvp("pyvfio", ["pyvfio", "nvme", *arguments])

    def until(self, pattern: str) -> None:
        """Read until the screen has shown it."""
        while not re.search(pattern, self.screen):
            assert self._more(), f"{pattern!r} is not in {self.screen!r}"

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def end(self) -> int:
        """Read all that comes; the exit status."""
        while self._more():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _more(self) -> bool:
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: nobody has it open
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)


def test_a_terminal_is_asked_and_shows_progress() -> None:
    kernel_writes(0, noise(MIB, 6))
    subprocess.run(["mke2fs", "-q", node(Function(DISK))], check=True)
    before = kernel_reads(0, MIB)
    terminal = Terminal("write", DISK, "/dev/zero", "--lba", "0")
    terminal.until(r"\[y/N\]")
    assert "blocks 0 on of namespace 1 (64 MiB)" in terminal.screen
    assert "ext4" in terminal.screen
    terminal.type("n\n")
    assert terminal.end() == 1
    assert "nothing was written" in terminal.screen
    assert kernel_reads(0, MIB) == before
    slow = f"head -c {32 * MIB} /dev/zero; sleep 3; head -c {32 * MIB} /dev/zero"
    terminal = Terminal("copy", f"/dev/fd/{_slow_pipe(slow)}", DISK, "--size", "64M")
    terminal.until(r"\[y/N\]")
    terminal.type("y\n")
    terminal.until(r"\d+ %, .* of 64 MiB, .*/s")
    assert terminal.end() == 0
    assert "64 MiB copied" in terminal.screen
    assert not any(kernel_reads(0, MIB))


def _slow_pipe(script: str) -> int:
    """The reading end of a pipe, inherited, into which a shell writes."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    subprocess.Popen(["sh", "-c", script], stdout=writer)
    os.close(writer)
    return reader


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_copy_says_how_far_it_got(number: signal.Signals) -> None:
    # Of what it was given it holds some in memory, and waits for more, which never comes.
    command = ["pyvfio", "nvme", "copy", "-", DISK, "--yes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as copying:
        assert copying.stdin is not None
        assert copying.stderr is not None
        copying.stdin.write(noise(20 * MIB, 7))
        copying.stdin.flush()
        copying.send_signal(number)
        said = copying.stderr.read().decode()
        assert copying.wait(WAIT) == 130
    found = re.search(r"stopped after ([\d,]+) bytes from standard input", said)
    assert found, said
    done = int(found[1].replace(",", ""))
    assert done >= 2 * MIB
    assert kernel_reads(0, done) == noise(20 * MIB, 7)[:done]


def test_what_ends_a_command_that_only_looks_gives_the_disk_back_too() -> None:
    with subprocess.Popen(["pyvfio", "nvme", "identify", DISK], stderr=subprocess.PIPE) as looking:
        end = time.monotonic() + WAIT
        while Function(DISK).driver != "vfio-pci" and time.monotonic() < end:
            time.sleep(0.001)
        looking.send_signal(signal.SIGTERM)
        assert looking.stderr is not None
        assert "interrupted" in looking.stderr.read().decode()
        assert looking.wait(WAIT) == 130


@pytest.mark.parametrize("how", [[], ["--polled", "--queues", "2", "--batch"]])
def test_bench_measures(how: list[str]) -> None:
    pattern = "sequential-read" if how else "random-write"
    arguments = ["bench", DISK, "--pattern", pattern, "--seconds", "0.5", "--depth", "8", "--yes"]
    result = json.loads(nvme(*arguments, *how, "--json")[0])
    done = [result[name] for name in ("queues", "depth", "polled", "batch")]
    assert done == ([2, 8, True, True] if how else [1, 8, False, False])
    assert result["commands"] > 0
    assert result["iops"] == pytest.approx(result["commands"] / result["seconds"])
    times = result["latency"]
    assert 0 < times["min"] <= times["p50"] <= times["p99"] <= times["max"]


def test_bench_shows_a_table() -> None:
    # More than QEMU's queues hold.
    shown = nvme("bench", DISK, "--seconds", "0.1", "--depth", "3000")[0].decode()
    assert "random-read, 4 KiB, 2047 under way, interrupts, one by one" in shown
    assert "p99.9" in shown
