"""QEMU's test device (its docs/specs/pci-testdev.rst): it counts the writes that match a test."""

from __future__ import annotations

import pytest

from pyvfio.device import Device, Region

pytestmark = pytest.mark.for_device(vendor=0x1B36, device=0x0005)

TEST, WIDTH, OFFSET, DATA, COUNT, NAME = 0, 1, 4, 8, 12, 16


def name(region: Region) -> str:
    return bytes(iter(read_name(region))).decode("ascii")


def read_name(region: Region) -> list[int]:
    found: list[int] = []
    while byte := region.read8(NAME + len(found)):
        found.append(byte)
    return found


@pytest.fixture(params=[0, 1], ids=["memory", "ports"])
def region(request: pytest.FixtureRequest, device: Device) -> Region:
    if request.param not in device.bars:
        pytest.skip("the host has no I/O ports")
    return device.bars[request.param]


def test_every_matching_write_is_counted_once(region: Region) -> None:
    region.write8(TEST, 0)
    assert name(region).endswith("no-eventfd")
    assert region.read8(WIDTH) == 1
    offset, data = region.read32(OFFSET), region.read8(DATA)
    for expected in range(1, 6):
        region.write8(offset, data)
        assert region.read32(COUNT) == expected
    region.write8(offset + 1, data)
    assert region.read32(COUNT) == 5


def test_a_register_reads_the_same_in_every_width(region: Region) -> None:
    region.write8(TEST, 0)
    region.write8(region.read32(OFFSET), region.read8(DATA))
    data = bytes(region.read8(offset) for offset in range(OFFSET, NAME + 8))
    assert any(data)
    for width in (1, 2, 4, 8):
        for offset in range(OFFSET, NAME + 8, width):
            if offset % width == 0:
                value = getattr(region, f"read{8 * width}")(offset)
                expected = data[offset - OFFSET : offset - OFFSET + width]
                assert value == int.from_bytes(expected, "little"), (offset, width)


def test_views_touch_the_same_registers(device: Device) -> None:
    region = device.bars[0]
    region.u8[TEST] = 0
    offset, data = region.u32[OFFSET // 4], region.u8[DATA]
    region.u8[offset] = data
    assert region.u32[COUNT // 4] == region.read32(COUNT) == 1
    assert region.u16[COUNT // 2] == region.read16(COUNT)
    assert region.u64[OFFSET // 8] == region.read64(OFFSET // 8 * 8)
