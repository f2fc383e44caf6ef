"""Completions that a controller should not post: they complete nothing, and are counted."""

from __future__ import annotations

import itertools
import os
import struct
from typing import Any

import pytest

from pyvfio.drivers import nvme
from pyvfio.drivers.nvme.queue import MOST_ENTRIES

from .conftest import MakeController
from .model import BLOCK, Clock, Device, Submission

TOO_MANY = 100_000  # doorbells after which a driver has not looked at the clock


def only(device: Device) -> Submission:
    (command,) = device.nvme.under_way()
    return command


def test_repeated_completion_completes_no_later_command(
    device: Device, make: MakeController
) -> None:
    """Nor any other while generations last, on a queue that has room for one command."""
    controller = make(depth=2)
    disk, queue = controller.namespaces[1], controller.queues[0]
    device.nvme.hold = True
    with device.dma.alloc(BLOCK) as buffer:
        first = disk.start_read(0, buffer.view)
        before = only(device)
        device.nvme.complete(before)
        first.wait()
        for _ in range(20):
            second = disk.start_read(1, buffer.view)
            device.nvme.tell(1, before.identifier)
            queue.line.look()
            assert not second.done
            device.nvme.complete(only(device))
            second.wait()
    assert queue.wrong_completions == controller.wrong_completions == 20


def test_each_completion_posted_twice_gives_right_data_or_errors(
    device: Device, disk: nvme.Namespace
) -> None:
    device.nvme.disk[:] = content = os.urandom(len(device.nvme.disk))
    tell = device.nvme.tell

    def twice(queue: int, *given: Any, **named: Any) -> None:
        tell(queue, *given, **named)
        if queue:
            tell(queue, *given, **named)

    device.nvme.tell = twice  # type: ignore[method-assign]
    right = 0
    with device.dma.alloc(8 * BLOCK) as buffer:
        for lba in range(40):
            buffer.view[:] = bytes(8 * BLOCK)
            try:
                disk.read_into(lba, buffer.view)
            except nvme.ControllerFatal:
                continue
            assert buffer.view == content[lba * BLOCK : (lba + 8) * BLOCK]
            right += 1
    assert right
    assert disk._controller.wrong_completions


@pytest.mark.parametrize("depth", [2, 3, 8, 9, 128])
def test_identifiers_are_used_in_turn(device: Device, make: MakeController, depth: int) -> None:
    """Each slot has another generation each time, and begins again after the last."""
    queue = make(depth=depth).queues[0]
    size = 1 << (depth - 1).bit_length()
    queue._identifiers[:] = range(65536 - 3 * size, 65536 - 2 * size)
    device.nvme.hold = True
    seen: list[int] = []
    for _ in range(5):
        commands = [queue.command(nvme.Io.FLUSH, namespace=1) for _ in range(depth - 1)]
        for command in device.nvme.under_way():
            seen.append(command.identifier)
            device.nvme.complete(command)
        for flush in commands:
            flush.wait()
    generations = [65536 - 3 * size, 65536 - 2 * size, 65536 - size, 0, size]
    assert seen == [first + slot for first in generations for slot in range(depth - 1)]
    assert 0xFFFF not in seen


def test_identifiers_have_sixteen_generations() -> None:
    assert 65536 // (1 << (MOST_ENTRIES - 1).bit_length()) == 16


def test_completion_from_before_a_reset_completes_nothing(
    device: Device, disk: nvme.Namespace
) -> None:
    device.nvme.hold = True
    lost = disk.start_flush()
    before = only(device).identifier
    disk._controller.reset()
    with pytest.raises(nvme.ControllerReset):
        lost.wait()
    flushes = [disk.start_flush() for _ in range(7)]
    device.nvme.tell(1, before)
    disk._controller.queues[0].line.look()
    assert not any(flush.done for flush in flushes)
    for command in device.nvme.under_way():
        device.nvme.complete(command)
    for flush in flushes:
        flush.wait()


@pytest.mark.parametrize(
    "wrong",
    [
        {"submissions": 0},
        {"submissions": 2},
        {"submissions": 0xFFFF},
        {"head": 8},
        {"head": 0xFFFF},
    ],
    ids=str,
)
def test_completion_of_another_queue_completes_nothing(
    device: Device, disk: nvme.Namespace, wrong: dict[str, int]
) -> None:
    device.nvme.hold = True
    flush = disk.start_flush()
    device.nvme.tell(1, only(device).identifier, **wrong)
    disk._controller.queues[0].line.look()
    assert not flush.done
    assert disk._controller.wrong_completions == 1
    device.nvme.complete(only(device))
    flush.wait()


@pytest.mark.parametrize("identifier", [0, 5, 7, 8, 0x4321, 0xFFFF])
def test_one_completion_of_nothing_is_counted_only(
    device: Device, disk: nvme.Namespace, identifier: int
) -> None:
    device.nvme.tell(1, identifier, 0x281)
    assert disk._controller.queues[0].reap() == 1
    data = os.urandom(BLOCK)
    disk.write(5, data)
    assert disk.read(5, 1) == data
    assert disk._controller._diagnose() is None
    assert disk._controller.wrong_completions == 1
    assert disk._controller.resets == 0


@pytest.mark.parametrize("queues", [(1, 1), (0, 1)])
def test_second_completion_of_nothing_resets_the_controller(
    device: Device, disk: nvme.Namespace, queues: tuple[int, int]
) -> None:
    device.nvme.hold = True
    flush = disk.start_flush()
    for number in queues:
        device.nvme.tell(number, 0x4321, 0x281)
        disk._controller._everything[number].line.look()
    with pytest.raises(nvme.ControllerFatal, match=r"queue [01], identifier 0x4321, status 0x0281"):
        flush.wait()
    assert disk._controller.resets == 1
    assert disk._controller.wrong_completions == 2
    device.nvme.hold = False
    disk.flush()
    # They are forgiven by a reset, and counted all the same.
    device.nvme.tell(1, 0x4321)
    disk._controller.queues[0].line.look()
    assert disk._controller._diagnose() is None
    assert disk._controller.wrong_completions == 3


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_endless_completions_do_not_stop_the_clock(
    device: Device, make: MakeController, interrupts: bool
) -> None:
    """A controller that answers each doorbell with one more completion, and no command."""
    disk = make(depth=8, interrupts=interrupts).namespaces[1]
    device.nvme.hold = True
    rung = itertools.count()
    posting = [False]

    def post(queue: int) -> None:
        if queue and device.nvme.ready and not posting[0]:
            assert next(rung) < TOO_MANY, "the clock is not looked at"
            posting[0] = True
            device.nvme.tell(queue, 0x4321)
            posting[0] = False

    device.nvme.rung = post
    with pytest.raises(nvme.ControllerFatal):
        disk.start_read(0, bytearray(BLOCK), timeout=0.5).wait()
    device.nvme.rung = lambda queue: None


def test_endless_completions_do_not_stop_bringing_up(device: Device, clock: Clock) -> None:
    rung = itertools.count()

    def post(queue: int) -> None:
        if device.nvme.ready:
            assert next(rung) < TOO_MANY, "the clock is not looked at"
            clock.now += 0.01
            device.nvme.tell(0, 0x4321)

    device.nvme.answer = lambda command: None
    device.nvme.rung = post
    with pytest.raises(nvme.ControllerFailed, match=r"did not complete .* reset the device"):
        nvme.Controller(device)  # type: ignore[arg-type]
    assert not device.dma.open_buffers


@pytest.mark.parametrize("taken", range(5))
@pytest.mark.parametrize("depth", [2, 5])
def test_a_look_takes_no_more_than_the_queue_holds(
    device: Device, make: MakeController, depth: int, taken: int
) -> None:
    """Wherever in the ring it begins, when all entries are as new."""
    controller = make(depth=depth)
    disk, queue = controller.namespaces[1], controller.queues[0]
    for _ in range(taken):
        disk.flush()
    ring = device.nvme._completions[1]
    for at in range(depth):
        phase = ring.phase if at >= ring.tail else ring.phase ^ 1
        entry = struct.pack("<IIII", 0, 0, 1 << 16, 0x4321 | phase << 16)
        device.dma.at(ring.iova + 16 * at, 16)[:] = entry
    assert queue.reap() == depth - 1
    assert queue.wrong_completions == depth - 1


def test_result_and_status_are_the_completions_own(device: Device, disk: nvme.Namespace) -> None:
    """Taken in one look that goes over the end of the ring."""
    queue = disk._controller.queues[0]
    for _ in range(5):
        disk.flush()
    device.nvme.hold = True
    commands = [queue.command(nvme.Io.FLUSH, namespace=1) for _ in range(7)]
    waiting = {command.identifier: command for command in device.nvme.under_way()}
    for number, command in enumerate(waiting.values()):
        device.nvme.waiting.remove(command)
        device.nvme.tell(1, command.identifier, 0x281 if number == 4 else 0, 0xABCD0000 + number)
    assert queue.reap() == 7
    for number, operation in enumerate(commands):
        if number == 4:
            with pytest.raises(nvme.UnrecoveredReadError):
                operation.wait()
        else:
            assert operation.wait() == 0xABCD0000 + number
