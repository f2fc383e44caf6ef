"""NVM Express: its registers, and Identify by DMA with MSI-X (NVMe Base Specification 2.0).

Works on any NVMe controller; nothing is written to its medium.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

import pyvfio
from pyvfio.device import Device, Region
from pyvfio.iommu import DmaBuffer

pytestmark = pytest.mark.for_device(class_code=0x010802)

CAP, VS, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x08, 0x14, 0x1C, 0x24, 0x28, 0x30
DOORBELLS = 0x1000
ENABLE, READY, FATAL = 1, 1, 2
ENTRY_SIZES = 6 << 16 | 4 << 20  # 64 and 16 bytes, as powers of two
IDENTIFY, CONTROLLER = 0x06, 1
ENTRIES = 8
WAIT = 60.0


@pytest.fixture
def registers(device: Device) -> Iterator[Region]:
    registers = device.bars[0]
    registers.write32(CC, 0)
    become(registers, 0)
    yield registers
    registers.write32(CC, 0)
    become(registers, 0)


def become(registers: Region, ready: int) -> None:
    end = time.monotonic() + WAIT
    while registers.read32(CSTS) & READY != ready:
        assert not registers.read32(CSTS) & FATAL
        assert time.monotonic() < end, "the controller never got there"


def start(registers: Region, commands: DmaBuffer, completions: DmaBuffer) -> None:
    """Enable the controller with its admin queues."""
    registers.write32(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1))
    for register, queue in ((ASQ, commands), (ACQ, completions)):
        registers.write32(register, queue.iova & 0xFFFFFFFF)
        registers.write32(register + 4, queue.iova >> 32)
    registers.write32(CC, ENABLE | ENTRY_SIZES)
    become(registers, READY)


def test_its_registers_make_sense(registers: Region) -> None:
    capabilities = registers.read64(CAP)
    assert capabilities == registers.read32(CAP) | registers.read32(CAP + 4) << 32
    assert capabilities & 0xFFFF, "queues have entries"
    assert capabilities >> 37 & 1, "it speaks the NVM command set"
    assert registers.read32(VS) >> 16 in (1, 2)
    assert not registers.read32(CSTS) & (READY | FATAL)


@pytest.mark.parametrize("vector", [0, 1])
def test_identify_by_dma_and_msix(device: Device, registers: Region, vector: int) -> None:
    """The admin queue uses vector 0, whatever else is enabled."""
    commands, completions, data = (device.dma.alloc(4096) for _ in range(3))
    with device.msix.enable(vector + 1) as vectors:
        start(registers, commands, completions)
        identifier = 0x1234
        command = struct.pack("<IIQQQQ", IDENTIFY | identifier << 16, 0, 0, 0, data.iova, 0)
        commands.view[:40] = command
        commands.view[40:44] = struct.pack("<I", CONTROLLER)
        pyvfio.fence()
        registers.write32(DOORBELLS, 1)
        assert vectors[0].wait(WAIT) == 1
        pyvfio.fence()
        _, _, _, _, echoed, status = struct.unpack("<IIHHHH", completions.view[:16])
        assert echoed == identifier
        assert status == 1, "success, in the first round of the queue"
        assert int.from_bytes(data.view[:2], "little") == device.config.vendor_id
        assert bytes(data.view[4:24]).decode("ascii").isprintable()
        assert all(other.take() == 0 for other in vectors)


def test_a_reset_stops_the_controller(device: Device, registers: Region) -> None:
    if not device.can_reset:
        pytest.skip("the device cannot be reset alone")
    commands, completions = (device.dma.alloc(4096) for _ in range(2))
    start(registers, commands, completions)
    device.reset()
    assert not registers.read32(CC) & ENABLE
    become(registers, 0)
