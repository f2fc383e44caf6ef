"""Reset and power states."""

from __future__ import annotations

import pytest

from pyvfio import errors
from pyvfio.device import Device
from pyvfio.pci import Function

WAIT = 30.0


def test_reset_keeps_the_device_usable(device: Device) -> None:
    if not device.can_reset:
        with pytest.raises(errors.Unsupported, match="cannot be reset alone"):
            device.reset()
        pytest.skip("the device cannot be reset alone")
    with device.req.enable() as vectors:
        bars = device.config.bars
        buffer = device.dma.alloc(4096)
        device.reset()
        assert device.config.bars == bars
        assert device.memory_decoding
        assert device.bus_master
        for bar in device.bars.values():
            bar.read32(bar.areas[0].offset if bar.areas else 0)
        assert device.dma.iova_ranges
        assert not buffer.closed
        device.req.trigger()
        assert vectors[0].wait(WAIT) == 1


def test_interrupts_stay_enabled_over_a_reset(device: Device) -> None:
    if not device.can_reset:
        pytest.skip("the device cannot be reset alone")
    irq = next((irq for irq in (device.msix, device.msi, device.intx) if irq.count), None)
    if irq is None:
        pytest.skip("the device raises no interrupts")
    with irq.enable(1) as vectors:
        device.reset()
        irq.trigger()
        assert vectors[0].wait(WAIT) == 1
        if irq is device.msix:
            try:
                assert not device.msix.table[0].masked
            except errors.Unsupported as error:
                pytest.skip(str(error))


def fall_asleep(device: Device) -> None:
    try:
        device.power_state = 3
    except errors.Unsupported as error:
        # Seen on an emulated POWER9; on a POWER8 the same devices sleep.
        pytest.skip(f"the host keeps it awake: {error}")


def test_sleep_and_wake(function: Function, device: Device) -> None:
    if device.config.pm is None:
        with pytest.raises(errors.Unsupported, match="no power-management"):
            device.power_state = 3
        assert device.power_state == 0
        pytest.skip("the device has no power-management capability")
    # An MSI-X table takes no accesses of fewer than 32 bits (PCI Express, 7.7.2): on arm64 they end
    # the process with SIGBUS.
    for bar in device.bars.values():
        bar.read32(bar.areas[0].offset if bar.areas else 0)
    fall_asleep(device)
    assert device.power_state == 3
    assert function.power_state in ("D3hot", None)
    for bar in device.bars.values():
        with pytest.raises(errors.MemoryDisabled, match="sleeps in D3"):
            bar.read32(bar.areas[0].offset if bar.areas else 0)
    device.power_state = 0
    assert device.power_state == 0
    assert function.power_state in ("D0", None)
    for bar in device.bars.values():
        bar.read32(bar.areas[0].offset if bar.areas else 0)


def test_a_reset_wakes_the_device(device: Device) -> None:
    if device.config.pm is None or not device.can_reset:
        pytest.skip("the device has no power-management capability, or cannot be reset alone")
    fall_asleep(device)
    device.reset()
    assert device.power_state == 0


def test_states_that_there_are_not(device: Device) -> None:
    for state in (-1, 4):
        with pytest.raises(errors.RangeError, match=r"0 \(D0\) to 3"):
            device.power_state = state
