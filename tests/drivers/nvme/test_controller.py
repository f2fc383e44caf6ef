"""A controller's life, good and bad, on a modelled one."""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import Admin, Io, Operation, spec

from .conftest import MakeController
from .model import BLOCK, BLOCKS, Clock, Device, Submission


def test_what_is_written_is_read(device: Device, disk: nvme.Namespace) -> None:
    data = os.urandom(20 * BLOCK)
    disk.write(3, data)
    assert device.nvme.disk[3 * BLOCK : 23 * BLOCK] == data
    assert disk.read(3, 20) == data
    assert disk.blocks == BLOCKS


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"page": 8192},
        {"stride": 16},
        {"entries": 4},
        {"transfer_pages": 1},
        {"block": 4096, "transfer_pages": 5},
        {"most_queues": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("vectors", [0, 1, 8])
def test_controllers_of_all_kinds(vectors: int, model: dict[str, Any]) -> None:
    device: Any = Device(vectors=vectors, **model)
    size = 4 << 20
    with nvme.Controller(device, queues=3, depth=16) as controller:
        assert len(controller.queues) == min(3, device.nvme.most_queues)
        disk = controller.namespaces[1]
        data = os.urandom(size)
        disk.write(8, data)
        for queue in controller.queues:
            assert disk.read(8, size // disk.block_size, queue=queue) == data
    assert not device.nvme.faults
    assert not device.dma.open_buffers
    device.close()


@pytest.mark.parametrize("offset", [0, 4, 512, 4092])
@pytest.mark.parametrize("size", [512, 4096, 8192, 2 << 20, (2 << 20) + 512, 5 << 20])
def test_memory_that_the_device_reaches(
    device: Device, disk: nvme.Namespace, offset: int, size: int
) -> None:
    with device.dma.alloc(size + offset) as buffer:
        view = buffer.view[offset:]
        view[:] = data = os.urandom(size)
        disk.write(1, view)
        view[:] = bytes(size)
        disk.read_into(1, view)
        assert view == data
        assert device.nvme.disk[BLOCK : BLOCK + size] == data
        del view


def test_memory_that_two_large_writes_share(device: Device, make: MakeController) -> None:
    """Each has a mapping of its own, which ends with it."""
    disk = make().namespaces[1]
    memory = mmap.mmap(-1, 2 << 20)
    memory[:] = data = os.urandom(2 << 20)
    device.nvme.hold = True
    first, second = disk.start_write(0, memory), disk.start_write(8192, memory)
    assert device.dma.iova_of(memory) is None
    for command in device.nvme.under_way():
        if command.lba < 8192:
            device.nvme.complete(command)
    assert first.wait() == 0
    # What takes the addresses that the first had.
    other = mmap.mmap(-1, 2 << 20)
    with device.dma.map(other):
        for command in device.nvme.under_way():
            device.nvme.complete(command)
        assert second.wait() == 0
    assert device.nvme.disk[: 2 << 20] == data
    assert device.nvme.disk[4 << 20 : 6 << 20] == data


def test_a_burst(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.disk[:] = os.urandom(len(device.nvme.disk))
    lbas = random.sample(range(BLOCKS - 2), 100)
    with device.dma.alloc(100 * 2 * BLOCK) as buffer:
        disk.read_many(lbas, buffer.view, blocks=2)
        for number, lba in enumerate(lbas):
            got = buffer.view[number * 1024 : (number + 1) * 1024]
            assert got == device.nvme.disk[lba * BLOCK : (lba + 2) * BLOCK]


def test_a_batch_rings_once(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.hold = True
    queue = disk._controller.queues[0]
    device.nvme.rings.clear()
    with queue.batch():
        for _ in range(5):
            disk.start_flush()
        assert not device.nvme.under_way()
    assert len(device.nvme.under_way()) == 5
    assert device.nvme.rings == [(1, 5)]
    for command in device.nvme.under_way():
        device.nvme.complete(command)
    queue.line.look()


def test_a_burst_rings_once_for_each_look(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.hold = True
    with device.dma.alloc(28 * BLOCK) as buffer:
        device.nvme.rings.clear()
        burst = disk.start_read_many(range(28), buffer.view)
        for left in (28, 21, 14, 7):
            assert len(device.nvme.rings) == (28 - left) // 7 + 1
            assert len(device.nvme.under_way()) == 7
            for command in device.nvme.under_way():
                device.nvme.complete(command)
            disk._controller.queues[0].line.look()
        burst.wait()


# What the controller refuses, and what makes no sense.


@pytest.mark.parametrize("status", [0x004, 0x080, 0x281, 0x7FF])
@pytest.mark.parametrize("kind", ["reached", "copied", "burst"])
def test_a_command_fails(device: Device, disk: nvme.Namespace, kind: str, status: int) -> None:
    def answer(command: Submission) -> int:
        return status if command.queue and command.lba <= 9 < command.lba + command.blocks else 0

    device.nvme.answer = answer
    with device.dma.alloc(32 * BLOCK) as buffer:
        operation: Operation
        if kind == "burst":
            operation = disk.start_read_many(range(0, 32, 2), buffer.view, blocks=2)
        else:
            operation = disk.start_read(0, buffer.view if kind == "reached" else bytearray(16384))
        with pytest.raises(nvme.CommandFailed) as caught:
            operation.wait()
        assert caught.value.status == status
        assert operation.done


@pytest.mark.parametrize("dwords", [(-1,), (1 << 32,), (0,) * 7, (0.5,)])
def test_a_command_that_makes_no_sense_is_refused(
    device: Device, disk: nvme.Namespace, dwords: tuple[Any, ...]
) -> None:
    controller = disk._controller
    with pytest.raises((errors.ArgumentError, TypeError)):
        controller.admin(Admin.GET_FEATURES, *dwords, size=64)
    with pytest.raises((errors.ArgumentError, TypeError)):
        controller.queues[0].command(Io.FLUSH, *dwords, namespace=1)
    assert controller.queues[0].under_way == controller._admin.under_way == 0
    disk.flush()


@pytest.mark.parametrize("opcode", [-1, 256, 1 << 16])
def test_an_opcode_that_is_none_is_refused(disk: nvme.Namespace, opcode: int) -> None:
    with pytest.raises(errors.ArgumentError):
        disk._controller.admin(opcode)
    assert disk._controller._admin.under_way == 0


def test_blocks_that_are_no_integers_are_refused(device: Device, disk: nvme.Namespace) -> None:
    with device.dma.alloc(3 * BLOCK) as buffer:
        lbas: list[Any] = [0, 1.0, 2]
        with pytest.raises(TypeError):
            disk.start_read_many(lbas, buffer.view)
    assert disk._controller.queues[0].under_way == 0


def test_more_data_than_a_command_moves_is_refused(device: Device, disk: nvme.Namespace) -> None:
    """Its pages of pointers would be another command's."""
    controller = disk._controller
    most = controller.max_transfer
    assert controller.log_page(0xC0, most)[:4] == bytes([0, 1, 2, 3])
    with pytest.raises(errors.ArgumentError, match="bytes at most"):
        controller.log_page(0xC0, most + 4096)
    assert controller._admin.under_way == 0


def test_blocks_larger_than_a_command_moves(device: Device) -> None:
    huge: Any = Device(block=1 << 16, transfer_pages=1)
    with nvme.Controller(huge) as controller, pytest.raises(errors.Unsupported, match="65536"):
        controller.namespaces[1].read(0, 1)
    assert not huge.dma.open_buffers
    huge.close()


# Time.


def test_a_command_that_takes_too_long_is_aborted(
    device: Device, disk: nvme.Namespace, clock: Clock
) -> None:
    device.nvme.hold = True
    slow = disk.start_flush()
    other = disk.start_flush(timeout=60)
    clock.now += 31
    with pytest.raises(nvme.CommandTimedOut, match="aborted"):
        slow.wait()
    assert disk._controller.resets == 0
    (left,) = device.nvme.under_way()
    device.nvme.complete(left)
    assert other.wait() == 0


def test_a_command_that_cannot_be_aborted(
    device: Device, disk: nvme.Namespace, clock: Clock
) -> None:
    device.nvme.hold, device.nvme.obeys_aborts = True, False
    slow = disk.start_flush()
    other = disk.start_flush(timeout=60)
    waiting = [disk.start_flush(timeout=600) for _ in range(8)]
    clock.now += 31
    assert disk._controller._diagnose() is None
    assert device.nvme.aborts
    clock.now += 4
    with pytest.raises(nvme.CommandTimedOut, match="did not help"):
        slow.wait()
    with pytest.raises(nvme.ControllerReset, match="another command"):
        other.wait()
    assert disk._controller.resets == 1
    # Of the others five were under way, and three had not begun.
    device.nvme.hold = False
    for command in device.nvme.under_way():
        device.nvme.complete(command)
    outcomes = []
    for operation in waiting:
        try:
            outcomes.append(operation.wait())
        except nvme.ControllerReset:
            outcomes.append(-1)
    assert outcomes == [-1] * 5 + [0] * 3
    disk.flush()


def test_time_in_the_queue_does_not_count(
    device: Device, make: MakeController, clock: Clock
) -> None:
    disk = make(depth=2).namespaces[1]
    device.nvme.hold = True
    with device.dma.alloc(4 * BLOCK) as buffer:
        operations = [disk.start_flush(), disk.start_read_many(range(4), buffer.view)]
        operations.append(disk.start_flush())
        for _ in range(6):
            clock.now += 20
            assert disk._controller._diagnose() is None
            assert not device.nvme.aborts
            (command,) = device.nvme.under_way()
            device.nvme.complete(command)
            disk._controller.queues[0].line.look()
        for operation in operations:
            operation.wait()


def test_all_commands_of_a_burst_are_aborted(
    device: Device, disk: nvme.Namespace, clock: Clock
) -> None:
    device.nvme.hold = True
    with device.dma.alloc(5 * BLOCK) as buffer:
        burst = disk.start_read_many(range(5), buffer.view)
        clock.now += 31
        with pytest.raises(nvme.CommandTimedOut, match="aborted"):
            burst.wait()
    assert len(device.nvme.aborts) == 5
    assert disk._controller.resets == 0


def test_what_has_ended_is_not_late(device: Device, make: MakeController, clock: Clock) -> None:
    """Nobody may have waited for it yet."""
    controller = make(queues=2)
    disk = controller.namespaces[1]
    read = disk.start_read(0, bytearray(BLOCK), queue=controller.queues[1])
    feature = controller.start_admin(Admin.GET_FEATURES, 1)
    clock.now += 31
    assert controller._diagnose() is None
    assert not device.nvme.aborts
    assert read.wait() == feature.wait() == 0


def test_an_identifier_that_waits_for_an_abort_comes_back(
    device: Device, make: MakeController, clock: Clock
) -> None:
    """The command ends, then its abort: what has waited for room goes on."""
    controller = make(depth=2)
    disk = controller.namespaces[1]
    device.nvme.hold = True
    device.nvme.answer = lambda command: None  # of the abort
    slow, second, third = (disk.start_flush() for _ in range(3))
    clock.now += 31
    assert controller._diagnose() is None
    (command,) = device.nvme.under_way()
    device.nvme.complete(command)
    controller.queues[0].line.look()
    assert slow.done
    assert not device.nvme.under_way(), "its identifier could be another's before the abort"
    device.nvme.hold = False
    device.nvme.answer = lambda command: 0
    (abort,) = device.nvme.waiting
    device.nvme.complete(abort)
    assert second.wait() == third.wait() == 0
    assert controller.resets == 0


def test_an_abort_is_no_other_commands(device: Device, make: MakeController, clock: Clock) -> None:
    """A command that ended after an abort that came to nothing leaves no trace."""
    controller = make(depth=2)
    disk = controller.namespaces[1]
    device.nvme.hold, device.nvme.obeys_aborts = True, False
    for _ in range(3):
        slow = disk.start_flush()
        clock.now += 31
        assert controller._diagnose() is None
        controller.queues[0].line.look()
        controller._admin.line.look()
        (command,) = device.nvme.under_way()
        device.nvme.complete(command)
        assert slow.wait() == 0
    assert len(device.nvme.aborts) == 3
    assert controller.resets == 0


def test_a_command_that_ends_before_it_is_aborted(
    device: Device, make: MakeController, clock: Clock
) -> None:
    """Its slot is free again once, or is another command's, which is not aborted."""
    controller = make(depth=4)
    disk, queue = controller.namespaces[1], controller.queues[0]
    device.nvme.hold = True
    for innocent in (False, True):
        ended = disk.start_flush()
        assert isinstance(ended, nvme.Command)
        identifier = queue.identifier_of(ended)
        assert identifier is not None
        device.nvme.complete(device.nvme.under_way()[0])
        queue.line.look()
        other = disk.start_flush() if innocent else None
        assert controller._start_abort(queue, identifier, ended) is None
        assert not controller.abort(ended)
        assert not device.nvme.aborts
        if other is not None:
            assert queue.identifier_of(other) != identifier  # type: ignore[arg-type]
            device.nvme.complete(device.nvme.under_way()[0])
            assert other.wait() == 0
        assert sorted(queue._free) == [0, 1, 2]


@pytest.mark.parametrize("most", [1, 4])
def test_no_more_aborts_than_it_takes(
    device: Device, make: MakeController, clock: Clock, most: int
) -> None:
    device.nvme.most_aborts = most
    controller = make(depth=16)
    disk = controller.namespaces[1]
    device.nvme.hold = True
    device.nvme.answer = lambda command: None  # of aborts
    flushes = [disk.start_flush() for _ in range(10)]
    clock.now += 31
    for left in range(10, 0, -most):
        assert controller._diagnose() is None
        aborts = [command for command in device.nvme.waiting if not command.queue]
        assert len(aborts) == min(left, most)
        for command in aborts:
            device.nvme.complete(command)
        controller._admin.line.look()
    device.nvme.hold = False
    for flush in flushes:
        with pytest.raises(nvme.CommandTimedOut, match="aborted"):
            flush.wait()
    assert controller.resets == 0


def test_abort_that_is_never_answered_keeps_none_alive(
    device: Device, disk: nvme.Namespace, clock: Clock
) -> None:
    """It takes the only place for aborts, and the command that it was for has ended."""
    device.nvme.hold = True
    device.nvme.answer = lambda command: None  # of aborts
    first, second = disk.start_flush(), disk.start_flush(timeout=32)
    clock.now += 31
    assert disk._controller._diagnose() is None
    device.nvme.complete(device.nvme.under_way()[0])
    assert first.wait() == 0
    clock.now += 2
    assert disk._controller._diagnose() is None
    clock.now += 2
    device.nvme.answer = lambda command: 0
    with pytest.raises(nvme.ControllerReset):
        second.wait()
    assert disk._controller.resets == 1


def test_aborting_by_hand(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.hold = True
    first, second = disk.start_flush(), disk.start_flush()
    assert isinstance(first, nvme.Command)
    assert disk._controller.abort(first)
    with pytest.raises(nvme.AbortRequested):
        first.wait()
    assert not disk._controller.abort(first)
    assert not second.done
    device.nvme.complete(device.nvme.under_way()[0])
    assert second.wait() == 0


# Resets.


def misfortunes(device: Device) -> dict[str, tuple[Any, type[Exception]]]:
    controller = device.nvme
    return {
        "fatal": (lambda: setattr(controller, "fatal", True), nvme.ControllerFatal),
        "reset by somebody": (controller.reset, nvme.ControllerReset),
    }


@pytest.mark.parametrize("what", ["fatal", "reset by somebody"])
@pytest.mark.parametrize("interrupts", [True, False])
def test_a_controller_that_can_be_mended(
    device: Device, make: MakeController, what: str, interrupts: bool
) -> None:
    controller = make(depth=4, queues=2, interrupts=interrupts)
    disk = controller.namespaces[1]
    device.nvme.hold = True
    befall, error = misfortunes(device)[what]
    operations = [disk.start_read(0, bytearray(BLOCK * 64), queue=q) for q in controller.queues]
    befall()
    for operation in operations:
        with pytest.raises(error):
            operation.wait()
    assert controller.resets == 1
    device.nvme.hold = False
    disk.write(4, b"x" * BLOCK)
    assert disk.read(4, 1) == b"x" * BLOCK


def test_a_controller_that_needs_a_reset_of_the_function(
    device: Device, disk: nvme.Namespace
) -> None:
    device.nvme.becomes_idle = False
    device.nvme.fatal = True
    device.nvme.hold = True
    with pytest.raises(nvme.ControllerFatal):
        disk.flush()
    assert device.resets == 1
    device.nvme.hold = False
    disk.flush()


@pytest.mark.parametrize("with_reset", [True, False])
def test_a_controller_that_does_not_come_back(
    device: Device, disk: nvme.Namespace, with_reset: bool
) -> None:
    controller = disk._controller
    device.can_reset, device.reset_helps = with_reset, False
    device.nvme.becomes_idle, device.nvme.hold, device.nvme.fatal = False, True, True
    operations = [disk.start_read(0, bytearray(BLOCK * 200)), disk.start_flush()]
    for operation in operations:
        with pytest.raises(nvme.ControllerFailed, match="idle"):
            operation.wait()
    assert not device.bus_master
    with pytest.raises(nvme.ControllerFailed, match="idle"):
        disk.flush()
    with pytest.raises(nvme.ControllerFailed, match="idle"):
        disk.read(0, 1)
    with pytest.raises(nvme.ControllerFailed, match="idle"):
        controller.smart()
    with pytest.raises(nvme.ControllerFailed, match="idle"):
        controller.reset()
    assert not device.bus_master
    device.nvme.becomes_idle, device.nvme.hold = True, False
    controller.reset()
    assert device.bus_master
    disk.write(4, b"x" * BLOCK)
    assert disk.read(4, 1) == b"x" * BLOCK


def test_what_was_given_up_reaches_no_memory_later(device: Device, disk: nvme.Namespace) -> None:
    """The memory of a read that was given up is somebody else's when the controller is tried again,
    and the controller may still be at it."""
    device.nvme.disk[:BLOCK] = b"x" * BLOCK
    device.can_reset = False
    device.nvme.becomes_idle, device.nvme.hold, device.nvme.fatal = False, True, True
    with device.dma.alloc(BLOCK) as buffer:
        read = disk.start_read(0, buffer.view)
        with pytest.raises(nvme.ControllerFailed):
            read.wait()
        device.nvme.becomes_idle = True
        disk._controller.reset()
        assert buffer.view == bytes(BLOCK)
    assert device.bus_master


def test_a_controller_that_refuses_its_queues_after_a_reset(
    device: Device, disk: nvme.Namespace
) -> None:
    device.nvme.answer = lambda command: (
        0x101 if command.opcode == Admin.CREATE_SUBMISSION_QUEUE and not command.queue else 0
    )
    with pytest.raises(nvme.ControllerFailed, match="CREATE_SUBMISSION"):
        disk._controller.reset()
    with pytest.raises(nvme.ControllerFailed):
        disk.flush()
    device.nvme.answer = lambda command: 0
    disk._controller.reset()
    disk.flush()


@pytest.mark.parametrize("silent", [Admin.SET_FEATURES, Admin.CREATE_COMPLETION_QUEUE])
def test_a_controller_that_says_nothing_after_a_reset(
    device: Device, disk: nvme.Namespace, silent: int
) -> None:
    device.nvme.answer = lambda command: None if command.opcode == silent else 0
    with pytest.raises(nvme.ControllerFailed, match=silent.name):  # type: ignore[attr-defined]
        disk._controller.reset()


def test_a_controller_that_vanishes(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.hold = True
    with device.dma.alloc(9 * BLOCK) as buffer:
        operations = [
            disk.start_read(0, bytearray(BLOCK * 200)),
            disk.start_flush(),
            disk.start_read_many(range(9), buffer.view),
        ]
        device.nvme.gone = True
        for operation in operations:
            with pytest.raises(errors.DeviceGone):
                operation.wait()
        with pytest.raises(errors.DeviceGone):
            disk.read(0, 8)
        with pytest.raises(errors.DeviceGone):
            disk._controller.reset()


def test_two_find_the_same_and_one_mends(device: Device, disk: nvme.Namespace) -> None:
    """Who comes late with a diagnosis does not reset a controller that works again."""
    controller = disk._controller
    device.nvme.reset()
    first, second = controller._diagnose(), controller._diagnose()
    assert first is not None
    assert second is not None
    first()
    device.nvme.hold = True
    flush = disk.start_flush()
    second()
    (command,) = device.nvme.under_way()
    device.nvme.complete(command)
    assert flush.wait() == 0
    assert controller.resets == 1


def test_a_diagnosis_from_before_a_reset_gives_nobody_up(
    device: Device, disk: nvme.Namespace
) -> None:
    device.nvme.gone = True
    give_up = disk._controller._diagnose()
    assert give_up is not None
    device.nvme.gone = False
    disk._controller.reset()
    give_up()
    disk.flush()


@pytest.mark.parametrize("late", [False, True])
def test_registers_that_are_out_of_reach(
    device: Device,
    disk: nvme.Namespace,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
) -> None:
    """For a moment, while somebody writes the command register, gives nobody up; for long does."""
    device.nvme.hold = True
    flush = disk.start_flush()
    clock.now += 31 * late

    def refuse(offset: int) -> int:
        raise errors.MemoryDisabled("memory decoding is off")

    with monkeypatch.context() as context:
        context.setattr(disk._controller._registers, "read32", refuse)
        recover = disk._controller._diagnose()
        assert (recover is not None) == late
        if recover is not None:
            recover()
            with pytest.raises(errors.MemoryDisabled):
                flush.wait()
            return
    assert disk._controller._diagnose() is None
    assert device.bus_master
    device.nvme.complete(device.nvme.under_way()[0])
    assert flush.wait() == 0


def test_many_resets(device: Device, disk: nvme.Namespace) -> None:
    buffers = len(device.dma.open_buffers)
    for count in range(1, 6):
        device.nvme.hold = True
        read = disk.start_read(0, bytearray(BLOCK * 100))
        disk._controller.reset()
        with pytest.raises(nvme.ControllerReset, match="by this process"):
            read.wait()
        device.nvme.hold = False
        disk.write(count, bytes([count]) * BLOCK)
        assert disk.read(count, 1) == bytes([count]) * BLOCK
    assert disk._controller.resets == 5
    assert device.nvme.enabled == 6
    assert len(device.dma.open_buffers) == buffers


# Bringing up.


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"gone": True}, errors.DeviceGone),
        ({"becomes_ready": False}, nvme.ControllerFailed),
        ({"answer": lambda command: 0x006}, nvme.InternalError),
        ({"answer": lambda command: None}, nvme.ControllerFailed),
    ],
)
def test_bringing_up_fails(
    device: Device, make: MakeController, fault: dict[str, Any], error: type[Exception]
) -> None:
    for name, value in fault.items():
        setattr(device.nvme, name, value)
    with pytest.raises(error):
        make()


@pytest.mark.parametrize("opcode", [Admin.IDENTIFY, Admin.CREATE_SUBMISSION_QUEUE])
def test_bringing_up_fails_half_way(device: Device, make: MakeController, opcode: int) -> None:
    device.nvme.answer = lambda command: 0x006 if command.opcode == opcode else 0
    with pytest.raises(nvme.InternalError):
        make()
    assert not device.nvme.ready


def test_memory_runs_out_at_any_moment(device: Device, make: MakeController) -> None:
    """Whatever allocation is refused, nothing is left of what was begun."""
    for count in range(40):
        device.dma.refuse_after = count
        try:
            controller = make(depth=8, queues=2)
        except errors.LockedMemoryLimit:
            assert not device.dma.open_buffers
            continue
        break
    assert count > 5
    kept = len(device.dma.open_buffers)
    disk = controller.namespaces[1]
    for count in range(9):
        device.dma.refuse_after = count
        try:
            disk.read(0, 64 * 64)
            disk.deallocate([(0, 1)])
            controller.get_feature(1)
        except errors.LockedMemoryLimit:
            pass
        assert len(device.dma.open_buffers) == kept
    device.dma.refuse_after = None


# Closing.


def test_closing(device: Device, make: MakeController) -> None:
    controller = make(queues=2)
    controller.close()
    controller.close()
    assert controller.closed
    assert device.nvme.shut_down is False
    assert not device.nvme.ready
    assert not device.dma.open_buffers
    disk = controller.namespaces[1]
    for attempt in (
        lambda: disk.read(0, 1),
        lambda: disk.write(0, bytes(8 << 20)),
        disk.flush,
        lambda: disk.deallocate([(0, 1)]),
        controller.smart,
        controller.reset,
    ):
        with pytest.raises(errors.Closed):
            attempt()
    assert not device.dma.open_buffers


@pytest.mark.parametrize("state", ["well", "fatal", "gone", "stuck"])
def test_closing_with_commands_under_way(device: Device, make: MakeController, state: str) -> None:
    controller = make(depth=4)
    disk = controller.namespaces[1]
    device.nvme.hold = True
    with device.dma.alloc(9 * BLOCK) as buffer:
        operations: list[Operation] = [
            disk.start_read(0, bytearray(BLOCK * 200)),
            disk.start_read_many(range(9), buffer.view),
            disk.start_flush(),
        ]
        device.nvme.fatal = state == "fatal"
        device.nvme.gone = state == "gone"
        device.nvme.becomes_idle = state != "stuck"
        controller.close()
        for operation in operations:
            assert operation.done
            with pytest.raises(errors.Closed):
                operation.wait()
    assert device.bus_master == (state not in ("gone", "stuck"))


# Features and logs.


def test_features(device: Device, disk: nvme.Namespace) -> None:
    controller = disk._controller
    assert controller.get_feature(nvme.Feature.TEMPERATURE_THRESHOLD) == 0
    controller.set_feature(nvme.Feature.TEMPERATURE_THRESHOLD, 0x8000_0155)
    controller.set_feature(nvme.Feature.ERROR_RECOVERY, 7, namespace=1, save=True)
    assert device.nvme.features == {(4, 0): 0x8000_0155, (5, 1): 7}
    assert device.nvme.saved == {(5, 1)}
    assert controller.get_feature(nvme.Feature.TEMPERATURE_THRESHOLD) == 0x8000_0155
    assert controller.get_feature(nvme.Feature.ERROR_RECOVERY, namespace=1) == 7
    assert controller.get_feature(nvme.Feature.ERROR_RECOVERY) == 0


def test_logs(device: Device, disk: nvme.Namespace) -> None:
    """More than it keeps of them is not asked for."""
    controller = disk._controller
    entry = struct.Struct("<QHHH2xQI36x")
    device.nvme.logs[nvme.Log.ERRORS] = b"".join(
        entry.pack(100 - number, 1, number, 0x281 << 1, 5, 1) for number in range(64)
    )
    device.nvme.logs[nvme.Log.SMART] = struct.pack("<BHBBB", 4, 300, 99, 10, 3).ljust(512, b"\0")
    assert [error.number for error in controller.error_log(2)] == [100, 99]
    assert controller.error_log() == controller.error_log(1000)
    assert len(controller.error_log()) == 64
    assert controller.error_log(1) == (nvme.ErrorEntry(100, 1, 0, 0x281, 5, 1),)
    assert controller.smart().temperature == 300
    assert controller.smart().warnings == ("the reliability is degraded",)


def test_a_log_of_more_than_16_bits(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.logs[0xC0] = data = os.urandom((256 << 10) + 8)
    assert disk._controller.log_page(0xC0, len(data)) == data


# What others give us to call.


def test_a_callback_that_fails_harms_nobody_else(device: Device, disk: nvme.Namespace) -> None:
    controller = disk._controller
    device.nvme.answer = lambda command: None

    def fail(command: nvme.Command, data: memoryview) -> None:
        raise ZeroDivisionError

    kept = len(device.dma.open_buffers)
    first = controller.start_admin(Admin.GET_FEATURES, 1, size=64, after=fail)
    second = controller.start_admin(Admin.GET_FEATURES, 1)
    for command in list(device.nvme.waiting):
        device.nvme.complete(command)
    assert second.wait() == 0
    with pytest.raises(ZeroDivisionError):
        first.wait()
    first = controller.start_admin(Admin.GET_FEATURES, 1, size=64, after=fail)
    second = controller.start_admin(Admin.GET_FEATURES, 1)
    device.nvme.answer = lambda command: 0
    controller.reset()
    for operation in (first, second):
        with pytest.raises(nvme.ControllerReset):
            operation.wait()
    assert len(device.dma.open_buffers) == kept
    disk.flush()


def test_data_is_there_before_the_command_is_done(device: Device, disk: nvme.Namespace) -> None:
    """Another thread may take the completion, and be slow to hand the data over."""
    controller = disk._controller
    device.nvme.answer = lambda command: None
    ended = threading.Event()
    seen: list[bool] = []

    def wait() -> None:
        command.wait()
        ended.set()

    def after(command: nvme.Command, data: memoryview) -> None:
        waiter.start()
        seen.append(ended.wait(0.05))

    waiter = threading.Thread(target=wait)
    command = controller.start_admin(Admin.GET_FEATURES, 1, size=64, after=after)
    (waiting,) = device.nvme.waiting
    device.nvme.complete(waiting)
    controller._admin.line.look()
    waiter.join()
    assert seen == [False]
    assert command.done


def test_there_is_no_result_before_the_end(device: Device, disk: nvme.Namespace) -> None:
    device.nvme.hold = True
    with device.dma.alloc(BLOCK) as buffer:
        operations = [
            disk.start_flush(),
            disk.start_read(0, bytearray(BLOCK)),
            disk.start_read_many([0], buffer.view),
        ]
        for operation in operations:
            with pytest.raises(errors.StateError, match="not ended"):
                operation.result()
        for command in device.nvme.under_way():
            device.nvme.complete(command)
        for operation in operations:
            operation.wait()
            assert operation.result() == 0


def test_its_registers(disk: nvme.Namespace) -> None:
    assert disk._controller.version == (1, 4, 0)
    assert disk._controller._registers.read32(spec.CSTS) == spec.CSTS_READY
