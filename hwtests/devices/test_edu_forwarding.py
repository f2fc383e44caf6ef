"""QEMU's teaching device interrupts a guest, by MSI."""

from __future__ import annotations

import pytest

from hwtests.devices.test_edu import ACKNOWLEDGE, INTERRUPT_STATUS, RAISE
from hwtests.receivers import guest_of, seen_by_us, sent_by, until
from pyvfio.device import Device, Region
from pyvfio.irqroute import MsiForwarder
from pyvfio.kvm import apic_message

pytestmark = pytest.mark.for_device(vendor=0x1234, device=0x11E8)

INTERRUPT = 0x40
TIMES = 10_000
SOON = 0.2


def interrupt(registers: Region) -> None:
    registers.write32(RAISE, 1)


def acknowledge(registers: Region) -> None:
    assert registers.read32(INTERRUPT_STATUS) == 1
    registers.write32(ACKNOWLEDGE, 1)


def test_ten_thousand_interrupts_are_ten_thousand(device: Device) -> None:
    registers = device.bars[0]
    with guest_of(device) as (vm, guest), MsiForwarder(device.msi, vm) as forwarder:
        forwarder.enable(apic_message(INTERRUPT))
        for number in range(1, TIMES + 1):
            interrupt(registers)
            assert guest.wait(INTERRUPT, number) == number
            acknowledge(registers)
        assert sent_by(device) == TIMES
        assert guest.wait(INTERRUPT, TIMES + 1, SOON) == TIMES
        assert guest.total() == TIMES
        assert seen_by_us(forwarder) == 0
        assert guest.exits == 0


def test_a_masked_interrupt_is_pending_and_comes_once(device: Device) -> None:
    registers = device.bars[0]
    with guest_of(device) as (vm, guest), MsiForwarder(device.msi, vm) as forwarder:
        forwarder.enable(apic_message(INTERRUPT))
        for count in (1, 2):
            forwarder.mask(0)
            for _ in range(2):
                interrupt(registers)
                acknowledge(registers)
            until(lambda: forwarder.pending(0))
            assert guest.wait(INTERRUPT, count, SOON) == count - 1
            forwarder.unmask(0)
            assert guest.wait(INTERRUPT, count) == count
            assert guest.wait(INTERRUPT, count + 1, SOON) == count
            assert not forwarder.pending(0)
