"""Reading 4 KiB from an NVMe disk: our driver, beside C's in user space, Linux's, and a naive one.

The disk goes from hand to hand: to vfio-pci for ours and for qemu-img, which has a VFIO driver of
its own, and back to Linux's driver for fio. What is counted is elapsed time per read, without the
time that a program takes to start and to bring the controller up. Nothing is written.
"""

from __future__ import annotations

import json
import mmap
import os
import pty
import random
import re
import select
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pyvfio
from pyvfio.drivers import nvme
from tools._perf.measure import interleave
from tools._perf.row import Aim, Comparison, Row, Samples, Setting

SIZE = 4096
DEPTHS = (1, 4, 16, 64)
DEEP = max(DEPTHS)
STRIDE = 4099  # reads; a prime, so that a walk in such steps goes everywhere
ROUNDS = 5
READS = {1: 1000, 4: 2000, 16: 4000, 64: 8000}  # by depth: about half a second under emulation

_BURST = 2000  # reads of one read_many, each into memory of its own

MANY = "read_many"
BATCH = "start_read in a batch"
ONE = "read_into"
NAIVE = "mmap, map, read, unmap"
MANY_RANDOM = "read_many, random"
ONE_RANDOM = "read_into, random"
QEMU = "qemu-img, VFIO driver in C"
LINUX = "fio, Linux's driver, random"
WAYS = ("interrupt", "polled")

_PATIENCE = 3.0  # seconds, until it says that it begins; where it hangs is before
_READING = "Sending"  # what it says then
_READING_PATIENCE = 20.0  # from then on it says nothing until it has read everything
_ATTEMPTS = 12

_NODE_SECONDS = 60.0


def of(contender: str, depth: int, way: str = "") -> str:
    """A contender's name in the row."""
    return f"{depth}: {contender}{', ' * bool(way)}{way}"


class Disk:
    """The disk, in one hand at a time."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._hand: object = None
        self._held = ExitStack()

    def close(self) -> None:
        """Give it back to whoever had it before."""
        self._hand = None
        self._held.close()

    def _take(self, hand: object) -> bool:
        """Whether it must change hands; it is nobody's then."""
        if self._hand == hand:
            return False
        self.close()
        self._hand = hand
        return True

    def ours(self, way: str) -> Reader:
        """In our driver's hands."""
        if self._take(way):
            held = self._held
            held.enter_context(pyvfio.bound(self.address))
            device = held.enter_context(pyvfio.open(self.address))
            controller = nvme.Controller(device, interrupts=way == "interrupt")
            self._reader = Reader(device, held.enter_context(controller))
        return self._reader

    def vfio(self) -> str:
        """Left for another program to open through VFIO; gives the address."""
        if self._take("vfio"):
            self._held.enter_context(pyvfio.bound(self.address))
        return self.address

    def linux(self) -> str:
        """With Linux's driver; gives the device node."""
        if self._take("linux"):
            self._held.enter_context(pyvfio.bound(self.address, driver="nvme"))
        sysfs = Path("/sys/bus/pci/devices", self.address)
        give_up = time.monotonic() + _NODE_SECONDS
        while time.monotonic() < give_up:
            for block in sysfs.glob("nvme/nvme*/nvme*n*"):
                node = Path("/dev", block.name)
                with suppress(OSError), node.open("rb"):
                    return str(node)
            time.sleep(0.01)
        raise OSError(f"Linux's driver makes no block device of {self.address}")


class Reader:
    """Our driver, and the reads that all make."""

    def __init__(self, device: pyvfio.Device, controller: nvme.Controller) -> None:
        self.device = device
        self.disk = controller.namespaces[min(controller.namespaces)]
        self.queue = controller.queues[0]
        self.blocks = SIZE // self.disk.block_size
        self.pieces = self.disk.size // SIZE
        self.buffer = device.dma.alloc(_BURST * SIZE)
        self.views = [self.buffer.view[n * SIZE :][:SIZE] for n in range(DEEP)]

    def lbas(self, count: int) -> list[int]:
        """Where qemu-img reads too."""
        return [n * STRIDE % self.pieces * self.blocks for n in range(count)]

    def random_lbas(self, count: int) -> list[int]:
        """Anywhere."""
        choose = random.Random(0).randrange
        return [choose(self.pieces) * self.blocks for _ in range(count)]

    def many(self, depth: int, lbas: Sequence[int]) -> None:
        for start in range(0, len(lbas), _BURST):
            some = lbas[start : start + _BURST]
            memory = self.buffer.view[: len(some) * SIZE]
            self.disk.read_many(some, memory, blocks=self.blocks, depth=depth)

    def batch(self, lbas: Sequence[int]) -> None:
        """By batches of as many as may be under way."""
        start_read, views = self.disk.start_read, self.views
        for start in range(0, len(lbas), DEEP):
            with self.queue.batch():
                reads = [start_read(*read) for read in zip(lbas[start:], views, strict=False)]
            for read in reads:
                read.wait()

    def one(self, lbas: Sequence[int]) -> None:
        read_into, view = self.disk.read_into, self.views[0]
        for lba in lbas:
            read_into(lba, view)

    def naive(self, lbas: Sequence[int]) -> None:
        """As a driver without a pool does it: memory is mapped for each command."""
        read_into, map = self.disk.read_into, self.device.dma.map
        for lba in lbas:
            with mmap.mmap(-1, SIZE) as memory, map(memory):
                read_into(lba, memory)


_Read = Callable[[Reader, Sequence[int]], None]
_Choose = Callable[[Reader, int], Sequence[int]]


def _timed(disk: Disk, way: str, read: _Read, depth: int, choose: _Choose) -> float:
    reader = disk.ours(way)
    lbas = choose(reader, READS[depth])
    start = time.perf_counter_ns()
    read(reader, lbas)
    return (time.perf_counter_ns() - start) / len(lbas)


def _qemu_img(disk: Disk, depth: int, restarts: Counter[str]) -> float:
    """What qemu-img's bench says of itself.

    QEMU's model of a controller may not answer qemu-img's first commands with an interrupt, and
    then qemu-img waits for it for ever: it is started again, which is counted in `restarts`.

    Not with "-t none", by which qemu-img switches the controller's write cache off: that is done
    for one namespace, which QEMU's model refuses. A page cache there is not in either case.
    """
    image = f"nvme://{disk.vfio()}/1"
    command = ["qemu-img", "bench", "-f", "raw", "-t", "writeback", "-d", str(depth)]
    command += ["-s", str(SIZE), "-S", str(STRIDE * SIZE), "-c", str(READS[depth]), image]
    for _ in range(_ATTEMPTS):
        said = _run_on_terminal(command)
        if (found := re.search(r"completed in ([0-9.]+) seconds", said)) is not None:
            return float(found[1]) / READS[depth] * 1e9
        if said and _READING not in said:
            raise OSError(f"qemu-img: {said.strip()}")
        restarts[of(QEMU, depth)] += 1
    raise OSError(f"qemu-img did not get through in {_ATTEMPTS} attempts")


def _run_on_terminal(command: Sequence[str]) -> str:
    """Run a program until it is silent for too long; on a pipe it would not speak up early."""
    ours, its = pty.openpty()
    try:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=its, stderr=its)
    finally:
        os.close(its)
    said = b""
    try:
        with suppress(OSError):  # EIO: it has closed its end
            patience = _PATIENCE
            while select.select([ours], [], [], patience)[0] and (data := os.read(ours, 4096)):
                said += data
                if _READING.encode() in said:
                    patience = _READING_PATIENCE
    finally:
        program.kill()
        program.wait()
        os.close(ours)
    return said.decode(errors="replace")


def _fio(disk: Disk, depth: int) -> float:
    """What fio says of itself; it reads at random."""
    options = {
        "name": "perf",
        "filename": disk.linux(),
        "direct": "1",
        "rw": "randread",
        "bs": SIZE,
        "iodepth": depth,
        "ioengine": "io_uring",
        "io_size": READS[depth] * SIZE,
        "norandommap": "1",
        # As fast as it goes: no clock read for each command, system calls for several.
        "gtod_reduce": "1",
        "iodepth_batch_submit": 16,
        "iodepth_batch_complete_max": depth,
        "output-format": "json",
    }
    command = [
        "fio",
        "--readonly",
        "--thread",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"fio: {done.stderr.strip()}")
    [job] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    return float(job["read"]["runtime"] / job["read"]["total_ios"] * 1e6)


def _measure(setting: Setting) -> Samples:
    disk = Disk(setting.device)
    contenders: dict[str, Callable[[], float]] = {}
    ours: list[tuple[str, int, _Read, _Choose]] = [
        *((MANY, depth, partial(_many, depth=depth), Reader.lbas) for depth in DEPTHS),
        (MANY_RANDOM, DEEP, partial(_many, depth=DEEP), Reader.random_lbas),
        (BATCH, DEEP, Reader.batch, Reader.lbas),
        (ONE, 1, Reader.one, Reader.lbas),
        (ONE_RANDOM, 1, Reader.one, Reader.random_lbas),
        (NAIVE, 1, Reader.naive, Reader.lbas),
    ]
    for way in WAYS:
        for name, depth, read, choose in ours:
            contenders[of(name, depth, way)] = partial(_timed, disk, way, read, depth, choose)
    absent: dict[str, str] = {}
    restarts: Counter[str] = Counter()
    qemu_img = partial(_qemu_img, restarts=restarts)
    for program, name, run in (("qemu-img", QEMU, qemu_img), ("fio", LINUX, _fio)):
        for depth in DEPTHS:
            if shutil.which(program):
                contenders[of(name, depth)] = partial(run, disk, depth)
            else:
                absent[of(name, depth)] = f"there is no {program} here"
    try:
        return Samples(interleave(contenders, setting.progress, ROUNDS), absent, restarts)
    finally:
        disk.close()


def _many(reader: Reader, lbas: Sequence[int], depth: int) -> None:
    reader.many(depth, lbas)


def _comparisons() -> Iterator[Comparison]:
    half, tenth = Aim(2), Aim(1 / 10)
    for way in WAYS:
        for name in (MANY, BATCH):
            yield Comparison(of(name, DEEP, way), of(QEMU, DEEP), half)
            yield Comparison(of(name, DEEP, way), of(NAIVE, 1, way), tenth)
        yield Comparison(of(MANY_RANDOM, DEEP, way), of(LINUX, DEEP))
        yield Comparison(of(MANY_RANDOM, DEEP, way), of(MANY, DEEP, way))
        yield Comparison(of(ONE, 1, way), of(QEMU, 1))
        yield Comparison(of(ONE_RANDOM, 1, way), of(LINUX, 1))
        yield Comparison(of(ONE, 1, way), of(NAIVE, 1, way))


ROW = Row(
    "nvme",
    "NVMe, reading 4 KiB",
    "ns",
    tuple(_comparisons()),
    _measure,
    needs_device=True,
    bench_device="nvme",
    packages=("qemu-utils", "fio"),
)
