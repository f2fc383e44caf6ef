"""The NVMe driver: commands, memory, queues, waiting, and what goes wrong.

Works on any NVMe controller with a namespace. What writes to the medium, or would leave a disk with
something of its own to lose in doubt, runs on the bench alone.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

import pyvfio
from hwtests.bench import ON_BENCH
from hwtests.holdings import Holdings
from hwtests.numpy_here import usable_numpy
from hwtests.test_unplug import removed
from pyvfio import errors
from pyvfio.device import Device
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import identify, spec
from pyvfio.pci import Function

pytestmark = [
    pytest.mark.for_device(class_code=0x010802),
    pytest.mark.usefixtures("namespace"),
]

writes = pytest.mark.skipif(not ON_BENCH, reason="writes to the disk: on the bench only")
disturbs = pytest.mark.skipif(not ON_BENCH, reason="breaks the device: on the bench only")
both_ways = pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])

WAIT = 60.0
RESERVED = 0x7F  # an opcode, feature and log page that nothing has
MARK = 0xA5

# Asynchronous events (Base 2.0, figures 145, 147 and 202); a byte of Identify Controller.
TEMPERATURE_EVENT = 1 << 1
SMART_EVENT, TEMPERATURE_REACHED = 1, 1
VOLATILE_WRITE_CACHE, FLUSHES_ALL = 525, 3


@pytest.fixture(params=[True], ids=["interrupts"])
def controller(device: Device, request: pytest.FixtureRequest) -> Iterator[nvme.Controller]:
    with nvme.Controller(device, queues=4, interrupts=request.param) as controller:
        yield controller


@pytest.fixture
def disk(controller: nvme.Controller) -> nvme.Namespace:
    """The first namespace; on the bench with something in it that no other place has."""
    if not controller.namespaces:
        pytest.skip("the controller has no namespace")
    disk = controller.namespaces[min(controller.namespaces)]
    if ON_BENCH:
        disk.write(0, os.urandom(2 * controller.max_transfer + 16 * disk.block_size))
    return disk


def content(disk: nvme.Namespace, blocks: int) -> bytes:
    """What the disk begins with, read in the plainest way: block by block, each copied."""
    return b"".join(bytes(disk.read(lba, 1)) for lba in range(blocks))


# What it says of itself.


def test_it_says_who_it_is(controller: nvme.Controller, device: Device) -> None:
    identity = controller.identity
    assert identity.vendor_id == device.config.vendor_id
    assert identity.serial.isprintable()
    assert identity.model.isprintable()
    assert identity.version in (controller.version, (0, 0, 0))
    assert controller.max_transfer % 4096 == 0
    for number, disk in controller.namespaces.items():
        assert disk.id == number <= max(identity.namespaces, 1)
        assert 0 < disk.identity.used <= disk.identity.capacity <= disk.blocks
        assert disk.size == disk.blocks * disk.block_size


def test_health_logs_and_features(controller: nvme.Controller) -> None:
    smart = controller.smart()
    assert 0 < smart.temperature < 400
    assert controller.smart().read_commands >= smart.read_commands
    assert len(controller.log_page(nvme.Log.SMART, 8)) == 8
    assert len(controller.error_log(1)) <= 1
    queues = controller.get_feature(nvme.Feature.NUMBER_OF_QUEUES)
    assert min(queues & 0xFFFF, queues >> 16) + 1 >= len(controller.queues)
    threshold = controller.get_feature(nvme.Feature.TEMPERATURE_THRESHOLD)
    try:
        controller.set_feature(nvme.Feature.TEMPERATURE_THRESHOLD, threshold - 1)
        assert controller.get_feature(nvme.Feature.TEMPERATURE_THRESHOLD) == threshold - 1
    finally:
        controller.set_feature(nvme.Feature.TEMPERATURE_THRESHOLD, threshold)


def test_an_event_tells_that_it_is_too_warm(controller: nvme.Controller) -> None:
    """The controller ends a request that waits for such events (Base 2.0, 5.2)."""
    changed = (nvme.Feature.ASYNC_EVENT_CONFIGURATION, nvme.Feature.TEMPERATURE_THRESHOLD)
    before = {feature: controller.get_feature(feature) for feature in changed}
    request = controller.start_admin(nvme.Admin.ASYNC_EVENT_REQUEST, timeout=WAIT)
    try:
        controller.set_feature(changed[0], before[changed[0]] | TEMPERATURE_EVENT)
        temperature = controller.smart().temperature
        assert not request.done
        controller.set_feature(changed[1], temperature - 1)
        told = request.wait()
        assert told & 0x7 == SMART_EVENT
        assert told >> 8 & 0xFF == TEMPERATURE_REACHED
        assert told >> 16 & 0xFF == nvme.Log.SMART
        assert controller.smart().critical_warning & TEMPERATURE_EVENT
    finally:
        for feature, value in before.items():
            controller.set_feature(feature, value)
    assert controller.resets == 0


def test_reads_are_counted(controller: nvme.Controller, disk: nvme.Namespace) -> None:
    before = controller.smart().read_commands
    for _ in range(10):
        disk.read(0, 1)
    assert controller.smart().read_commands >= before + 10


def test_errors_have_their_names(controller: nvme.Controller, disk: nvme.Namespace) -> None:
    queue = controller.queues[0]
    buffer = controller.space.alloc(disk.block_size)

    def read(lba: int) -> None:
        queue.command(
            nvme.Io.READ,
            lba & 0xFFFFFFFF,
            lba >> 32,
            namespace=disk.id,
            memory=buffer.view,
            iova=buffer.iova,
            size=buffer.size,
            name="a read",
        ).wait()

    no_page = (nvme.InvalidLogPage, nvme.InvalidField)
    wrong: list[tuple[Any, Callable[[], object]]] = [
        (nvme.LbaOutOfRange, lambda: read(disk.blocks)),
        (nvme.LbaOutOfRange, lambda: read(1 << 40)),
        (nvme.InvalidNamespace, lambda: controller.identify_namespace(0xFFFFFFF0)),
        (nvme.InvalidField, lambda: controller.get_feature(RESERVED)),
        (no_page, lambda: controller.log_page(RESERVED, 4)),
        (nvme.InvalidOpcode, lambda: controller.admin(RESERVED)),
        (nvme.InvalidOpcode, lambda: queue.command(RESERVED, namespace=disk.id).wait()),
        (errors.RangeError, lambda: disk.read(disk.blocks, 1)),
        (errors.RangeError, lambda: disk.read(disk.blocks - 1, 2)),
        (errors.ArgumentError, lambda: disk.read_into(0, bytes(disk.block_size))),
        (errors.ArgumentError, lambda: disk.read_into(0, bytearray(disk.block_size - 1))),
        (errors.ArgumentError, lambda: disk.read_many([0], bytearray(disk.block_size))),
    ]
    for kind, action in wrong:
        with pytest.raises(kind) as caught:
            action()
        if isinstance(caught.value, nvme.CommandFailed):
            assert caught.value.name in str(caught.value)
            assert not caught.value.retry
    read(disk.blocks - 1)
    assert controller.resets == 0


def test_a_failure_in_the_middle_of_many_is_told(
    controller: nvme.Controller, disk: nvme.Namespace
) -> None:
    """The device's own refusal, of one among good ones that all end."""
    blocks = disk.blocks
    buffer = controller.space.alloc(64 * disk.block_size)
    disk.blocks = 1 << 40  # what the driver checks; the device knows better
    try:
        lbas = [*range(40), blocks, *range(23)]
        with pytest.raises(nvme.LbaOutOfRange, match=f"from {blocks}"):
            disk.read_many(lbas, buffer.view, depth=8)
        with pytest.raises(nvme.LbaOutOfRange):
            disk.read(blocks - 1, 2)
    finally:
        disk.blocks = blocks
    assert controller.queues[0].under_way == 0
    disk.read(0, 1)


# Memory.


def test_memory_of_any_kind(controller: nvme.Controller, disk: nvme.Namespace) -> None:
    """Each is filled, and nothing beside it."""
    block = disk.block_size
    blocks = (1 << 20) // block  # as many as are mapped rather than copied
    if disk.blocks < blocks:
        pytest.skip("the disk is smaller than a MiB")
    wanted = disk.read(0, blocks)
    assert wanted[: 8 * block] == content(disk, 8)
    odd = bytearray([MARK]) * (blocks * block + 11)
    disk.read_into(0, memoryview(odd)[7:-4])
    assert odd == bytes([MARK]) * 7 + wanted + bytes([MARK]) * 4
    mapped = mmap.mmap(-1, blocks * block)
    before = Holdings.now()
    disk.read_into(0, mapped)
    assert mapped[:] == wanted
    assert Holdings.now() == before, "memory mapped for the transfer stays mapped"
    mapped[:] = bytes(len(mapped))
    with controller.space.map(mapped):
        disk.read_into(0, memoryview(mapped)[: 3 * block])
    assert mapped[: 4 * block] == wanted[: 3 * block] + bytes(block)
    words = memoryview(bytearray(2 * block)).cast("I")
    disk.read_into(0, words)
    assert bytes(words) == wanted[: 2 * block]


def test_numpy(controller: nvme.Controller, disk: nvme.Namespace) -> None:
    numpy = usable_numpy()
    block = disk.block_size
    wanted = bytes(disk.read(0, 64))
    array = numpy.zeros((64, block // 4), dtype="<u4")
    disk.read_into(0, array)
    assert array.tobytes() == wanted
    buffer = controller.space.alloc(64 * block)
    reached = numpy.frombuffer(buffer.view, dtype="u1")
    order = numpy.array([*range(63, -1, -1)])
    disk.read_many(order, reached)
    got = reached.tobytes()
    assert b"".join(got[i * block :][:block] for i in range(63, -1, -1)) == wanted
    with pytest.raises(errors.ArgumentError, match="contiguous"):
        disk.read_into(0, array[:, ::2])


@writes
def test_what_is_written_may_be_anything(controller: nvme.Controller, disk: nvme.Namespace) -> None:
    block = disk.block_size
    base = 100
    for size in (block, 3 * block, 1 << 20, controller.max_transfer + block):
        data = os.urandom(size)
        odd = memoryview(b"x" + data + b"y")[1:-1]
        mapped = mmap.mmap(-1, size)
        mapped[:] = data
        direct = controller.space.alloc(size + 4)
        direct.view[4:] = data
        for given in (data, odd, bytearray(data), mapped, direct.view[4:]):
            disk.write(base, bytes(size))
            disk.write(base, given)
            disk.flush()
            assert disk.read(base, size // block) == data
        direct.close()


def test_every_way_that_memory_lies_in_pages(
    controller: nvme.Controller, disk: nvme.Namespace
) -> None:
    """PRP 1 alone, PRP 2, lists; the last beyond what one command moves."""
    page, block = 4096, disk.block_size
    wanted = disk.read(0, 130 * page // block)
    buffer = controller.space.alloc(132 * page)
    view = buffer.view
    mark = bytes([MARK]) * len(view)
    lengths = sorted(
        {
            size
            for pages in (1, 2, 3, 129)
            for size in (pages * page - block, pages * page, pages * page + block)
            if size > 0
        }
    )
    for at, size in itertools.product((0, 4, 508, 2048, 3584, 4092), lengths):
        view[:] = mark
        disk.read_into(0, view[at : at + size])
        assert view[at : at + size] == wanted[:size], f"{size} bytes at {at}"
        assert view[:at] == mark[:at]
        assert view[at + size :] == mark[at + size :]
        if ON_BENCH:
            data = os.urandom(size)
            view[at : at + size] = data
            disk.write(2048, view[at : at + size])
            assert disk.read(2048, size // block) == data, f"{size} bytes at {at}"
    assert controller.resets == 0


def test_more_than_a_command_moves(controller: nvme.Controller, disk: nvme.Namespace) -> None:
    block = disk.block_size
    # More commands than a transfer keeps under way, and one that is not full.
    size = min(40 * controller.max_transfer, disk.size) - block
    size -= size % block
    buffer = controller.space.alloc(size)
    disk.read_into(0, buffer.view)
    copied = disk.read(0, size // block)
    assert buffer.view == copied
    assert copied[: 4 * block] == content(disk, 4)
    assert copied[-block:] == disk.read(size // block - 1, 1)


@writes
def test_each_namespace_is_a_disk_of_its_own(controller: nvme.Controller) -> None:
    if not controller.namespaces:
        pytest.skip("the controller has no namespace")
    disks = controller.namespaces.values()
    data = {disk.id: os.urandom(1 << 20) for disk in disks}
    operations = [disk.start_write(0, data[disk.id]) for disk in disks]
    for operation in operations:
        operation.wait()
    for disk in disks:
        disk.flush()
        assert disk.read(0, (1 << 20) // disk.block_size) == data[disk.id]
        disk.deallocate([(8, 8), (24, 8)])  # whole pages of 4 KiB, which QEMU does deallocate
        after, block = disk.read(0, 40), disk.block_size
        for first in range(0, 40, 8):
            eight = slice(first * block, (first + 8) * block)
            wanted = bytes(8 * block) if first in (8, 24) else data[disk.id][eight]
            assert after[eight] == wanted
    controller.refresh()
    assert controller.namespaces.keys() == data.keys()


def test_one_flush_is_for_all_namespaces(controller: nvme.Controller) -> None:
    """Where the controller says that it can be (Base 2.0, figure 275, VWC)."""
    which = spec.Identify.CONTROLLER
    identified = controller.admin(nvme.Admin.IDENTIFY, which, size=identify.SIZE)[1]
    queue = controller.queues[0]
    flush = queue.command(nvme.Io.FLUSH, namespace=nvme.ALL_NAMESPACES, name="flush all")
    if identified[VOLATILE_WRITE_CACHE] >> 1 & 3 == FLUSHES_ALL:
        flush.wait()
    else:
        with suppress(nvme.CommandFailed):
            flush.wait()
        pytest.skip("the controller does not say that one flush can be for all namespaces")
    assert queue.under_way == 0


# Queues and waiting.


@both_ways
def test_every_way_of_waiting(device: Device, interrupts: bool) -> None:
    with nvme.Controller(device, queues=2, interrupts=interrupts) as controller:
        disk = next(iter(controller.namespaces.values()))
        block, count = disk.block_size, 200
        wanted = content(disk, count)
        buffer = device.dma.alloc(count * block)
        pieces = [buffer.view[at : at + block] for at in range(0, count * block, block)]

        def one_by_one() -> None:
            for lba, piece in enumerate(pieces):
                disk.read_into(lba, piece)

        def started(held: bool) -> None:
            queue = controller.queues[1]
            if held:
                with queue.batch():
                    reads = [disk.start_read(i, p, queue=queue) for i, p in enumerate(pieces)]
            else:
                reads = [disk.start_read(i, p, queue=queue) for i, p in enumerate(pieces)]
            for read in reversed(reads):
                read.wait()
                assert read.done
                assert read.error is None

        async def awaited() -> None:
            async def some(first: int) -> None:
                for lba in range(first, count, 20):
                    await disk.start_read(lba, pieces[lba], queue=controller.queues[lba % 2])

            await asyncio.gather(*(some(first) for first in range(20)))

        async def many_awaited() -> None:
            await disk.start_read_many(range(count), buffer.view)

        ways: list[Callable[[], object]] = [
            one_by_one,
            lambda: started(held=True),
            lambda: started(held=False),
            lambda: asyncio.run(awaited()),
            lambda: asyncio.run(many_awaited()),
            lambda: disk.read_many(range(count), buffer.view, depth=7),
            lambda: disk.read_many(range(0, count, 8), buffer.view, blocks=8, depth=1000),
        ]
        for way in ways:
            buffer.view[:] = bytes(buffer.size)
            way()
            assert buffer.view == wanted
        assert controller.resets == 0


@pytest.mark.parametrize("depth", [2, 3, 128])
def test_queues_go_round_thousands_of_times(device: Device, depth: int) -> None:
    with nvme.Controller(device, depth=depth) as controller:
        disk = next(iter(controller.namespaces.values()))
        block = disk.block_size
        wanted = content(disk, 64)
        buffer = device.dma.alloc(64 * block)
        lbas = [*range(64)] * (256 if depth > 3 else 64)
        random.Random(depth).shuffle(lbas)
        many = device.dma.alloc(len(lbas) * block)
        disk.read_many(lbas, many.view)
        assert many.view == b"".join(wanted[lba * block :][:block] for lba in lbas)
        reads = [disk.start_read(lba, buffer.view[lba * block :][:block]) for lba in range(64)]
        for read in reads:
            read.wait()
        assert buffer.view == wanted
        (queue,) = controller.queues
        assert queue.under_way == 0
        assert queue.depth == depth


@both_ways
def test_threads_and_event_loops_share_queues(device: Device, interrupts: bool) -> None:
    """More threads than queues, beside event loops of their own, and administration meanwhile."""
    with nvme.Controller(device, queues=2, depth=8, interrupts=interrupts) as controller:
        disk = next(iter(controller.namespaces.values()))
        block = disk.block_size
        wanted = content(disk, 64)
        rounds = 200 if interrupts else 50

        def blocking(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(rounds):
                lba = rng.randrange(64)
                got = disk.read(lba, 1, queue=rng.choice(controller.queues))
                assert got == wanted[lba * block :][:block]

        async def awaiting(seed: int) -> None:
            async def one(seed: int) -> None:
                rng, data = random.Random(seed), bytearray(block)
                for _ in range(rounds // 10):
                    lba = rng.randrange(64)
                    await disk.start_read(lba, data, queue=rng.choice(controller.queues))
                    assert data == wanted[lba * block :][:block]

            await asyncio.gather(*(one(seed * 100 + i) for i in range(10)))

        def administration() -> None:
            for _ in range(rounds // 4):
                assert controller.identify_namespace(disk.id) == disk.identity

        with ThreadPoolExecutor(8) as pool:
            work = [pool.submit(blocking, seed) for seed in range(4)]
            work += [pool.submit(asyncio.run, awaiting(seed)) for seed in (5, 6)]
            work += [pool.submit(administration) for _ in range(2)]
            for future in work:
                future.result(WAIT)
        assert controller.resets == 0
        assert not any(queue.under_way for queue in controller.queues)


def test_each_queue_has_a_vector_and_no_more_are_taken(function: Function) -> None:
    def vectors() -> int:
        with open("/proc/interrupts") as file:
            return sum(f"({function.address})" in line for line in file if "vfio-msi" in line)

    with pyvfio.open(function) as device:
        with nvme.Controller(device, queues=3) as controller:
            available = device.msix.count or device.msi.count
            assert vectors() == min(len(controller.queues) + 1, available)
            for disk in controller.namespaces.values():
                for queue in controller.queues:
                    disk.read(0, 1, queue=queue)
        assert vectors() == 0
        with nvme.Controller(device, interrupts=False):
            assert vectors() == 0


def test_a_command_is_done_once_what_it_gave_was_handed_over(controller: nvme.Controller) -> None:
    """Whoever sees that it is done, in whatever thread, finds what comes of it."""
    seen = []
    command = controller.start_admin(
        nvme.Admin.IDENTIFY, 1, size=4096, after=lambda command, view: seen.append(command.done)
    )
    command.wait()
    assert command.done
    assert seen == [False]


# What is let go too early.


def test_memory_let_go_under_way_is_not_given_to_others(
    controller: nvme.Controller, disk: nvme.Namespace
) -> None:
    """Tasks are cancelled and buffers closed before the device has begun: it ends in peace."""
    queue = controller.queues[0]
    block = disk.block_size
    mark = bytes([MARK]) * block

    async def cancelled() -> None:
        async def one() -> None:
            buffer = controller.space.alloc(block)
            try:
                await disk.start_read(0, buffer.view, queue=queue)
            finally:
                buffer.close()

        tasks = [asyncio.create_task(one()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with queue.batch():
        for _ in range(20):
            buffer = controller.space.alloc(block)
            disk.start_read(0, buffer.view, queue=queue)
            buffer.close()
        del buffer
        others = [controller.space.alloc(block) for _ in range(100)]
        for other in others:
            other.view[:] = mark
    disk.read(0, 1, queue=queue)
    assert all(other.view == mark for other in others)
    for _ in range(5):
        asyncio.run(cancelled())
        others += [controller.space.alloc(block) for _ in range(100)]
        for other in others:
            other.view[:] = mark
        disk.read(0, 1, queue=queue)
        assert all(other.view == mark for other in others)
    assert controller.resets == 0


@disturbs
def test_memory_unmapped_under_way_does_no_harm(
    controller: nvme.Controller, disk: nvme.Namespace
) -> None:
    """A large buffer is unmapped at once; the IOMMU stops the device, the driver goes on."""
    queue = controller.queues[0]
    with queue.batch():
        buffer = controller.space.alloc(2 << 20)
        read = disk.start_read(0, buffer.view[: 16 * disk.block_size], queue=queue)
        buffer.close()
    with suppress(nvme.NvmeError):  # QEMU's says nothing of it
        read.wait()
    assert read.done
    assert disk.read(0, 8) == content(disk, 8)


# Time and failures.


def test_a_command_that_never_ends(controller: nvme.Controller, disk: nvme.Namespace) -> None:
    """Nothing happens, so an Asynchronous Event Request waits: aborted, or ended by a reset."""
    wanted = content(disk, 1)
    requests = [
        controller.start_admin(nvme.Admin.ASYNC_EVENT_REQUEST, name="a wait", timeout=0.2)
        for _ in range(2)
    ]

    async def awaits() -> None:
        with pytest.raises(nvme.CommandTimedOut, match="a wait took too long"):
            await requests[0]

    asyncio.run(awaits())
    with pytest.raises(nvme.CommandTimedOut):
        requests[1].wait()
    assert controller.resets <= 1
    assert disk.read(0, 1) == wanted


@disturbs
def test_registers_out_of_reach_for_a_moment(
    controller: nvme.Controller, device: Device, disk: nvme.Namespace
) -> None:
    """As while somebody resets the device: no command is lost, nor that it has ended."""
    wanted = content(disk, 8)
    data = bytearray(8 * disk.block_size)
    device.memory_decoding = False
    read = disk.start_read(0, data)
    device.memory_decoding = True
    read.wait()
    assert data == wanted
    read = disk.start_read(0, data)
    device.memory_decoding = False
    end = time.monotonic() + WAIT
    while not read.done:
        controller.queues[0].reap()
        assert time.monotonic() < end
    device.memory_decoding = True
    disk.read_many([0] * 300, controller.space.alloc(300 * disk.block_size).view)
    assert controller.resets == 0


class Load:
    """Threads and an event loop that read until they are stopped or refused."""

    def __init__(self, controller: nvme.Controller, disk: nvme.Namespace) -> None:
        self.failures: list[BaseException] = []
        self.wrong = 0
        self.count = 0
        self._stop = False
        self._controller = controller
        self._disk = disk
        self._wanted = content(disk, 64)
        self._threads = [threading.Thread(target=self._read) for _ in range(2)]
        self._threads += [threading.Thread(target=self._many), threading.Thread(target=self._loop)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop = True
        self.join()

    def join(self) -> None:
        """Wait until all have ended: stopped, or since the controller was closed."""
        for thread in self._threads:
            thread.join(WAIT)
        assert not any(thread.is_alive() for thread in self._threads), "a wait never ended"

    def until(self, count: int) -> None:
        """Wait until that many more reads have ended well."""
        end, count = time.monotonic() + WAIT, self.count + count
        while self.count < count:
            assert time.monotonic() < end, f"nothing is read any more: {self.failures[-3:]}"
            time.sleep(0.01)

    def _check(self, lba: int, data: bytearray | memoryview) -> None:
        block = self._disk.block_size
        self.wrong += bytes(data) != self._wanted[lba * block :][: len(data)]
        self.count += 1

    def _goes_on(self, error: errors.Error) -> bool:
        self.failures.append(error)
        time.sleep(0.001)  # what is refused is so at once
        return not isinstance(error, errors.Closed)

    def _read(self) -> None:
        queue = random.choice(self._controller.queues)
        going = True
        while going and not self._stop:
            try:
                self._check(3, self._disk.read(3, 8, queue=queue))
            except errors.Error as error:
                going = self._goes_on(error)

    def _many(self) -> None:
        disk = self._disk
        buffer = self._controller.space.alloc(64 * disk.block_size)
        going = True
        while going and not self._stop:
            try:
                disk.read_many([*range(64)], buffer.view, queue=self._controller.queues[-1])
                self._check(0, buffer.view)
            except errors.Error as error:
                going = self._goes_on(error)

    def _loop(self) -> None:
        async def one() -> None:
            data = bytearray(8 * self._disk.block_size)
            going = True
            while going and not self._stop:
                try:
                    await self._disk.start_read(5, data)
                    self._check(5, data)
                except errors.Error as error:
                    going = self._goes_on(error)
                    await asyncio.sleep(0)

        async def all_of_them() -> None:
            await asyncio.gather(*(one() for _ in range(8)))

        asyncio.run(all_of_them())


@pytest.fixture
def load(controller: nvme.Controller, disk: nvme.Namespace) -> Iterator[Load]:
    load = Load(controller, disk)
    try:
        load.until(50)
        yield load
    finally:
        load.stop()


def test_a_reset_under_load(
    controller: nvme.Controller, device: Device, load: Load, disk: nvme.Namespace
) -> None:
    """By the driver, and of the device behind its back."""
    for _ in range(3):
        controller.reset()
        load.until(50)
        if device.can_reset:
            device.reset()
            load.until(50)
    load.stop()
    assert not load.wrong
    assert controller.resets >= (6 if device.can_reset else 3)
    assert all(isinstance(failure, nvme.ControllerReset) for failure in load.failures)
    assert not any(queue.under_way for queue in controller.queues)
    disk.read(0, 1)


@disturbs
def test_a_controller_that_cannot_reach_memory(
    controller: nvme.Controller, device: Device, load: Load, disk: nvme.Namespace
) -> None:
    """QEMU's reports a fatal status; the driver gives up, until it is told to try again."""
    device.bus_master = False
    end = time.monotonic() + WAIT
    while controller.queues[0].refusal is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    refuses(nvme.ControllerFailed, partial(disk.write, 0, bytes(controller.max_transfer)), 20)
    refuses(nvme.ControllerFailed, controller.smart, 20)
    controller.reset()
    load.until(50)
    load.stop()
    assert not load.wrong


@both_ways
def test_closed_under_load(function: Function, interrupts: bool) -> None:
    with pyvfio.open(function):
        pass
    before = Holdings.now()
    with pyvfio.open(function) as device:
        for _ in range(3):
            controller = nvme.Controller(device, queues=2, interrupts=interrupts)
            try:
                load = Load(controller, next(iter(controller.namespaces.values())))
                load.until(50)
            finally:
                controller.close()
            load.join()
            assert not load.wrong
            assert len(load.failures) == 11, load.failures
            assert all("NVMe controller was closed" in str(error) for error in load.failures)
            controller.close()
    del load, controller
    assert Holdings.now() == before


def test_an_event_loop_goes_on_after_the_controller_was_closed(device: Device) -> None:
    """What it watched is gone, and a descriptor's number is soon another's."""

    async def work() -> None:
        for _ in range(5):
            with nvme.Controller(device) as controller:
                disk = next(iter(controller.namespaces.values()))
                queue = controller.queues[0]
                with queue.batch():
                    request = controller.start_admin(nvme.Admin.ASYNC_EVENT_REQUEST)
                waits = asyncio.ensure_future(_awaited(request))
                await asyncio.sleep(0)
                await disk.start_read(0, bytearray(disk.block_size))
            with pytest.raises(errors.Closed, match="NVMe controller was closed"):
                await asyncio.wait_for(waits, WAIT)

    asyncio.run(work())


async def _awaited(operation: nvme.Operation) -> int:
    return await operation


def test_what_was_closed_refuses_and_keeps_nothing(function: Function) -> None:
    with pyvfio.open(function) as device:
        with nvme.Controller(device) as controller:
            disk = next(iter(controller.namespaces.values()))
            disk.read(0, 1)
        refused: list[Callable[[], object]] = [
            lambda: disk.start_read(0, bytearray(controller.max_transfer)).wait(),
            controller.smart,
            controller.reset,
            disk.flush,
        ]
        for action in refused:
            refuses(errors.Closed, action, 20)
        if controller.identity.can_deallocate:
            refuses(errors.Closed, lambda: disk.deallocate([(0, 1)] * 256), 1200)


def refuses(kind: type[errors.Error], action: Callable[[], object], times: int) -> None:
    """It is refused each time, and keeps no memory.

    The commands of other threads that were under way keep theirs until the controller is reset, so
    that their next ones may need a page each.
    """
    with pytest.raises(kind):
        action()
    locked = Holdings.now().locked
    for _ in range(times):
        with pytest.raises(kind):
            action()
    assert Holdings.now().locked < locked + times // 2 * mmap.PAGESIZE


def test_the_device_closed_first(function: Function) -> None:
    before = Holdings.now()
    device = pyvfio.open(function)
    controller = nvme.Controller(device, queues=2)
    disk = next(iter(controller.namespaces.values()))
    request = controller.start_admin(nvme.Admin.ASYNC_EVENT_REQUEST)
    device.close()
    refused: list[Callable[[], object]] = [partial(disk.read, 0, 1), request.wait]
    for action in refused:
        with pytest.raises((errors.Closed, errors.StateError)):
            action()
    controller.close()
    del action, refused, controller, disk, request
    assert Holdings.now() == before


@disturbs
def test_the_host_takes_the_device_out(function: Function) -> None:
    before = Holdings.now()
    with pyvfio.open(function) as device, nvme.Controller(device, queues=2) as controller:
        disk = next(iter(controller.namespaces.values()))
        with device.req.enable() as vectors, removed(function) as removing:
            assert vectors[0].wait(WAIT)
            disk.read(0, 1)  # the host waits
            load = Load(controller, disk)
            load.until(50)
            controller.close()
            load.join()
            assert not load.wrong
            device.close()
            assert removing.wait(WAIT) == 0
    del load, controller, disk
    assert Holdings.now() == before
