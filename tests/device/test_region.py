"""Regions, on a file that stands for the device's memory: mapping, widths, bounds."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio._sys import File, memory
from pyvfio.abi import vfio
from pyvfio.device import Area, Region

PAGE = 4096
READ_WRITE = vfio.VFIO_REGION_INFO_FLAG_READ | vfio.VFIO_REGION_INFO_FLAG_WRITE
WIDTHS = (1, 2, 4, 8)


def make(
    size: int = PAGE,
    *,
    areas: tuple[Area, ...] | None = None,
    flags: int = READ_WRITE,
    allowed: list[bool] | None = None,
) -> Region:
    """A region over a new file of counting bytes, at 4096 in it."""
    fd = os.memfd_create("device")
    os.pwrite(fd, bytes(i % 251 for i in range(PAGE + size)), 0)
    os.ftruncate(fd, PAGE + -(-size // PAGE) * PAGE)

    def refuse() -> None:
        if allowed is not None and not allowed[0]:
            raise errors.MemoryDisabled("asleep")

    return Region(
        File(fd, "device"),
        0,
        "BAR0",
        flags=flags,
        size=size,
        offset=PAGE,
        areas=(Area(0, size),) if areas is None else areas,
        refuse=refuse,
    )


@pytest.fixture(params=["mapped", "not mapped", "mapped in part"])
def region(request: pytest.FixtureRequest) -> Iterator[Region]:
    areas = {
        "mapped": (Area(0, 2 * PAGE),),
        "not mapped": (),
        "mapped in part": (Area(PAGE, PAGE),),
    }[request.param]
    region = make(2 * PAGE, areas=areas)
    yield region
    region._file.close()


def read(region: Region, width: int, offset: int) -> int:
    return int(getattr(region, f"read{8 * width}")(offset))


def write(region: Region, width: int, offset: int, value: int) -> None:
    getattr(region, f"write{8 * width}")(offset, value)


@pytest.mark.parametrize("width", WIDTHS)
def test_reads_and_writes_little_endian_at_byte_offsets(region: Region, width: int) -> None:
    model = bytearray(region.read(0, region.size))
    for offset in (0, width, PAGE - width, PAGE, 2 * PAGE - width):
        value = 0x1122334455667788 & ((1 << 8 * width) - 1)
        assert read(region, width, offset) == int.from_bytes(
            model[offset : offset + width], "little"
        )
        write(region, width, offset, value)
        model[offset : offset + width] = value.to_bytes(width, "little")
        assert read(region, width, offset) == value
    assert region.read(0, region.size) == bytes(model), "nothing else was touched"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("twice", [False, True], ids=["first access", "fast path"])
def test_refuses_what_is_outside_or_misaligned(region: Region, width: int, twice: bool) -> None:
    if twice:
        read(region, width, 0)
    for offset in (-width, -1, 2 * PAGE, 2 * PAGE - width + 1, 1 << 40):
        with pytest.raises(errors.RangeError):
            read(region, width, offset)
        with pytest.raises(errors.RangeError):
            write(region, width, offset, 0)
    if width > 1:
        for offset in (1, width + 1, PAGE - 1):
            with pytest.raises(errors.ArgumentError, match="not a multiple"):
                read(region, width, offset)
            with pytest.raises(errors.ArgumentError, match="not a multiple"):
                write(region, width, offset, 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_refuses_a_value_that_does_not_fit(region: Region, width: int) -> None:
    before = region.read(0, region.size)
    for value in (-1, 1 << 8 * width):
        with pytest.raises(errors.ArgumentError, match="not an integer"):
            write(region, width, 0, value)
        with pytest.raises(ValueError):
            write(region, width, 8, value)
    assert region.read(0, region.size) == before


@given(st.data())
def test_any_access_agrees_with_a_bytearray(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([16, 32, 64, 256, PAGE]))
    region = make(size)
    model = bytearray(region.read(0, size))
    for _ in range(20):
        width = data.draw(st.sampled_from(WIDTHS))
        offset = data.draw(st.integers(-8, size + 8))
        value = data.draw(st.integers(0, (1 << 8 * width) - 1))
        if 0 <= offset <= size - width and offset % width == 0:
            write(region, width, offset, value)
            model[offset : offset + width] = value.to_bytes(width, "little")
            assert read(region, width, offset) == value
        else:
            with pytest.raises(errors.ArgumentError):
                write(region, width, offset, value)
    assert region.read(0, size) == bytes(model)
    region._file.close()


def test_a_region_smaller_than_a_page_ends_where_it_says() -> None:
    region = make(16)
    assert len(region.view()) == 16
    assert len(region.u32) == 4
    region.write32(12, 7)
    assert region.u32[3] == 7
    with pytest.raises(errors.RangeError):
        region.read32(16)


def test_the_views_are_the_same_memory_as_the_methods() -> None:
    region = make()
    region.u32[5] = 0xDEADBEEF
    assert region.read32(20) == 0xDEADBEEF
    assert region.u16[10] == 0xBEEF
    assert region.u8[23] == 0xDE
    assert region.u64[2] >> 32 == 0xDEADBEEF


def test_a_view_of_what_cannot_be_mapped_says_what_can() -> None:
    region = make(4 * PAGE, areas=(Area(PAGE, PAGE),))
    assert len(region.view(PAGE, PAGE)) == PAGE
    with pytest.raises(errors.Unsupported, match=r"0x1000\.\.0x2000"):
        region.view()
    with pytest.raises(errors.Unsupported, match="read and write"):
        _ = make(areas=()).u32


def test_an_access_is_refused_while_memory_decoding_is_off() -> None:
    allowed = [True]
    region = make(allowed=allowed)
    assert region.read32(0) == region.u32[0]
    allowed[0] = False
    region.release()
    for refused in (
        lambda: region.read32(0),
        lambda: region.write32(0, 0),
        lambda: region.read(0, 4),
        lambda: region.write(0, b"1234"),
        lambda: region.u32,
    ):
        with pytest.raises(errors.MemoryDisabled):
            refused()
    allowed[0] = True
    assert region.read32(0) == region.u32[0]


def test_a_read_only_region_refuses_writes() -> None:
    region = make(flags=vfio.VFIO_REGION_INFO_FLAG_READ)
    region.read32(0)
    with pytest.raises(errors.ArgumentError, match="read-only"):
        region.write32(0, 1)
    with pytest.raises(errors.ArgumentError, match="read-only"):
        region.write(0, b"1")
    with pytest.raises(TypeError):
        region.u32[0] = 1


def test_mapping_holds_no_descriptor_and_lives_as_long_as_its_last_view() -> None:
    region = make()
    before = len(os.listdir("/proc/self/fd"))
    view = region.u32
    assert len(os.listdir("/proc/self/fd")) == before
    region._file.close()
    region.release()
    view[0] = 0x5A5A5A5A
    assert view[0] == 0x5A5A5A5A
    with open("/proc/self/maps") as maps:
        assert sum("memfd:device" in line for line in maps) == 1
    del view
    with open("/proc/self/maps") as maps:
        assert not any("memfd:device" in line for line in maps)


def test_a_child_does_not_inherit_the_mapping() -> None:
    region = make()
    view = region.view()
    child = os.fork()
    if child == 0:
        with open("/proc/self/maps") as maps:
            mapped = any("memfd:device" in line for line in maps)
        closed = region._file.closed
        try:
            region.read32(0)
            refused = False
        except errors.Closed:
            refused = True
        del view
        os._exit(0 if not mapped and closed and refused else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert view[0] == region.read8(0), "the parent's mapping is untouched"


def test_a_large_mapping_is_aligned_for_huge_pages() -> None:
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), 4 << 20)
        with File(os.dup(file.fileno()), "large") as device:
            view = memory.map_file(device, 0, 4 << 20, writable=True)
            assert memory.address_of(view) % (2 << 20) == 0


def test_a_region_larger_than_the_hosts_memory_can_be_mapped() -> None:
    fd = os.memfd_create("device")
    os.ftruncate(fd, 1 << 40)
    with File(fd, "device") as file:
        view = memory.map_file(file, 0, 1 << 40, writable=True)
        view[1 << 39] = 7
        assert view[1 << 39] == 7


def test_a_mapping_that_is_refused_leaves_no_addresses_behind() -> None:
    with File(os.memfd_create("device"), "device") as file, open("/proc/self/maps") as maps:
        before = len(maps.readlines())
        for _ in range(50):
            with pytest.raises(errors.KernelError, match="mmap on device"):
                memory.map_file(file, 1, PAGE, writable=True)
        maps.seek(0)
        assert len(maps.readlines()) < before + 20


def test_an_integer_of_another_library_is_an_integer() -> None:
    numpy = pytest.importorskip("numpy")
    region = make()
    region.write32(0, numpy.uint32(5))
    assert region.read32(0) == 5


def test_more_registers_than_are_remembered() -> None:
    region = make(8 * PAGE)
    for offset in range(0, 8 * PAGE, 4):
        region.write32(offset, offset)
    assert [region.read32(offset) for offset in range(0, 8 * PAGE, 4)] == list(
        range(0, 8 * PAGE, 4)
    )


def test_readers_never_touch_what_another_thread_switches_off() -> None:
    """What would be SIGBUS on a device is here a fault on memory that was taken away."""
    allowed = [True]
    region = make(allowed=allowed)
    done = threading.Event()
    refusals = []

    def read() -> None:
        while not done.is_set():
            try:
                region.read32(8)
            except errors.MemoryDisabled:
                refusals.append(1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(300):
        allowed[0] = False
        region.release()
        assert not region._at32, "remembered after the release"
        time.sleep(0)
        assert not region._at32, "remembered while it may not be touched"
        allowed[0] = True
    done.set()
    for reader in readers:
        reader.join()
