"""Bursts beside others, and at awkward moments."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from pyvfio.drivers import nvme
from pyvfio.drivers.nvme.burst import Burst

from .model import BLOCK, Clock, Device


def test_it_has_not_ended_while_its_last_commands_are_placed(
    device: Device, disk: nvme.Namespace
) -> None:
    """Another thread has told it meanwhile of those that ended before."""
    device.nvme.hold = True
    looked: list[bool] = []

    class Noticed(dict[int, int]):
        def update(self, *others: Any, **more: Any) -> None:
            burst._finish_if_ended()
            looked.append(burst.done)
            super().update(*others, **more)

    with device.dma.alloc(4 * BLOCK) as buffer:
        operation = disk.start_read_many(range(4), buffer.view, depth=2)
        assert isinstance(operation, Burst)
        burst = operation
        for command in device.nvme.under_way():
            device.nvme.complete(command)
        queue = disk._controller.queues[0]
        with queue._lock:
            queue._take(deque())
        burst._under_way = Noticed(burst._under_way)
        with queue._lock:
            burst.place(queue)
        assert looked == [False]
        assert not burst.done
        queue.ring()
        for command in device.nvme.under_way():
            device.nvme.complete(command)
        assert burst.wait() == 0


@pytest.mark.parametrize("depth", [1, 6, 7, 8, 64])
def test_others_get_their_turn(device: Device, disk: nvme.Namespace, depth: int) -> None:
    device.nvme.hold = True
    with device.dma.alloc(200 * BLOCK) as buffer:
        burst = disk.start_read_many(range(200), buffer.view, depth=depth)
        flush = disk.start_flush()
        for _ in range(2 * 7):
            device.nvme.complete(device.nvme.under_way()[0])
            disk._controller.queues[0].line.look()
        assert flush.done
        assert not burst.done
        device.nvme.hold = False
        for command in device.nvme.under_way():
            device.nvme.complete(command)
        burst.wait()


def test_one_that_is_lost_among_many(device: Device, disk: nvme.Namespace, clock: Clock) -> None:
    """It is late after its own time, though others end all the while."""
    device.nvme.hold = True
    with device.dma.alloc(400 * BLOCK) as buffer:
        burst = disk.start_read_many(range(400), buffer.view, depth=2)
        lost = device.nvme.under_way()[0]
        begun = clock.now
        while not device.nvme.aborts:
            clock.now += 1
            device.nvme.complete(device.nvme.under_way()[-1])
            disk._controller.queues[0].line.look()
            assert disk._controller._diagnose() is None
        assert clock.now == begun + 31
        assert device.nvme.aborts == [(1, lost.identifier)]
        device.nvme.hold = False
        for command in device.nvme.under_way():
            device.nvme.complete(command)
        with pytest.raises(nvme.CommandTimedOut, match=r"read of 1 blocks from 0 .*aborted"):
            burst.wait()
    assert disk._controller.resets == 0


def test_its_list_is_its_own(device: Device, disk: nvme.Namespace) -> None:
    """Also of integers that have 32 bits only."""
    numpy = pytest.importorskip("numpy")
    device.nvme.disk[:] = b"".join(number.to_bytes(4, "little") * 128 for number in range(16384))
    device.nvme.hold = True
    for kind in (int, numpy.int32):
        lbas = [kind(number) for number in range(100, 130)]
        with device.dma.alloc(30 * BLOCK) as buffer:
            burst = disk.start_read_many(lbas, buffer.view)
            lbas[:] = [16384] * 30
            lbas.clear()
            while not burst.done:
                for command in device.nvme.under_way():
                    device.nvme.complete(command)
                disk._controller.queues[0].line.look()
            assert burst.wait() == 0
            assert buffer.view == device.nvme.disk[100 * BLOCK : 130 * BLOCK]
