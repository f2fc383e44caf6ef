"""Memory of commands that were given up is nobody else's while the controller may be at it."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable
from typing import Any

import pytest

from pyvfio import errors
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import withheld

from .conftest import MakeController
from .model import BLOCK, Clock, Device, Memory

SIZE = 8 * BLOCK


def stuck(device: Device) -> None:
    """It fails, and becomes idle no more."""
    device.can_reset = False
    device.nvme.becomes_idle, device.nvme.hold, device.nvme.fatal = False, True, True


def recover(device: Device, controller: nvme.Controller) -> None:
    device.nvme.becomes_idle, device.nvme.hold, device.nvme.fatal = True, False, False
    controller.reset()


def addresses(device: Device, size: int) -> set[int]:
    """Where buffers lie that are allocated now, more than were there before."""
    buffers = [device.dma.alloc(size) for _ in range(40)]
    found = {at for buffer in buffers for at in range(buffer.iova, buffer.iova + size, 64)}
    for buffer in buffers:
        buffer.close()
    return found


def reached(device: Device) -> set[int]:
    """Where the commands that wait read to, as the controller has them."""
    found: set[int] = set()
    for command in device.nvme.under_way():
        first = command.pointers[0]
        found.update(range(first, first + SIZE, 64))
    return found


def own_buffer(disk: nvme.Namespace) -> nvme.Operation:
    with disk._controller.space.alloc(SIZE) as buffer:
        return disk.start_read(0, buffer.view)


def burst(disk: nvme.Namespace) -> nvme.Operation:
    with disk._controller.space.alloc(SIZE) as buffer:
        return disk.start_read_many([0], buffer.view, blocks=8)


def copied(disk: nvme.Namespace) -> nvme.Operation:
    return disk.start_read(0, memoryview(bytearray(SIZE + 2))[1:-1])


STARTS: list[Callable[[nvme.Namespace], nvme.Operation]] = [own_buffer, burst, copied]


@pytest.mark.parametrize("start", STARTS)
def test_pool_gets_memory_after_the_next_reset(
    device: Device, make: MakeController, start: Callable[[nvme.Namespace], nvme.Operation]
) -> None:
    controller = make(depth=4)
    device.nvme.hold = True
    read = start(controller.namespaces[1])
    taken = reached(device)
    stuck(device)
    with pytest.raises(nvme.ControllerFailed):
        read.wait()
    del read
    gc.collect()
    assert taken.isdisjoint(addresses(device, SIZE))
    recover(device, controller)
    assert not taken.isdisjoint(addresses(device, SIZE)), "it is lost to the pool"


def test_admin_data_is_withheld_too(device: Device, make: MakeController) -> None:
    controller = make(depth=4)
    device.nvme.answer = lambda command: None
    command = controller.start_admin(nvme.Admin.GET_LOG_PAGE, 2, size=SIZE)
    (waiting,) = device.nvme.waiting
    taken = {*range(waiting.pointers[0], waiting.pointers[0] + SIZE, 64)}
    stuck(device)
    with pytest.raises(nvme.ControllerFailed):
        command.wait()
    del command
    gc.collect()
    assert taken.isdisjoint(addresses(device, SIZE))


def test_mapping_of_a_transfer_keeps_its_address(device: Device, make: MakeController) -> None:
    """Another mapping at that address would be written to in its place."""
    controller = make()
    device.nvme.hold = True
    memory = mmap.mmap(-1, 2 << 20)
    read = controller.namespaces[1].start_read(0, memory)
    first = min(command.pointers[0] for command in device.nvme.under_way())
    stuck(device)
    with pytest.raises(nvme.ControllerFailed):
        read.wait()
    with device.dma.map(mmap.mmap(-1, 2 << 20)) as mapping:
        assert mapping.iova != first
    recover(device, controller)
    with device.dma.map(mmap.mmap(-1, 2 << 20)) as mapping:
        assert mapping.iova == first


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("bus_master", [True, False], ids=["cut off", "not cut off"])
def test_closing_a_stuck_controller_withholds_for_good(
    device: Device,
    make: MakeController,
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[[nvme.Namespace], nvme.Operation],
    bus_master: bool,
) -> None:
    """Also its rings, and whether or not it could be cut off from memory."""
    controller = make(depth=4)
    device.nvme.hold = True
    read = start(controller.namespaces[1])
    taken = reached(device)
    for rings in (device.nvme._submissions, device.nvme._completions):
        for ring in rings.values():
            taken.add(ring.iova)
    stuck(device)
    if not bus_master:

        def refuse(device: Device, on: bool) -> None:
            raise errors.KernelError(5, "pwrite", "config")

        monkeypatch.setattr(Device, "bus_master", property(lambda device: True, refuse))
    controller.close()
    assert read.done
    assert not device.dma.open_buffers
    del read, controller, make
    gc.collect()
    for size in (256, SIZE, 4096 * 4):
        assert taken.isdisjoint(addresses(device, size))


def test_closing_an_idle_controller_withholds_nothing(device: Device, make: MakeController) -> None:
    before = len(withheld._left)
    controller = make(depth=4)
    device.nvme.hold = True
    own_buffer(controller.namespaces[1])
    controller.close()
    assert not controller._withheld._kept
    assert len(withheld._left) == before


def test_what_is_left_goes_with_the_address_space(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    device: Any = Device()
    device.can_reset = False
    controller = nvme.Controller(device)
    device.nvme.becomes_idle = False
    controller.close()
    assert [space for space, _ in withheld._left if space is device.dma]
    monkeypatch.setattr(Memory, "closed", True)
    withheld.Withheld()
    assert not withheld._left
    device.close()
