"""Intel 82574L: interrupts that the device itself raises (its datasheet, chapters 7.4 and 10.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyvfio.device import Device, Region, Vectors
from pyvfio.drivers.proof import prove

pytestmark = pytest.mark.for_device(vendor=0x8086, device=0x10D3)

THROTTLING = range(0x00E8, 0x00FC, 4)
ICR, ICS, IMS, IMC, EIAC, IVAR = 0x00C0, 0x00C8, 0x00D0, 0x00D8, 0x00DC, 0x00E4
RECEIVE_ADDRESS_LOW, RECEIVE_ADDRESS_HIGH = 0x5400, 0x5404
# Causes, in the order of their fields in IVAR: two receive queues, two transmit queues, other.
CAUSES = [1 << bit for bit in range(20, 25)]
VALID, EVERY_WRITE_BACK = 8, 1 << 31
WAIT = 60.0


@pytest.fixture
def registers(device: Device) -> Iterator[Region]:
    """With no interrupt pending; each one that is sent clears and masks its cause."""
    registers = device.bars[0]
    registers.write32(IMC, 0xFFFFFFFF)
    registers.write32(ICR, 0xFFFFFFFF)
    registers.write32(EIAC, sum(CAUSES))
    yield registers
    registers.write32(IMC, 0xFFFFFFFF)


@contextmanager
def enabled(device: Device, count: int | None = None, start: int = 0) -> Iterator[Vectors]:
    """Vectors that the device is done with when they are disabled.

    After an interrupt it holds back the next one for a while, 128 us at least. QEMU (7.2 at least)
    ends with an assertion if MSI-X is off when that while is over.
    """
    for register in THROTTLING:
        device.bars[0].write32(register, 0)
    with device.msix.enable(count, start=start) as vectors:
        yield vectors
        time.sleep(0.2)


def test_each_msix_vector_is_raised_by_the_device(device: Device, registers: Region) -> None:
    assert device.msix.count == len(CAUSES)
    with enabled(device) as vectors:
        ivar = EVERY_WRITE_BACK
        for number in range(len(CAUSES)):
            ivar |= (VALID | number) << 4 * number
        registers.write32(IVAR, ivar)
        for vector, cause in zip(vectors, CAUSES, strict=True):
            # One cause at a time: a link that comes up is a cause, too.
            registers.write32(IMS, cause)
            registers.write32(ICS, cause)
            assert vector.wait(WAIT) == 1
            assert [other.take() for other in vectors] == [0] * len(vectors)


def test_a_cause_can_go_to_any_vector(device: Device, registers: Region) -> None:
    with enabled(device) as vectors:
        for vector in reversed(vectors):
            registers.write32(IVAR, EVERY_WRITE_BACK | VALID | vector.index)
            registers.write32(IMS, CAUSES[0])
            registers.write32(ICS, CAUSES[0])
            assert vector.wait(WAIT) == 1


def test_a_sub_range_gets_its_own_interrupts(device: Device, registers: Region) -> None:
    with enabled(device, 2, start=3) as vectors:
        registers.write32(IMS, CAUSES[0])
        registers.write32(IVAR, EVERY_WRITE_BACK | VALID | 4)
        registers.write32(ICS, CAUSES[0])
        assert vectors[1].wait(WAIT) == 1
        assert vectors[0].take() == 0


def test_the_driver_proves_that_it_works(device: Device) -> None:
    said = prove(device)
    assert "fetched by DMA" in said
    assert "an MSI-X arrived" in said


def test_it_has_an_ethernet_address(registers: Region) -> None:
    low, high = registers.read32(RECEIVE_ADDRESS_LOW), registers.read32(RECEIVE_ADDRESS_HIGH)
    assert high >> 31, "the address is valid"
    assert not low & 1, "and is no multicast one"
    assert low
