"""DMA mappings and buffers: what the kernel allows, what it refuses, and what it takes back."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import pyvfio
from hwtests.bench import changes_the_host, setting
from hwtests.child import NOBODY, in_child
from hwtests.holdings import Holdings, lockable
from hwtests.numpy_here import usable_numpy
from hwtests.spaces import ENTRY_LIMIT, ON_POWER, of_version
from pyvfio import errors
from pyvfio.device import Device
from pyvfio.iommu import AddressSpace, SpaprTceV1, Type1
from pyvfio.pci import Function

PAGE = mmap.PAGESIZE
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture(params=[2, 1], ids=["version 2", "version 1"])
def space(request: pytest.FixtureRequest, function: Function) -> Iterator[AddressSpace]:
    with of_version(request.param) as space, pyvfio.open(function, space=space):
        yield space


def test_the_ranges_leave_out_what_the_host_reserves(function: Function, device: Device) -> None:
    group = function.iommu_group
    assert group is not None
    ranges = device.dma.iova_ranges
    assert ranges
    assert all(before.last < after.start for before, after in pairwise(ranges))
    text = Path(f"/sys/kernel/iommu_groups/{group.id}/reserved_regions").read_text()
    for line in text.splitlines():
        start, last, kind = line.split()
        if kind != "direct-relaxable":
            for usable in ranges:
                assert int(last, 16) < usable.start or int(start, 16) > usable.last, line
    assert device.dma.page_size == PAGE or device.dma.page_sizes & PAGE == 0


def test_map_and_unmap(space: AddressSpace) -> None:
    space.map(mmap.mmap(-1, PAGE)).close()  # SPAPR TCE makes its default window at its first use
    before = Holdings.now()
    available = space.mappings_available
    memory = mmap.mmap(-1, 4 * PAGE)
    with space.map(memory) as mapping:
        assert mapping.size == 4 * PAGE
        # SPAPR TCE version 1 counts its whole window at once, when the device is opened.
        pinned = 0 if isinstance(space, SpaprTceV1) else 4 * PAGE
        assert Holdings.now().locked == before.locked + pinned // 1024
        if available is not None:
            assert space.mappings_available == available - 1
    assert Holdings.now() == before
    assert space.mappings_available == available
    mapping.close()
    memory.close()


def test_fixed_addresses_from_end_to_end(space: AddressSpace) -> None:
    memory = mmap.mmap(-1, PAGE)
    for usable in space.iova_ranges:
        for iova in (usable.start, usable.last + 1 - PAGE):
            with space.map(memory, iova=iova) as mapping:
                assert mapping.iova == iova
                with pytest.raises(errors.NoSpace, match="overlaps"):
                    space.map(mmap.mmap(-1, PAGE), iova=iova)


def test_addresses_that_cannot_be_mapped_are_refused(space: AddressSpace) -> None:
    memory = mmap.mmap(-1, PAGE)
    beyond = space.iova_ranges[-1].last + 1
    for iova in (beyond, -PAGE, *(r.last + 1 for r in space.iova_ranges)):
        with pytest.raises(errors.RangeError, match="can be mapped"):
            space.map(memory, iova=iova)
    with pytest.raises(errors.ArgumentError, match="multiple"):
        space.map(memory, iova=PAGE // 2)
    with pytest.raises(errors.ArgumentError, match="whole pages"):
        space.map(memoryview(memory)[: PAGE // 2])
    with pytest.raises(errors.ArgumentError, match="writable"):
        space.map(bytes(PAGE))
    if space.iova_ranges[-1].last >= 1 << 32:
        assert space.map(memory).iova >= 1 << 32, "low addresses are left to those who ask for them"


def test_a_device_with_few_address_bits(space: AddressSpace) -> None:
    for bits in (28, 32):
        highest = (1 << bits) - 1
        buffer = space.alloc(8192, max_iova=highest)
        assert buffer.iova + buffer.size - 1 <= highest
        with space.map(mmap.mmap(-1, PAGE), max_iova=highest) as mapping:
            assert mapping.iova + PAGE - 1 <= highest


def test_a_mapping_is_whole_again_after_another_program_left(device: Device) -> None:
    """Two containers at a time are impossible for one group; one after the other begins anew."""
    memory = mmap.mmap(-1, PAGE)
    function = device.function
    device.dma.map(memory, iova=1 << 20)
    device.close()
    with pyvfio.open(function) as again:
        again.dma.map(memory, iova=1 << 20)


def test_read_only_and_write_only_mappings(space: AddressSpace) -> None:
    memory = mmap.mmap(-1, PAGE)
    space.map(memory, writable=False).close()
    space.map(memory, readable=False).close()


def test_memory_that_the_process_may_not_write_cannot_be_mapped_by_number(
    space: AddressSpace,
) -> None:
    """What the kernel itself refuses is a KernelError that tells where and why."""
    with pytest.raises(errors.KernelError, match=r"VFIO_IOMMU_.*not this process's") as info:
        space._map(PAGE, 1 << 20, PAGE, True, True)
    assert info.value.errno == errno.EFAULT
    if not isinstance(space, Type1):
        return  # SPAPR TCE replaces what was mapped, without a word
    space._map_memory(memoryview(mmap.mmap(-1, PAGE)), iova=1 << 20)
    with pytest.raises(errors.KernelError, match="mapped there already") as info:
        space._map(PAGE, 1 << 20, PAGE, True, True)
    assert info.value.errno == errno.EEXIST


def test_one_mapping_serves_many_buffers(device: Device) -> None:
    space = device.dma
    space.alloc(64).close()
    available = space.mappings_available
    buffers = [space.alloc(PAGE) for _ in range(100)]
    assert space.mappings_available == available
    places = sorted(buffer.iova for buffer in buffers)
    assert all(after - before >= PAGE for before, after in pairwise(places))
    for number, buffer in enumerate(buffers):
        buffer.view[:] = bytes([number]) * PAGE
    assert all(set(buffer.view) == {number} for number, buffer in enumerate(buffers))


def test_large_buffers_have_a_mapping_of_their_own(device: Device) -> None:
    before = Holdings.now().locked
    with device.dma.alloc(4 << 20) as buffer:
        assert buffer.iova % (2 << 20) == 0
        assert Holdings.now().locked == before + 4096
    assert Holdings.now().locked == before


def test_numpy_sees_the_buffer_itself(device: Device) -> None:
    numpy = usable_numpy()
    buffer = device.dma.alloc(PAGE)
    array = numpy.frombuffer(buffer.view, "<u4")
    array[:] = numpy.arange(PAGE // 4)
    assert buffer.view.cast("I")[5] == 5
    buffer.view[:4] = b"\x11\0\0\0"
    assert array[0] == 0x11
    buffer.close()
    assert device.dma.alloc(PAGE).iova != buffer.iova, "somebody still holds the memory"
    assert array[5] == 5


@changes_the_host
def test_as_many_mappings_as_the_kernel_allows(function: Function) -> None:
    limit = 4
    if not ENTRY_LIMIT.exists():
        pytest.skip("this host's IOMMU has no limit of mappings")
    with setting(ENTRY_LIMIT, limit), pyvfio.open(function) as device:
        assert device.dma.mappings_available in (limit, None)
        memory = [mmap.mmap(-1, PAGE) for _ in range(limit + 1)]
        mappings = [device.dma.map(piece) for piece in memory[:limit]]
        assert device.dma.mappings_available in (0, None)
        with pytest.raises(errors.MappingLimit, match=rf"{limit} mappings.*dma_entry_limit"):
            device.dma.map(memory[limit])
        mappings.pop().close()
        device.dma.map(memory[limit])


@changes_the_host
def test_locked_memory_limit_of_an_ordinary_user(function: Function) -> None:
    group = function.iommu_group
    assert group is not None
    owner = os.stat(group.path).st_uid

    def work() -> None:
        with pyvfio.open(function) as device:
            # The tables of SPAPR TCE's windows count, too.
            device.dma.alloc(PAGE).close()
            limit = (Holdings.now().locked << 10) + (1 << 20)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            says = rf"{limit >> 10} KiB.*2048 KiB.*ulimit -l"
            with pytest.raises(errors.LockedMemoryLimit, match=says):
                device.dma.map(mmap.mmap(-1, 2 << 20))
            with pytest.raises(errors.LockedMemoryLimit):
                device.dma.alloc(2 << 20)
            assert device.dma.map(mmap.mmap(-1, 1 << 19)).size == 1 << 19, "what fits is had"

    def open_with_too_little() -> None:
        with pytest.raises(errors.LockedMemoryLimit, match=r"DMA window.*ulimit -l"):
            pyvfio.open(function)

    os.chown(group.path, NOBODY, -1)
    try:
        with lockable(64 << 20):
            in_child(work, user=NOBODY)
        if ON_POWER:
            with lockable(1 << 20):
                in_child(open_with_too_little, user=NOBODY)
    finally:
        os.chown(group.path, owner, -1)


@changes_the_host
def test_huge_pages(device: Device) -> None:
    if not HUGE_PAGES.exists():
        pytest.skip("this host's kernel has no huge pages")
    before = int(HUGE_PAGES.read_text())
    with setting(HUGE_PAGES, before + 2):
        if int(HUGE_PAGES.read_text()) < before + 2:
            pytest.skip("the host has no memory left in pieces of a huge page")
        with device.dma.alloc(3 << 20, huge=True) as buffer:
            assert buffer.iova % (2 << 20) == 0
            buffer.view[-1] = 1
        del buffer
    with pytest.raises(errors.KernelError, match=r"huge pages.*nr_hugepages"):
        device.dma.alloc(1 << 40, huge=True)
    with pytest.raises(errors.Unsupported, match="has no huge pages of 0x3000"):
        device.dma.alloc(1, huge=0x3000)
