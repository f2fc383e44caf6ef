"""The NVMe driver against Linux's own: what one writes, the other reads.

Only for the bench, where no disk holds anything. A controller with several namespaces belongs to
it: see tests/bench/test_x86.py.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import signal
import struct
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyvfio
from hwtests.bench import ON_BENCH, REPEAT
from hwtests.nvme_nodes import nodes
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme.spec import CLASS_CODE
from pyvfio.pci import Function, bound, functions

pytestmark = pytest.mark.skipif(not ON_BENCH, reason="writes to every disk: only on the bench")

SECONDS = 10 * REPEAT
KILLS = 6
UNDER_WAY = 100
PIECE = 4096


def controllers() -> list[Function]:
    """List the controllers that have disks: the bench's SR-IOV controller has none."""
    return [
        function
        for function in functions()
        if function.class_code == CLASS_CODE
        and function.driver == "nvme"
        and not (function.sysfs / "sriov_totalvfs").exists()
    ]


@contextmanager
def driven(function: Function) -> Iterator[nvme.Controller]:
    """Taken from Linux and driven here; Linux has it again afterwards."""
    with (
        bound(function.address),
        pyvfio.open(function) as device,
        nvme.Controller(device, queues=2) as controller,
    ):
        yield controller


def pieces(disk: nvme.Namespace, largest: int) -> Iterator[tuple[int, int]]:
    """All of a disk: first blocks, and how many, of ever other sizes around what matters."""
    most = largest // disk.block_size
    page = max(4096 // disk.block_size, 1)
    sizes = (1, 2, page - 1 or 1, page, page + 1, 3 * page, most - 1, most, most + 1, 5 * most + 3)
    lba = 0
    for size in itertools.cycle(sizes):
        if lba == disk.blocks:
            return
        yield lba, min(size, disk.blocks - lba)
        lba += min(size, disk.blocks - lba)


def memory_for(
    controller: nvme.Controller, number: int, size: int
) -> tuple[memoryview, Callable[[], None]]:
    """Memory of one kind or another, and what gives it back."""
    if number % 3 == 0:
        buffer = controller.space.alloc(size + 4)
        return buffer.view[4:], buffer.close
    if number % 3 == 1:
        return memoryview(bytearray(size + 1))[1:], lambda: None
    return memoryview(mmap.mmap(-1, size)), lambda: None


def write_here(controller: nvme.Controller, disk: nvme.Namespace, image: bytes) -> None:
    operations: deque[tuple[nvme.Operation, Callable[[], None]]] = deque()
    block = disk.block_size
    for number, (lba, blocks) in enumerate(pieces(disk, controller.max_transfer)):
        memory, close = memory_for(controller, number, blocks * block)
        memory[:] = image[lba * block : (lba + blocks) * block]
        queue = controller.queues[number % 2]
        operations.append((disk.start_write(lba, memory, queue=queue), close))
        if len(operations) == 20:
            end(*operations.popleft())
    while operations:
        end(*operations.popleft())
    disk.flush()


def end(operation: nvme.Operation, close: Callable[[], None]) -> None:
    operation.wait()
    close()


def read_here(controller: nvme.Controller, disk: nvme.Namespace) -> bytes:
    image = bytearray(disk.size)
    block = disk.block_size
    for number, (lba, blocks) in enumerate(pieces(disk, controller.max_transfer)):
        memory, close = memory_for(controller, number, blocks * block)
        disk.read_into(lba, memory, queue=controller.queues[number % 2])
        image[lba * block : (lba + blocks) * block] = memory
        close()
    return bytes(image)


def read_by_linux(node: Path) -> bytes:
    return node.read_bytes()


def write_by_linux(node: Path, image: bytes) -> None:
    """In writes of many sizes."""
    sizes = itertools.cycle((4096, 512 << 10, 12288, 65536, 4 << 20))
    with node.open("r+b", buffering=0) as file:
        at = 0
        while at < len(image):
            at += file.write(memoryview(image)[at : at + next(sizes)])
        os.fsync(file.fileno())


def test_there_is_one_with_several_namespaces() -> None:
    with driven(controllers()[-1]) as controller:
        assert len({disk.block_size for disk in controller.namespaces.values()}) > 1


def test_what_is_written_here_linux_reads() -> None:
    """In pieces of every size, then all of it at once."""
    for function in controllers():
        for write in (write_here, lambda controller, disk, image: disk.write(0, image)):
            with driven(function) as controller:
                images = {id: os.urandom(d.size) for id, d in controller.namespaces.items()}
                for id, image in images.items():
                    write(controller, controller.namespaces[id], image)
            for id, node in nodes(function, len(images)).items():
                assert read_by_linux(node) == images[id], f"{node} of {function}"


def test_what_linux_writes_is_read_here() -> None:
    for function in controllers():
        with driven(function) as controller:
            sizes = {id: disk.size for id, disk in controller.namespaces.items()}
        images = {}
        for id, node in nodes(function, len(sizes)).items():
            images[id] = os.urandom(sizes[id])
            write_by_linux(node, images[id])
        with driven(function) as controller:
            for id, disk in controller.namespaces.items():
                assert read_here(controller, disk) == images[id]
                assert disk.read(0, disk.blocks) == images[id]


def test_what_is_deallocated_is_that_alone() -> None:
    """Of QEMU's disk each whole page of 4 KiB reads as zeros, of less perhaps; others are kept."""
    for function in controllers():
        with driven(function) as controller:
            before, gone = {}, {}
            for id, disk in controller.namespaces.items():
                before[id] = os.urandom(disk.size)
                disk.write(0, before[id])
                rng = random.Random(id)
                starts = rng.sample(range(0, disk.blocks - 16, 16), 128)
                ranges = [(lba, rng.randrange(1, 17)) for lba in starts]
                disk.deallocate(ranges)
                disk.flush()
                gone[id] = {lba + i for lba, count in ranges for i in range(count)}
            blocks = {id: disk.block_size for id, disk in controller.namespaces.items()}
        for id, node in nodes(function, len(before)).items():
            after, block = read_by_linux(node), blocks[id]
            for lba in range(len(after) // block):
                at = slice(lba * block, (lba + 1) * block)
                now, then = after[at], before[id][at]
                assert now == then or (lba in gone[id] and now == bytes(block))
            page = 4096 // block
            for first in range(0, len(after) // block, page):
                if gone[id].issuperset(range(first, first + page)):
                    assert not any(after[first * block : (first + page) * block])


# Each piece tells its number and generation, and has a checksum.

_FILL = random.Random(2).randbytes(1 << 16)


def piece(number: int, generation: int, size: int) -> bytes:
    at = (number * 31 + generation * 977) % (len(_FILL) - size)
    data = struct.pack("<QQ", number, generation) + _FILL[at : at + size - 20]
    return data + struct.pack("<I", zlib.crc32(data))


def told(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Number and generation of a piece that is whole."""
    data = bytes(data)
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little"), "a piece is torn"
    number, generation = struct.unpack_from("<QQ", data)
    return number, generation


def test_a_hundred_commands_under_way() -> None:
    """Reads and writes of 4 KiB at random, through both queues and all kinds of memory."""
    (function, *_) = controllers()
    rng = random.Random(3)
    with driven(function) as controller:
        (disk,) = controller.namespaces.values()
        blocks = PIECE // disk.block_size
        count = disk.size // PIECE
        generations = [0] * count
        disk.write(0, b"".join(piece(number, 0, PIECE) for number in range(count)))
        buffer = controller.space.alloc(UNDER_WAY * PIECE)
        direct = [buffer.view[at : at + PIECE] for at in range(0, buffer.size, PIECE)]
        under_way: deque[tuple[nvme.Operation, int, memoryview, bool]] = deque()
        busy: set[int] = set()
        done = {True: 0, False: 0}
        end = time.monotonic() + SECONDS
        while under_way or time.monotonic() < end:
            while len(under_way) < UNDER_WAY and time.monotonic() < end:
                number = rng.randrange(count)
                if number in busy:
                    continue
                busy.add(number)
                memory = direct.pop()
                # Of those that are not direct each is copied, at an odd address.
                used = memory if number % 4 else memoryview(bytearray(PIECE + 1))[1:]
                writes = rng.random() < 0.5
                queue = rng.choice(controller.queues)
                if writes:
                    generations[number] += 1
                    used[:] = piece(number, generations[number], PIECE)
                    operation = disk.start_write(number * blocks, used, queue=queue)
                else:
                    operation = disk.start_read(number * blocks, used, queue=queue)
                under_way.append((operation, number, used, writes))
                if used is not memory:
                    direct.append(memory)
            operation, number, used, writes = under_way.popleft()
            operation.wait()
            assert told(used) == (number, generations[number])
            if number % 4:
                used[:] = bytes(PIECE)  # what is read next has to arrive
                direct.append(used)
            busy.remove(number)
            done[writes] += 1
        disk.flush()
        assert controller.resets == 0
    print(f"{done[True]} writes and {done[False]} reads of 4 KiB in {SECONDS:g} s")
    assert min(done.values()) > UNDER_WAY
    (node,) = nodes(function, 1).values()
    image = read_by_linux(node)
    for number, generation in enumerate(generations):
        assert told(image[number * PIECE : (number + 1) * PIECE]) == (number, generation)


_COUNT = 512  # pieces that are written until the end comes


def numbers_of(generation: int) -> list[int]:
    """The pieces that a generation writes."""
    return random.Random(generation).sample(range(_COUNT), 64)


def write_until_killed(function: Function, generation: int, pipe: int) -> None:
    """Write one generation after the other, and tell of each that was acknowledged."""
    with pyvfio.open(function) as device, nvme.Controller(device, queues=2) as controller:
        (disk,) = controller.namespaces.values()
        block = disk.block_size
        blocks = PIECE // block
        while True:
            generation += 1
            writes = [
                disk.start_write(
                    number * blocks,
                    # A block is what a disk writes whole or not at all.
                    b"".join(piece(number * blocks + i, generation, block) for i in range(blocks)),
                    queue=controller.queues[number % 2],
                )
                for number in numbers_of(generation)
            ]
            for write in writes:
                write.wait()
            os.write(pipe, struct.pack("<Q", generation))


def test_kill_9_tears_no_block_and_leaves_no_dma_behind() -> None:
    """What was acknowledged is there, and what was under way is whole: old or new.

    A device that read memory of the dead process would write what others have there by then. The
    disk itself is QEMU's and outlives the process, so nothing here tells whether a flush flushes.
    """
    (function, *_) = controllers()
    rng = random.Random(4)
    with bound(function.address):
        with pyvfio.open(function) as device, nvme.Controller(device) as controller:
            (disk,) = controller.namespaces.values()
            block = disk.block_size
            blocks = PIECE // block
            written = [0] * (_COUNT * blocks)  # the generation of each block
            disk.write(0, b"".join(piece(number, 0, block) for number in range(len(written))))
        last = 0
        for _ in range(KILLS):
            before, last = last, killed_after(rng.uniform(0.05, 0.6), function, last)
            assert last > before, "nothing was acknowledged before the end"
            for generation in range(before + 1, last + 1):
                for number in numbers_of(generation):
                    written[number * blocks : (number + 1) * blocks] = [generation] * blocks
            with pyvfio.open(function) as device, nvme.Controller(device) as controller:
                image = bytes(controller.namespaces[disk.id].read(0, len(written)))
            last += 1
            check(image, block, written, last)
    (node,) = nodes(function, 1).values()
    with node.open("rb") as file:
        assert file.read(len(image)) == image


def check(image: bytes, block: int, written: list[int], cut_short: int) -> None:
    """Each block is whole, and of the generation written last, or of the one cut short."""
    perhaps = set(numbers_of(cut_short))
    for number, generation in enumerate(written):
        has = told(image[number * block : (number + 1) * block])
        allowed = [generation] + [cut_short] * (number * block // PIECE in perhaps)
        assert has in [(number, generation) for generation in allowed], f"not {allowed}"
        written[number] = has[1]  # from now on it is what it is


def killed_after(seconds: float, function: Function, generation: int) -> int:
    """Let a child write, kill it; returns the last generation that it told of."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(function, generation, writer)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        said = os.read(reader, 8)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        while more := os.read(reader, 1 << 16):
            said += more
    finally:
        os.close(reader)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGKILL, "it ended by itself"
    return int(struct.unpack("<Q", said[-8:])[0])
