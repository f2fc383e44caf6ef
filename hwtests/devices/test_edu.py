"""QEMU's teaching device (its docs/specs/edu.rst): a factorial, DMA within 28 bits, MSI."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator

import pytest

import pyvfio
from hwtests.child import in_child
from hwtests.dma_faults import fault_is_logged
from hwtests.kernel_log import KernelLog
from hwtests.numpy_here import usable_numpy
from pyvfio import errors
from pyvfio.device import Device, Irq
from pyvfio.drivers import edu
from pyvfio.drivers.edu import Registers
from pyvfio.iommu import DmaBuffer
from pyvfio.pci import Function

pytestmark = pytest.mark.for_device(vendor=0x1234, device=0x11E8)

IDENTITY, LIVENESS, FACTORIAL, STATUS = 0x00, 0x04, 0x08, 0x20
INTERRUPT_STATUS, RAISE, ACKNOWLEDGE = 0x24, 0x60, 0x64
DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98

COMPUTING, INTERRUPT_WHEN_DONE = 0x01, 0x80
FACTORIAL_DONE, DMA_DONE = 0x001, 0x100
START, TO_MEMORY, WITH_INTERRUPT = 1, 2, 4

OWN_MEMORY = 0x40000
DMA_BITS = 28
WAIT = 60.0


@pytest.fixture
def registers(device: Device) -> Registers:
    return Registers(device.bars[0])


@pytest.fixture
def buffer(device: Device) -> Iterator[DmaBuffer]:
    with device.dma.alloc(4096, max_iova=(1 << DMA_BITS) - 1) as buffer:
        yield buffer


def finish(registers: Registers, register: int, busy: int) -> None:
    end = time.monotonic() + WAIT
    while registers.read32(register) & busy:
        assert time.monotonic() < end, "the device never finished"


def transfer(registers: Registers, source: int, target: int, count: int, command: int) -> None:
    registers.write64(DMA_SOURCE, source)
    registers.write64(DMA_TARGET, target)
    registers.write64(DMA_COUNT, count)
    pyvfio.fence()
    registers.write64(DMA_COMMAND, START | command)
    finish(registers, DMA_COMMAND, START)
    pyvfio.fence()


def test_it_says_who_it_is(registers: Registers) -> None:
    assert registers.read32(IDENTITY) == 0x010000ED


def test_liveness_answers_the_complement(device: Device, registers: Registers) -> None:
    for value in (0, 1, 0x12345678, 0xFFFFFFFF):
        registers.write32(LIVENESS, value)
        assert registers.read32(LIVENESS) == value ^ 0xFFFFFFFF
        seen = device.bars[0].u32[LIVENESS // 4]
        assert registers.ordered(seen, 4) == value ^ 0xFFFFFFFF


def test_it_computes_factorials(registers: Registers) -> None:
    for number, factorial in ((1, 1), (5, 120), (10, 3628800)):
        registers.write32(FACTORIAL, number)
        finish(registers, STATUS, COMPUTING)
        assert registers.read32(FACTORIAL) == factorial


def test_msi_tells_that_the_factorial_is_ready(device: Device, registers: Registers) -> None:
    with device.msi.enable() as vectors:
        registers.write32(STATUS, INTERRUPT_WHEN_DONE)
        registers.write32(FACTORIAL, 6)
        assert vectors[0].wait(WAIT) == 1
        assert registers.read32(INTERRUPT_STATUS) == FACTORIAL_DONE
        registers.write32(ACKNOWLEDGE, FACTORIAL_DONE)
        assert registers.read32(INTERRUPT_STATUS) == 0
        registers.write32(STATUS, 0)
        assert registers.read32(FACTORIAL) == 720


def test_without_bus_mastering_no_msi_arrives(device: Device, registers: Registers) -> None:
    with device.msi.enable() as vectors:
        device.bus_master = False
        registers.write32(RAISE, 1)
        registers.write32(ACKNOWLEDGE, 1)
        device.bus_master = True
        registers.write32(RAISE, 2)
        assert vectors[0].wait(WAIT) == 1
        assert registers.read32(INTERRUPT_STATUS) == 2
        registers.write32(ACKNOWLEDGE, 2)


def test_intx_masks_itself_until_unmasked(device: Device, registers: Registers) -> None:
    with device.intx.enable() as vectors:
        vector = vectors[0]
        registers.write32(RAISE, 1)
        assert vector.wait(WAIT) == 1
        # The line is still up, and nothing comes of it until it is unmasked.
        registers.write32(RAISE, 2)
        assert vector.take() == 0
        device.intx.unmask()
        assert vector.wait(WAIT) == 1
        registers.write32(ACKNOWLEDGE, 3)
        device.intx.unmask()
        device.intx.mask()
        registers.write32(RAISE, 1)
        assert vector.take() == 0, "masked"
        device.intx.unmask()
        assert vector.wait(WAIT) == 1
        registers.write32(ACKNOWLEDGE, 1)


def test_an_eventfd_unmasks_intx(device: Device, registers: Registers) -> None:
    resample = os.eventfd(0)
    try:
        with device.intx.enable() as vectors:
            device.intx.unmask_by(resample)
            registers.write32(RAISE, 1)
            assert vectors[0].wait(WAIT) == 1
            os.eventfd_write(resample, 1)
            assert vectors[0].wait(WAIT) == 1
            registers.write32(ACKNOWLEDGE, 1)
            device.intx.unmask_by(None)
    finally:
        os.close(resample)


@pytest.mark.parametrize("sort", ["msi", "intx"])
def test_dma_both_ways(device: Device, registers: Registers, buffer: DmaBuffer, sort: str) -> None:
    irq: Irq = getattr(device, sort)
    pattern = bytes(number * 7 & 0xFF for number in range(256))
    buffer.view[:256] = pattern
    transfer(registers, buffer.iova, OWN_MEMORY, 256, 0)
    with irq.enable() as vectors:
        transfer(registers, OWN_MEMORY, buffer.iova + 1024, 256, TO_MEMORY | WITH_INTERRUPT)
        assert vectors[0].wait(WAIT) == 1
        assert registers.read32(INTERRUPT_STATUS) == DMA_DONE
        registers.write32(ACKNOWLEDGE, DMA_DONE)
    assert bytes(buffer.view[1024:1280]) == pattern
    assert not any(buffer.view[256:1024]), "nothing else was written"
    assert not any(buffer.view[1280:])


def test_dma_into_memory_of_the_callers_own(device: Device, registers: Registers) -> None:
    numpy = usable_numpy()
    array = numpy.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), "<u4")
    array[:4] = (1, 2, 3, 4)
    with device.dma.map(array, max_iova=(1 << DMA_BITS) - 1) as mapping:
        transfer(registers, mapping.iova, OWN_MEMORY, 16, 0)
        transfer(registers, OWN_MEMORY, mapping.iova + 16, 16, TO_MEMORY)
    assert list(array[:9]) == [1, 2, 3, 4, 1, 2, 3, 4, 0]


def test_dma_reaches_the_same_memory_after_a_fork(
    device: Device, registers: Registers, buffer: DmaBuffer
) -> None:
    buffer.view[:4] = b"here"
    transfer(registers, buffer.iova, OWN_MEMORY, 4, 0)

    def work() -> None:
        buffer.view[:4] = b"fork"

    in_child(work)
    transfer(registers, OWN_MEMORY, buffer.iova + 8, 4, TO_MEMORY)
    assert bytes(buffer.view[:12]) == b"fork\0\0\0\0here"


def test_what_is_not_mapped_is_out_of_reach(
    device: Device, registers: Registers, kernel_log: KernelLog
) -> None:
    """The same DMA to the same IOVA, first mapped, then not."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[:4] = b"good"
    with device.dma.map(memory, max_iova=(1 << DMA_BITS) - 1) as mapping:
        iova = mapping.iova
        transfer(registers, iova, OWN_MEMORY, 4, 0)
        memory[:4] = b"gone"
        transfer(registers, OWN_MEMORY, iova, 4, TO_MEMORY)
        assert memory[:4] == b"good"
        memory[:4] = b"safe"
    transfer(registers, OWN_MEMORY, iova, 4, TO_MEMORY)
    assert memory[:4] == b"safe", "the device wrote to memory that was unmapped"
    assert fault_is_logged(kernel_log, device.function, iova, WAIT)


def test_a_read_only_mapping_is_not_written(
    device: Device, registers: Registers, kernel_log: KernelLog
) -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[:4] = b"read"
    with device.dma.map(memory, max_iova=(1 << DMA_BITS) - 1, writable=False) as mapping:
        transfer(registers, mapping.iova, OWN_MEMORY, 4, 0)
        memory[:4] = b"kept"
        transfer(registers, OWN_MEMORY, mapping.iova, 4, TO_MEMORY)
        assert memory[:4] == b"kept"
    with device.dma.map(memory, max_iova=(1 << DMA_BITS) - 1) as mapping:
        transfer(registers, OWN_MEMORY, mapping.iova, 4, TO_MEMORY)
    assert memory[:4] == b"read"


def test_the_driver_ends_dma_that_it_gives_up(
    device: Device, registers: Registers, buffer: DmaBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = edu.Edu(device)
    buffer.view[:4] = b"late"
    driver.read_memory(buffer.iova, 4)
    monkeypatch.setattr(edu, "_TIMEOUT", 0.001)
    with device.req.enable() as nobody, pytest.raises(errors.StateError):
        driver.write_memory(buffer.iova, 4, nobody[0])  # which never hears of it
    assert not device.bus_master
    buffer.view[:4] = b"kept"
    finish(registers, DMA_COMMAND, START)
    registers.write32(ACKNOWLEDGE, DMA_DONE)
    assert bytes(buffer.view[:4]) == b"kept"


def test_the_driver_takes_no_interrupt_of_before_for_its_own(
    device: Device, buffer: DmaBuffer
) -> None:
    driver = edu.Edu(device)
    with device.msi.enable() as vectors:
        device.msi.trigger()
        device.msi.trigger()
        driver.read_memory(buffer.iova, 4, vectors[0])
        assert vectors[0].count == 3, "it did not wait for that of its own"


def test_no_dma_comes_after_close(function: Function) -> None:
    """The transfer begins a tenth of a second after its command, as a rule when all is closed."""
    device = pyvfio.open(function)
    memory = mmap.mmap(-1, device.dma.page_size)
    iova = device.dma.map(memory, max_iova=(1 << DMA_BITS) - 1).iova
    memory[:4] = b"data"
    registers = Registers(device.bars[0])
    transfer(registers, iova, OWN_MEMORY, 4, 0)
    memory[:4] = b"kept"
    registers.write64(DMA_SOURCE, OWN_MEMORY)
    registers.write64(DMA_TARGET, iova)
    registers.write64(DMA_COMMAND, START | TO_MEMORY)
    device.close()
    before = memory[:4]
    time.sleep(0.5)
    assert memory[:4] == before
