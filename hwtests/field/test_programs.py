"""What the programs of github.com/awilliam/tests assert (commit 89361c9), by VFIO's maintainer.

Those that go on for ever there end here, after a number of rounds.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import pytest

import pyvfio
from hwtests.bench import REPEAT, changes_the_host
from hwtests.field.layouts import (
    GIB,
    HIGH,
    HUGE,
    TIB,
    check_reach,
    huge_pages,
    mappings_allowed,
    whole,
)
from hwtests.holdings import Holdings
from pyvfio import errors
from pyvfio._sys import memory
from pyvfio.abi import vfio
from pyvfio.device import Device
from pyvfio.iommu import Type1
from pyvfio.iommu.info import capabilities
from pyvfio.pci import Function

PAGE = mmap.PAGESIZE
MIB = 1 << 20

# ctypes releases the interpreter's lock during a call, so that two threads are in the kernel.
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
LIBC.mlock.argtypes = LIBC.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def test_vfio_pci_device_open_sparse_mmap(device: Device) -> None:
    """vfio-pci-device-open-sparse-mmap.c: each region is asked for twice, its chain walked."""
    kind = vfio.vfio_region_info
    for index in range(vfio.VFIO_PCI_NUM_REGIONS):
        answer = bytearray(ctypes.sizeof(kind))
        info = kind.from_buffer(answer)
        info.argsz, info.index = len(answer), index
        try:
            device._file.ioctl(vfio.VFIO_DEVICE_GET_REGION_INFO, answer)
        except errors.KernelError:
            assert index not in device.regions
            continue
        areas = [(0, info.size)] if info.flags & vfio.VFIO_REGION_INFO_FLAG_MMAP else []
        if info.flags & vfio.VFIO_REGION_INFO_FLAG_CAPS:
            assert info.argsz > len(answer), "the kernel says how much room the chain needs"
            answer = bytearray(info.argsz)
            info = kind.from_buffer(answer)
            info.argsz, info.index = len(answer), index
            device._file.ioctl(vfio.VFIO_DEVICE_GET_REGION_INFO, answer)
            assert info.argsz == len(answer)
            for found in capabilities(bytes(answer), info.cap_offset, ctypes.sizeof(kind)):
                if found.id == vfio.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
                    areas = sparse_areas(found.data)
        region = device.regions.get(index)
        assert (0 if region is None else region.size) == info.size
        if region is not None:
            assert [(area.offset, area.size) for area in region.areas] == areas


def sparse_areas(capability: bytes) -> list[tuple[int, int]]:
    count = vfio.vfio_region_info_cap_sparse_mmap.from_buffer_copy(capability).nr_areas
    first = ctypes.sizeof(vfio.vfio_region_info_cap_sparse_mmap)
    each = vfio.vfio_region_sparse_mmap_area * count
    areas = each.from_buffer_copy(capability, first)
    return [(area.offset, area.size) for area in areas if area.size]


def test_vfio_pci_device_dma_map(device: Device, type1: None) -> None:
    """vfio-pci-device-dma-map.c: a BAR can be mapped for DMA, in pieces or whole."""
    bars = [bar for bar in device.bars.values() if whole(bar)]
    if not bars:
        pytest.skip("needs a BAR that can be mapped")
    for bar in bars:
        view = bar.view()
        for piece in {size for size in (HUGE, GIB, bar.size) if size <= bar.size}:
            with ExitStack() as mapped:
                for at in range(0, bar.size, piece):
                    part = view[at : at + piece]
                    mapping = device.dma.map(part, iova=HIGH + at, writable=False)
                    assert mapping.size == piece
                    mapped.enter_context(mapping)


@pytest.mark.parametrize(
    "huge", [False, pytest.param(True, marks=changes_the_host)], ids=["pages", "huge pages"]
)
def test_vfio_correctness_tests(function: Function, type1: None, huge: bool) -> None:
    """vfio-correctness-tests.c: what is mapped, refused and unmapped, page by page and whole."""
    with ExitStack() as stack:
        pages = huge_pages(HUGE, HUGE) if huge else nullcontext(memory.allocate_shared(HUGE))
        address = memory.address_of(stack.enter_context(pages))
        space = stack.enter_context(Type1(version=1))
        stack.enter_context(pyvfio.open(function, space=space))
        base = space.iova_ranges[0].start

        def map_at(offset: int, size: int = PAGE) -> None:
            space._map(address + offset, base + offset, size, True, True)

        def check_mapped(offset: int, size: int = PAGE) -> None:
            with pytest.raises(errors.KernelError) as refused:
                map_at(offset, size)
            assert refused.value.errno == errno.EEXIST

        def unmap_at(offset: int, size: int = PAGE) -> int:
            return space._unmap(base + offset, size)

        upwards = [*range(0, HUGE, PAGE)]
        downwards = upwards[::-1]
        for order in (upwards, downwards, checkerboard(upwards), checkerboard(downwards)):
            for offset in order:
                map_at(offset)
            if order is upwards:
                for offset in order:
                    check_mapped(offset)
            assert {unmap_at(offset) for offset in order} == {PAGE}
            if order is upwards:
                assert {unmap_at(offset) for offset in order} == {0}

        map_at(0, HUGE)
        check_mapped(0, HUGE)
        assert unmap_at(0, HUGE) == HUGE
        # The IOMMU may hold it in one piece, of which all goes with any page.
        map_at(0, HUGE)
        assert sum(map(unmap_at, downwards)) == HUGE


def checkerboard(offsets: list[int]) -> list[int]:
    return offsets[::2] + offsets[1::2]


@changes_the_host
def test_vfio_huge_guest_test(function: Function, type1: None) -> None:
    """vfio-huge-guest-test.c: the memory layout of a guest of 1 TiB."""
    with Type1() as space, pyvfio.open(function, space=space):
        check_reach(space, TIB)
        with huge_pages(4 * GIB, HUGE) as pages:
            address = memory.address_of(pages)
            space._map(address, 0, 640 << 10, True, True)
            space._map(address + MIB, MIB, 3 * GIB - MIB, True, True)
            for iova in range(HIGH, TIB, 4 * GIB):
                space._map(address, iova, 4 * GIB, True, True)
            for iova in range(HIGH, TIB, 4 * GIB):
                assert space._unmap(iova, 4 * GIB) == 4 * GIB
            assert space._unmap(0, HIGH) == 3 * GIB - MIB + (640 << 10)


@changes_the_host
def test_vfio_iommu_map_unmap(function: Function, type1: None) -> None:
    """vfio-iommu-map-unmap.c: 262,144 mappings of a page, which one call undoes.

    The pages are those of 16 MiB, again and again: it is the mappings that are many.
    """
    count = GIB // PAGE
    pages = memory.allocate_shared(16 * MIB)
    address, size = memory.address_of(pages), len(pages)
    with (
        mappings_allowed(count),
        Type1() as space,
        pyvfio.open(function, space=space),
    ):
        for _ in range(REPEAT):
            before = Holdings.now().locked
            for offset in range(0, GIB, PAGE):
                space._map(address + offset % size, HIGH + offset, PAGE, True, True)
            assert Holdings.now().locked == before + (GIB >> 10)
            assert space._unmap(HIGH, GIB) == GIB
            assert Holdings.now().locked == before


@changes_the_host
def test_vfio_iommu_stress_test(function: Function, type1: None) -> None:
    """vfio-iommu-stress-test.c: 349,184 mappings of 2 MiB up to 1 TiB, each GiB in four orders."""
    gibs = [gib for gib in range(TIB // GIB) if gib % 3]
    chunks = range(GIB // HUGE)
    orders = [chunk for first in (0, 1, 3, 2) for chunk in chunks[first::4]]
    half = len(chunks) // 2
    undone = [*chunks[:half:2], *chunks[:half:-2]]
    with (
        mappings_allowed(len(gibs) * len(chunks)),
        Type1() as space,
        pyvfio.open(function, space=space),
    ):
        check_reach(space, TIB)
        # The same few pages for all of them: zeroing a GiB would take an emulated host long.
        with huge_pages(16 * HUGE, HUGE) as pages:
            address = memory.address_of(pages)
            for gib in gibs:
                for chunk in orders:
                    iova = gib * GIB + chunk * HUGE
                    space._map(address + chunk % 16 * HUGE, iova, HUGE, True, True)
            for gib in gibs:
                for chunk in undone:
                    assert space._unmap(gib * GIB + chunk * HUGE, HUGE) == HUGE
            left = len(gibs) * (len(chunks) - len(undone))
            assert space._unmap(0, TIB) == left * HUGE


@pytest.mark.parametrize("size", [HUGE, GIB], ids=["2 MiB", "1 GiB"])
def test_vfio_pci_huge_fault_race(device: Device, size: int) -> None:
    """vfio-pci-huge-fault-race.c: two threads touch a new mapping of a BAR first, both at once."""
    bar = next((bar for bar in device.bars.values() if whole(bar) and bar.size >= size), None)
    if bar is None:
        pytest.skip(
            f"needs a BAR of {size >> 20} MiB (the bench: --qemu-args "
            "'-device pci-testdev,addr=0x6,membar=1G')"
        )
    for _ in range(200 * REPEAT):
        view = memory.map_file(device._file, bar._offset, size, writable=True)
        address = memory.address_of(view)
        start = threading.Barrier(2)
        read: list[bytes] = []

        def touch(where: int, start: threading.Barrier, read: list[bytes]) -> None:
            word = ctypes.create_string_buffer(8)
            start.wait()
            LIBC.memcpy(word, where, 8)
            read.append(word.raw)

        threads = [
            threading.Thread(target=touch, args=(where, start, read))
            for where in (address, address + size - PAGE)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(read) == 2


def test_accounting_stress(space: Type1) -> None:
    """accounting-stress.c: mapping never fails while another thread locks and unlocks memory."""
    mapped, locked = memory.allocate_shared(PAGE), memory.allocate_shared(PAGE)
    ends = threading.Event()
    failures: list[str] = []

    def lock() -> None:
        while not ends.is_set():
            for call in (LIBC.mlock, LIBC.munlock):
                if call(memory.address_of(locked), PAGE):
                    failures.append(os.strerror(ctypes.get_errno()))

    thread = threading.Thread(target=lock)
    thread.start()
    try:
        for _ in range(2000 * REPEAT):
            space._map(memory.address_of(mapped), HIGH, PAGE, True, True)
            assert space._unmap(HIGH, PAGE) == PAGE
    finally:
        ends.set()
        thread.join()
    assert not failures


def test_e324fc82ea45(function: Function, type1: None) -> None:
    """e324fc82ea45/reproducer.c: a wrong name gets no device, however often, and holds nothing."""
    with Type1(version=1) as space, pyvfio.open(function, space=space):
        (group,) = space.groups
        for _ in range(2000 * REPEAT):
            with pytest.raises(errors.DeviceGone):
                group.open_device("THIS-IS-NOT-THE-RIGHT-NAME")
    pyvfio.open(function).close()


def test_intx_race(device: Device) -> None:
    """intx-race/vfio-pci-intx-race.c: INTx comes and goes under an eventfd that unmasks it.

    The kernel's messages, which every test looks at, would tell of the race.
    """
    if not device.intx.count:
        pytest.skip("needs a device with INTx")
    with ExitStack() as stack:
        interrupt, unmask = os.eventfd(0), os.eventfd(0)
        stack.callback(os.close, interrupt)
        stack.callback(os.close, unmask)
        stack.enter_context(forever(lambda: os.eventfd_read(interrupt)))
        stack.enter_context(forever(lambda: os.eventfd_write(unmask, 1)))
        for _ in range(1000 * REPEAT):
            device.intx.signal(0, [interrupt])
            device.intx.unmask_by(unmask)
            device.intx.disable()


@contextmanager
def forever(step: Callable[[], object]) -> Iterator[None]:
    """Do something again and again in another process while the block lasts."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                step()
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
