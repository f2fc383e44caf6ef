"""Regions: what the kernel says of them, and accesses that are allowed and refused."""

from __future__ import annotations

import faulthandler

import pytest

import pyvfio
from hwtests.child import in_child
from pyvfio import errors
from pyvfio._sys.memory import PAGE_SIZE
from pyvfio.device import Device, Region
from pyvfio.pci import Function
from pyvfio.pci.config import BarKind, Command

ROM = 6


def memory_bar(device: Device) -> Region:
    for bar in device.config.bars:
        if bar.kind is not BarKind.IO and device.bars[bar.index].areas:
            return device.bars[bar.index]
    pytest.skip("the device has no memory BAR that can be mapped")


def port_bar(device: Device) -> Region:
    for bar in device.config.bars:
        if bar.kind is BarKind.IO:
            return device.bars[bar.index]
    pytest.skip("the device has no I/O ports")


def test_sizes_agree_with_sysfs(function: Function, device: Device) -> None:
    sizes = {number: bar.size for number, bar in device.bars.items()}
    resources = function.resources[:6]
    assert sizes == {number: r.size for number, r in enumerate(resources) if r.size}
    config = device.regions[7]
    assert config.name == "config"
    assert config.size == len(function.read_config())
    if device.rom is not None:
        assert device.rom.size in (function.resources[ROM].size, 128 << 10)


def test_what_can_be_mapped_is_whole_pages_inside_the_region(device: Device) -> None:
    assert device.regions
    for region in device.regions.values():
        assert region.readable
        for area in region.areas:
            assert area.offset % PAGE_SIZE == 0
            assert area.size > 0
            assert area.end <= region.size


def test_each_area_can_be_mapped(device: Device) -> None:
    for region in device.regions.values():
        for area in region.areas:
            assert region.view(area.offset, area.size).nbytes == area.size


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_accesses_outside_or_misaligned_are_refused(device: Device, width: int) -> None:
    for region in device.regions.values():
        read = getattr(region, f"read{8 * width}")
        write = getattr(region, f"write{8 * width}")
        for offset in (-width, -1, region.size, region.size - width + 1, 1 << 62):
            with pytest.raises(errors.RangeError, match=region.name):
                read(offset)
            with pytest.raises(errors.RangeError, match=region.name):
                write(offset, 0)
        if width > 1 and region.size > width:
            with pytest.raises(errors.ArgumentError, match=f"multiple of {width}"):
                read(width // 2)
            with pytest.raises(errors.ArgumentError, match=f"multiple of {width}"):
                write(width // 2, 0)


def test_a_bar_that_is_not_there_says_which_are(device: Device) -> None:
    missing = next(number for number in range(7) if number not in device.bars)
    with pytest.raises(errors.RangeError, match=f"no BAR{missing}"):
        device.bars[missing]


def test_memory_that_is_not_decoded_is_not_touched(device: Device) -> None:
    bar = memory_bar(device)
    offset = bar.areas[0].offset
    bar.read32(offset)
    device.memory_decoding = False
    for _ in range(2):
        with pytest.raises(errors.MemoryDisabled, match="memory_decoding"):
            bar.read32(offset)
        with pytest.raises(errors.MemoryDisabled):
            bar.view(offset, 4)
    device.config.command |= Command.MEMORY
    assert device.memory_decoding
    bar.read32(offset)


def test_a_raw_view_of_it_is_a_bus_error(function: Function) -> None:
    """Which is why the methods refuse, and what the documentation of the views warns of."""
    if function.physical_function is not None:
        pytest.skip("memory decoding of a virtual function cannot be switched off")

    def work() -> None:
        faulthandler.disable()  # pytest's would print where it happened
        with pyvfio.open(function) as device:
            bar = memory_bar(device)
            view = bar.view(bar.areas[0].offset, 4)
            _ = view[0]
            device.memory_decoding = False
            _ = view[0]

    with pytest.raises(ChildProcessError, match="SIGBUS"):
        in_child(work)


def test_ports_are_read_without_a_mapping(device: Device) -> None:
    bar = port_bar(device)
    assert not bar.areas
    bar.read8(0)
    bar.read32(0)
    with pytest.raises(errors.Unsupported, match="read and write methods"):
        _ = bar.u32
    device.config.command &= ~Command.IO
    with pytest.raises(errors.MemoryDisabled, match=r"Command\.IO"):
        bar.read8(0)


def test_the_rom_is_read_only_and_begins_with_its_signature(device: Device) -> None:
    rom = device.rom
    if rom is None:
        pytest.skip("the device has no expansion ROM")
    assert rom.read(0, 2) == b"\x55\xaa"
    assert rom.read16(0) == 0xAA55
    with pytest.raises(errors.ArgumentError, match="read-only"):
        rom.write32(0, 0)
