"""Intel 82574L interrupts a guest, by MSI-X."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hwtests.counting_guest import CountingGuest
from hwtests.devices.test_e1000e import (
    CAUSES,
    EIAC,
    EVERY_WRITE_BACK,
    ICR,
    ICS,
    IMC,
    IMS,
    IVAR,
    THROTTLING,
    VALID,
)
from hwtests.receivers import guest_of, seen_by_us, sent_by, until
from pyvfio.device import Device, MsixEntry, Region
from pyvfio.irqroute import MsixForwarder
from pyvfio.kvm import apic_message

pytestmark = pytest.mark.for_device(vendor=0x8086, device=0x10D3)

FIRST = 0x40
TIMES = 10_000
SOON = 0.2


@contextmanager
def forwarded(device: Device) -> Iterator[tuple[CountingGuest, MsixForwarder]]:
    """Each cause has its own vector, and each vector its own handler."""
    registers = device.bars[0]
    registers.write32(IMC, 0xFFFFFFFF)
    registers.write32(ICR, 0xFFFFFFFF)
    registers.write32(EIAC, sum(CAUSES))  # one that is sent clears and masks its cause
    ivar = EVERY_WRITE_BACK
    for number in range(len(CAUSES)):
        ivar |= (VALID | number) << 4 * number
    registers.write32(IVAR, ivar)
    # 0 is no throttling; QEMU (7.2 at least) makes it 128 us.
    for register in THROTTLING:
        registers.write32(register, 0)
    with guest_of(device) as (vm, guest), MsixForwarder(device.msix, vm) as forwarder:
        for number in range(len(CAUSES)):
            forwarder.msix[number] = MsixEntry(*apic_message(FIRST + number), masked=False)
        forwarder.msix.enabled = True
        yield guest, forwarder
        registers.write32(IMC, 0xFFFFFFFF)
        # QEMU ends with an assertion if MSI-X is off when the throttling is over.
        time.sleep(0.2)


def interrupt(registers: Region, cause: int) -> None:
    registers.write32(IMS, cause)
    registers.write32(ICS, cause)


def test_ten_thousand_interrupts_are_ten_thousand(device: Device) -> None:
    registers = device.bars[0]
    with forwarded(device) as (guest, forwarder):
        for number in range(TIMES):
            count, which = divmod(number, len(CAUSES))
            interrupt(registers, CAUSES[which])
            assert guest.wait(FIRST + which, count + 1) == count + 1
            if which == len(CAUSES) - 1:
                # Until the throttling is over: QEMU (7.2) sends every interrupt of a vector twice,
                # once it has had to hold one back.
                time.sleep(0.001)
        assert sent_by(device) == TIMES
        each = TIMES // len(CAUSES)
        assert guest.wait(FIRST, each + 1, SOON) == each
        assert [guest.counts(FIRST + which) for which in range(len(CAUSES))] == [each] * len(CAUSES)
        assert guest.total() == TIMES
        assert seen_by_us(forwarder) == 0
        assert guest.exits == 0


def test_a_masked_interrupt_is_pending_and_comes_once(device: Device) -> None:
    registers = device.bars[0]
    with forwarded(device) as (guest, forwarder):
        msix = forwarder.msix
        for which, cause in enumerate(CAUSES):
            msix[which] = msix[which]._replace(masked=True)
            interrupt(registers, cause)
            until(lambda which=which: msix.is_pending(which))  # type: ignore[misc]
            assert guest.wait(FIRST + which, 1, SOON) == 0
            msix[which] = msix[which]._replace(masked=False)
            assert guest.wait(FIRST + which, 1) == 1
            assert guest.wait(FIRST + which, 2, SOON) == 1
            assert not msix.is_pending(which)
        assert guest.total() == len(CAUSES)
