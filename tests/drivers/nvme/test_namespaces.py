"""Which namespaces there are, what becomes of them, and whose queues they take."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.drivers import nvme

from .conftest import MakeController
from .model import BLOCK, Device


@pytest.mark.parametrize(("index", "block"), [(0, 512), (3, 4096), (17, 4096), (34, 1024)])
def test_formatting(device: Device, disk: nvme.Namespace, index: int, block: int) -> None:
    """Who holds the namespace reads its new blocks, and no further than asked for."""
    device.nvme.formats = {0: 512, 3: 4096, 17: 4096, 34: 1024}
    disk._controller.format(1, lba_format=index, secure_erase=2)
    assert device.nvme.format == index
    assert device.nvme.erased == [(1, 2)]
    assert disk._controller.namespaces[1] is disk
    assert disk.block_size == block
    assert disk.size == len(device.nvme.disk)
    data = os.urandom(3 * block)
    disk.write(5, data)
    assert device.nvme.disk[5 * block : 8 * block] == data
    with device.dma.alloc(2 * block) as buffer:
        disk.read_into(5, buffer.view[:block])
        assert buffer.view == data[:block] + bytes(block)
    with pytest.raises(nvme.InvalidFormat):
        disk._controller.format(1, lba_format=20)


def test_formatting_while_a_transfer_is_under_way(device: Device, make: MakeController) -> None:
    """What it goes on with it counts in the blocks that it began with."""
    device.nvme.formats, device.nvme.transfer_pages = {1: 4096}, 1
    disk = make().namespaces[1]
    device.nvme.hold = True
    read = disk.start_read(0, bytearray(80 * 8192))
    disk._controller.format(1, lba_format=1)
    seen: list[tuple[int, int]] = []
    while not read.done:
        for command in device.nvme.under_way():
            seen.append((command.lba, command.blocks))
            device.nvme.waiting.remove(command)  # its data would be of other blocks
            device.nvme.tell(1, command.identifier)
        disk._controller.queues[0].line.look()
    assert sorted(seen) == [(lba, 16) for lba in range(0, 1280, 16)]


@pytest.mark.parametrize("how", ["not active", "blank"])
def test_a_namespace_that_is_no_more(device: Device, make: MakeController, how: str) -> None:
    device.nvme.namespaces = [1, 2]
    controller = make()
    disk, other = controller.namespaces[1], controller.namespaces[2]
    if how == "blank":
        device.nvme.blank = {1}
    else:
        device.nvme.namespaces = [2]
    controller.refresh()
    assert controller.namespaces == {2: other}
    kept = len(device.dma.open_buffers)
    with device.dma.alloc(BLOCK) as buffer:
        for attempt in (
            lambda: disk.read(0, 1),
            lambda: disk.write(0, bytes(BLOCK)),
            lambda: disk.read_many([0], buffer.view),
            lambda: disk.deallocate([(0, 1)]),
        ):
            with pytest.raises(errors.StateError, match="no namespace 1"):
                attempt()
    with pytest.raises(nvme.InvalidNamespace):
        controller.identify_namespace(1)
    assert len(device.dma.open_buffers) == kept


def test_one_that_cannot_be_identified_is_left_out(device: Device, make: MakeController) -> None:
    device.nvme.namespaces, device.nvme.blank = [1, 2, 5], {2}
    assert list(make().namespaces) == [1, 5]


def test_more_than_a_list_names(device: Device, make: MakeController) -> None:
    device.nvme.namespaces = list(range(3, 3 + 1024 + 7))
    device.nvme.blank = set(device.nvme.namespaces[2:-2])
    assert list(make().namespaces) == [3, 4, 3 + 1024 + 5, 3 + 1024 + 6]


def test_a_list_that_is_full(device: Device, make: MakeController) -> None:
    device.nvme.namespaces = list(range(1, 1025))
    device.nvme.blank = set(device.nvme.namespaces[1:])
    assert list(make().namespaces) == [1]


def test_version_1_0_has_no_list(device: Device, make: MakeController) -> None:
    device.nvme.version, device.nvme.namespaces = 1 << 16, [1, 3]
    assert list(make().namespaces) == [1, 3]


def test_a_range_longer_than_32_bits_is_deallocated(device: Device, make: MakeController) -> None:
    device.nvme.blocks = (1 << 33) + 1
    disk = make().namespaces[1]
    device.nvme.disk[:] = b"x" * len(device.nvme.disk)
    kept = len(device.dma.open_buffers)
    disk.deallocate([(0, 1 << 33)])
    at = 0
    for start, blocks in device.nvme.deallocated:
        assert start == at
        at += blocks
    assert at == 1 << 33
    assert not any(device.nvme.disk)
    with pytest.raises(errors.RangeError):
        disk.deallocate([(0, (1 << 33) + 2)])
    with pytest.raises(errors.RangeError, match="at a time"):
        disk.deallocate([(0, 1 << 33)] * 86)  # three ranges each
    assert len(device.dma.open_buffers) == kept


def test_another_controllers_queue_is_refused(device: Device, disk: nvme.Namespace) -> None:
    """What it wrote would be on the other disk, from whatever is at that address there."""
    second: Any = Device()
    with nvme.Controller(second) as other:
        queue = other.queues[0]
        with device.dma.alloc(BLOCK) as buffer:
            for attempt in (
                lambda: disk.read(0, 1, queue=queue),
                lambda: disk.write(0, buffer.view, queue=queue),
                lambda: disk.write_many([0], buffer.view, queue=queue),
                lambda: disk.flush(queue=queue),
                lambda: disk.deallocate([(0, 1)], queue=queue),
                lambda: disk.flush(queue=disk._controller._admin),
            ):
                with pytest.raises(errors.ArgumentError, match="I/O queues"):
                    attempt()
    assert not second.dma.open_buffers
    second.close()
