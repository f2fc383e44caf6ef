"""Threads and event loops that wait for completions, together and against each other."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import Operation, line

from .conftest import MakeController
from .model import BLOCK, Device

LONG = 20.0  # seconds after which a test has hung

Make = Callable[[], nvme.Namespace]


@pytest.fixture(params=[True, False], ids=["interrupts", "polled"])
def disk(request: pytest.FixtureRequest, make: MakeController) -> nvme.Namespace:
    return make(depth=8, interrupts=request.param).namespaces[1]


@pytest.fixture
def asleep(disk: nvme.Namespace, monkeypatch: pytest.MonkeyPatch) -> nvme.Namespace:
    """As the disk, and nothing but what has happened wakes who waits."""
    monkeypatch.setattr(line, "TICK", LONG)
    return disk


@contextmanager
def waiting(*operations: Operation) -> Iterator[list[Any]]:
    """A thread for each that waits; results or errors are in the list afterwards."""
    results: list[Any] = [None] * len(operations)
    begun = threading.Barrier(len(operations) + 1)

    def wait(number: int) -> None:
        begun.wait()
        try:
            results[number] = operations[number].wait()
        except errors.Error as error:
            results[number] = error

    threads = [threading.Thread(target=wait, args=(n,), daemon=True) for n in range(len(results))]
    for thread in threads:
        thread.start()
    begun.wait()
    yield results
    for thread in threads:
        thread.join(LONG / 2)
        assert not thread.is_alive(), "it waits for ever"


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, LONG / 2))


def sleepers(disk: nvme.Namespace, count: int) -> None:
    """Wait until so many threads sleep on the line (who polls never does)."""
    where = disk._controller.queues[0].line
    if where.vector is not None:
        while where._waiting < count:
            os.sched_yield()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_threads_on_one_line(device: Device, asleep: nvme.Namespace, order: list[int]) -> None:
    device.nvme.hold = True
    operations = [asleep.start_flush() for _ in range(3)]
    commands = device.nvme.under_way()
    with waiting(*operations) as results:
        sleepers(asleep, 3)
        for number in order:
            device.nvme.complete(commands[number], 0x006 if number == 1 else 0)
    assert results[0] == results[2] == 0
    assert isinstance(results[1], nvme.InternalError)


def test_the_admin_queue_interrupts(
    device: Device, make: MakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "TICK", LONG)
    controller = make(depth=8)
    event = controller.start_admin(nvme.Admin.ASYNC_EVENT_REQUEST)
    with waiting(event):
        while not controller._admin.line._asleep:
            time.sleep(0.001)
        command = device.nvme.waiting.pop()
        device.nvme.tell(0, command.identifier)


def test_a_thread_that_looks_wakes_another(device: Device, asleep: nvme.Namespace) -> None:
    device.nvme.hold = True
    flush = asleep.start_flush()
    with waiting(flush):
        sleepers(asleep, 1)
        (command,) = device.nvme.under_way()
        device.nvme.interrupt = lambda vector: None  # an interrupt that is lost
        device.nvme.complete(command)
        asleep._controller.queues[0].line.look()


def test_tasks_on_one_line(device: Device, asleep: nvme.Namespace) -> None:
    async def main() -> None:
        device.nvme.hold = True
        tasks = [asyncio.ensure_future(awaited(asleep.start_flush())) for _ in range(7)]
        await asyncio.sleep(0)
        for command in reversed(device.nvme.under_way()):
            device.nvme.complete(command)
        assert await asyncio.gather(*tasks) == [0] * 7
        assert not asleep._controller.queues[0].line._watches

    run(main())


async def awaited(operation: Operation) -> int:
    return await operation


def test_a_cancelled_task(device: Device, asleep: nvme.Namespace) -> None:
    """The read goes on, its memory is kept, and others are served."""

    async def main() -> None:
        device.nvme.hold = True
        with device.dma.alloc(BLOCK) as buffer:
            read = asleep.start_read(0, buffer.view)
            task = asyncio.ensure_future(awaited(read))
            flush = asyncio.ensure_future(awaited(asleep.start_flush()))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not read.done
            device.nvme.disk[:4] = b"data"
            for command in device.nvme.under_way():
                device.nvme.complete(command)
            assert await flush == 0
            assert await read == 0
            assert bytes(buffer.view[:4]) == b"data"

    run(main())


def test_a_thread_and_a_loop_on_one_line(device: Device, asleep: nvme.Namespace) -> None:
    device.nvme.hold = True
    first, second = asleep.start_flush(), asleep.start_flush()

    async def main() -> None:
        task = asyncio.ensure_future(awaited(second))
        await asyncio.sleep(0)
        one, other = device.nvme.under_way()
        device.nvme.complete(other)
        assert await task == 0
        device.nvme.complete(one)

    with waiting(first) as results:
        sleepers(asleep, 1)
        run(main())
    assert results == [0]


def test_a_thread_beside_a_loop_that_awaits_something_else(
    device: Device, asleep: nvme.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is woken by each of its interrupts, and the loop rests while there are none."""
    device.nvme.hold = True
    long = asleep.start_flush()
    (last,) = device.nvme.under_way()
    turns = 0
    interrupted = line._Watch._interrupted

    def counted(watch: line._Watch) -> None:
        nonlocal turns
        turns += 1
        interrupted(watch)

    monkeypatch.setattr(line._Watch, "_interrupted", counted)

    def work() -> None:
        for number in range(50):
            flush = asleep.start_flush()
            with waiting(flush) as results:
                sleepers(asleep, 1)
                if not number:
                    before = turns
                    time.sleep(0.05)
                    assert turns == before
                device.nvme.complete(device.nvme.under_way()[-1])
            assert results == [0]

    async def main() -> None:
        task = asyncio.ensure_future(awaited(long))
        await asyncio.sleep(0)
        await asyncio.to_thread(work)
        await asyncio.sleep(0.01)
        before = turns
        await asyncio.sleep(0.05)
        assert turns == before
        device.nvme.complete(last)
        assert await task == 0

    asyncio.run(main())


def test_two_loops_on_one_line(device: Device, asleep: nvme.Namespace) -> None:
    device.nvme.hold = True
    first, second = asleep.start_flush(), asleep.start_flush()
    begun = threading.Barrier(3)

    async def main(operation: Operation) -> int:
        task = asyncio.ensure_future(awaited(operation))
        await asyncio.sleep(0)
        begun.wait(LONG)
        return await task

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(run, main(operation)) for operation in (first, second)]
        begun.wait(LONG)
        for command in reversed(device.nvme.under_way()):
            device.nvme.complete(command)
        assert [result.result(LONG) for result in results] == [0, 0]


def test_a_loop_that_was_closed(device: Device, asleep: nvme.Namespace) -> None:
    """What it awaited ends all the same, and so does all that ends with it."""
    device.nvme.hold = True
    first, second = asleep.start_flush(), asleep.start_flush()
    loop = asyncio.new_event_loop()
    task = loop.create_task(awaited(first))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    for command in device.nvme.under_way():
        device.nvme.complete(command)
    assert second.wait() == 0
    assert first.wait() == 0
    assert not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


# Closing and recovering.


def test_closing_while_threads_wait(device: Device, asleep: nvme.Namespace) -> None:
    device.nvme.hold = True
    operations = [asleep.start_flush(), asleep.start_read(0, bytearray(99 * BLOCK))]
    with waiting(*operations) as results:
        sleepers(asleep, 2)
        asleep._controller.close()
    assert all(isinstance(result, errors.Closed) for result in results)


@pytest.mark.parametrize("by", ["task", "thread"])
@pytest.mark.parametrize("completed", [0, 1, 3])
def test_closing_while_tasks_wait(
    device: Device, asleep: nvme.Namespace, by: str, completed: int
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[Any] = []
        loop.set_exception_handler(lambda loop, what: seen.append(what))
        device.nvme.hold = True
        tasks = [asyncio.ensure_future(awaited(asleep.start_flush())) for _ in range(3)]
        await asyncio.sleep(0)
        for command in device.nvme.under_way()[:completed]:
            device.nvme.complete(command)
        asleep._controller.queues[0].reap()  # done, and the tasks have not heard of it
        if by == "task":
            asleep._controller.close()
        else:
            await asyncio.to_thread(asleep._controller.close)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:completed] == [0] * completed
        for result in results[completed:]:
            assert isinstance(result, errors.Closed)
            assert "controller" in str(result)
        # Descriptors that get the vectors' numbers are somebody else's.
        first, end = os.pipe()
        os.write(end, b"x")
        for fd in [first, *(os.dup(first) for _ in range(8))]:
            heard = asyncio.Event()
            loop.add_reader(fd, heard.set)
            await heard.wait()
            loop.remove_reader(fd)
            os.close(fd)
        os.close(end)
        assert not seen

    run(main())


def test_an_interrupt_while_it_is_closed(device: Device, asleep: nvme.Namespace) -> None:
    async def main() -> None:
        seen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: seen.append(what))
        device.nvme.hold = True
        task = asyncio.ensure_future(awaited(asleep.start_flush()))
        await asyncio.sleep(0)
        device.nvme.interrupt(0)
        device.nvme.interrupt(1)
        asleep._controller.close()
        with pytest.raises(errors.Closed, match="controller"):
            await task
        assert not seen

    run(main())


def test_mending_while_others_wait(device: Device, disk: nvme.Namespace) -> None:
    """Threads and a loop, all of them looking: one reset, and all hear of it."""
    device.nvme.hold = True
    operations = [disk.start_flush() for _ in range(3)]
    mine, later = disk.start_flush(), [disk.start_read(0, bytearray(5 * BLOCK)) for _ in range(6)]

    async def main() -> None:
        task = asyncio.ensure_future(awaited(mine))
        await asyncio.sleep(0)
        device.nvme.hold = False
        device.nvme.fatal = True
        with pytest.raises(nvme.ControllerFatal):
            await task

    with waiting(*operations) as results:
        run(main())
    assert [type(result) for result in results] == [nvme.ControllerFatal] * 3
    outcomes = []
    for operation in later:
        try:
            outcomes.append(operation.wait())
        except nvme.ControllerFatal:
            outcomes.append(-1)
    assert outcomes == [-1] * 3 + [0] * 3
    assert disk._controller.resets == 1
    disk.flush()


def test_giving_up_while_others_wait(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.hold = True
    operations = [disk.start_flush() for _ in range(3)]
    mine = disk.start_flush()

    async def main() -> None:
        with pytest.raises(errors.DeviceGone):
            await mine

    with waiting(*operations) as results:
        device.nvme.gone = True
        run(main())
    assert [type(result) for result in results] == [errors.DeviceGone] * 3
    assert not device.bus_master


def test_an_interrupt_that_is_lost(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.interrupt = lambda vector: None
    disk.flush()

    async def main() -> None:
        device.nvme.hold = True
        task = asyncio.ensure_future(awaited(disk.start_flush()))
        await asyncio.sleep(0)
        device.nvme.complete(device.nvme.under_way()[0])
        assert await task == 0

    run(main())


# Much at a time.


def test_many_threads(device: Device, make: MakeController) -> None:
    """Each in its own place, on two queues with one vector, with and without DMA buffers."""
    device.msix.count = 1
    controller = make(depth=4, queues=2)
    disk = controller.namespaces[1]

    def work(number: int) -> None:
        queue = controller.queues[number % 2]
        with device.dma.alloc(16 * BLOCK) as buffer:
            for turn in range(12):
                data = bytes([number, turn]) * (8 * BLOCK)
                if turn % 2:
                    buffer.view[:] = data
                    disk.write_many(
                        range(number * 16, number * 16 + 16), buffer.view, depth=3, queue=queue
                    )
                else:
                    disk.write(number * 16, data, queue=queue)
                assert disk.read(number * 16, 16, queue=queue) == data

    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(work, number) for number in range(4)]:
            result.result(LONG)
    assert controller.resets == 0
    assert all(queue.under_way == 0 for queue in controller.queues)


def test_many_tasks(device: Device, disk: nvme.Namespace) -> None:
    async def work(number: int) -> None:
        for turn in range(12):
            data = bytes([number, turn]) * (8 * BLOCK)
            await disk.start_write(number * 16, data)
            got = bytearray(len(data))
            await disk.start_read(number * 16, got)
            assert got == data

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(20)))

    run(main())
    assert disk._controller.queues[0].under_way == 0
