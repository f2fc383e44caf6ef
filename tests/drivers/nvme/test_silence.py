"""Registers that read all ones: for a while after a reset, or for good."""

from __future__ import annotations

from typing import Any

import pytest

from pyvfio import errors
from pyvfio.drivers import nvme
from pyvfio.drivers.nvme import controller as driver
from pyvfio.drivers.nvme import spec

from .conftest import MakeController
from .model import BLOCK, Clock, Device

SECONDS = [0.05, 0.5, 2.0, 4.5]


@pytest.fixture(params=SECONDS)
def waking(request: pytest.FixtureRequest, device: Device, clock: Clock) -> Device:
    """A controller that is silent for so long after each reset, and enabled at the start."""
    device.nvme.silent_seconds, device.nvme.clock = request.param, clock
    device.nvme._registers[spec.CC] = spec.CC_ENABLE
    device.nvme.ready = True
    return device


def test_silence_after_a_reset_is_waited_for(waking: Device, make: MakeController) -> None:
    controller = make()
    disk = controller.namespaces[1]
    disk.write(4, b"x" * BLOCK)
    controller.reset()
    assert disk.read(4, 1) == b"x" * BLOCK
    controller.close()
    assert waking.nvme.shutdowns == [(1, [])]
    assert waking.bus_master


def test_silence_after_a_reset_of_the_function(waking: Device, make: MakeController) -> None:
    disk = make().namespaces[1]
    waking.nvme.becomes_idle, waking.nvme.fatal, waking.nvme.hold = False, True, True
    with pytest.raises(nvme.ControllerFatal):
        disk.flush()
    assert waking.resets == 1
    waking.nvme.hold = False
    disk.flush()


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_silence_after_anothers_reset_is_waited_for(
    waking: Device, make: MakeController, clock: Clock, interrupts: bool
) -> None:
    """As after a reset by sysfs, or when it leaves D3: commands then fail, and it is reset."""
    disk = make(interrupts=interrupts).namespaces[1]
    waking.nvme.hold = True
    flush = disk.start_flush()
    waking.reset()
    for _ in range(40):
        recover = disk._controller._diagnose()
        if recover is not None:
            recover()
            break
        clock.now += driver._LEAST_SECONDS / 20
    with pytest.raises(nvme.ControllerReset, match="somebody else"):
        flush.wait()
    waking.nvme.hold = False
    disk.flush()


def test_silence_for_a_moment_harms_no_command(
    device: Device, disk: nvme.Namespace, clock: Clock
) -> None:
    """Seen twice, long apart, too: nobody has looked meanwhile."""
    for _ in range(3):
        device.nvme.hold = True
        flush = disk.start_flush()
        device.nvme.silent = True
        assert disk._controller._diagnose() is None
        device.nvme.silent = False
        device.nvme.complete(device.nvme.under_way()[0])
        assert flush.wait() == 0
        clock.now += 1000
    assert disk._controller.resets == 0


@pytest.mark.parametrize("claimed", [1, 20, 255])
def test_silence_for_too_long_is_the_end(
    device: Device, make: MakeController, clock: Clock, claimed: int
) -> None:
    device.nvme.capabilities = (claimed ^ 1) << 24
    disk = make().namespaces[1]
    device.nvme.hold = True
    flush = disk.start_flush(timeout=1000)
    device.nvme.silent = True
    bound = max(claimed / 2, driver._LEAST_SECONDS)
    begun = clock.now
    while (recover := disk._controller._diagnose()) is None:
        clock.now += 0.5
    assert bound <= clock.now - begun <= bound + 1
    recover()
    with pytest.raises(errors.DeviceGone):
        flush.wait()
    assert not device.bus_master


def test_reset_of_its_pe_is_waited_for(device: Device, disk: nvme.Namespace, clock: Clock) -> None:
    """Meanwhile config space cannot be read (ENODEV)."""
    device.nvme.hold = True
    flush = disk.start_flush(timeout=1000)
    device.nvme.silent = device.config.refused = True
    for _ in range(4):
        assert disk._controller._diagnose() is None
        clock.now += 1
    device.nvme.silent = device.config.refused = False
    device.nvme.complete(device.nvme.under_way()[0])
    assert flush.wait() == 0


def test_removed_device_is_gone_at_once(device: Device, disk: nvme.Namespace, clock: Clock) -> None:
    """Its config space reads all ones as well, but for what VFIO answers from a copy."""
    device.nvme.hold = True
    flush = disk.start_flush()
    device.nvme.gone = True
    begun = clock.now
    assert disk._controller._diagnose() is not None
    with pytest.raises(errors.DeviceGone):
        flush.wait()
    with pytest.raises(errors.DeviceGone):
        disk._controller.reset()
    assert clock.now == begun


@pytest.mark.parametrize("moment", ["at first", "not ready", "not idle"])
def test_bringing_up_a_silent_controller_ends(device: Device, clock: Clock, moment: str) -> None:
    """All ones are never taken for the bit that is waited for."""
    write32 = device.nvme.write32
    device.nvme._registers[spec.CC] = spec.CC_ENABLE
    device.nvme.ready = True

    def silence(offset: int, value: int) -> None:
        write32(offset, value)
        if offset == spec.CC and bool(value & spec.CC_ENABLE) == (moment == "not ready"):
            device.nvme.silent = True

    device.nvme.silent = moment == "at first"
    device.nvme.write32 = silence  # type: ignore[method-assign]
    begun = clock.now
    with pytest.raises(errors.DeviceGone):
        nvme.Controller(device)  # type: ignore[arg-type]
    assert driver._LEAST_SECONDS <= clock.now - begun < 5 * driver._LEAST_SECONDS
    assert not device.dma.open_buffers


def test_silence_while_commands_of_bringing_up_wait(
    device: Device, make: MakeController, clock: Clock
) -> None:
    def answer(command: Any) -> int | None:
        if command.opcode == nvme.Admin.SET_FEATURES and not command.queue:
            device.nvme.silent = True
            return None
        return 0

    def sleep(seconds: float) -> None:
        clock.now += 0.5
        if device.nvme.silent and clock.now > 1002:
            device.nvme.silent = False
            device.nvme.answer = lambda command: 0
            device.nvme.complete(device.nvme.waiting[0])

    device.nvme.answer = answer
    clock.sleep = sleep  # type: ignore[method-assign]
    make().namespaces[1].flush()
