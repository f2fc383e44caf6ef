"""What Linux's own selftests of VFIO assert (7.3, tools/testing/selftests/vfio).

Their drivers are of devices that copy memory; here edu is the device that copies, and starting and
ending a driver is shown with edu's and NVMe's.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

import pyvfio
from hwtests.bench import REPEAT, changes_the_host
from hwtests.dma_faults import fault_is_logged
from hwtests.field.layouts import GIB, HIGH, HUGE, free_huge_pages, huge_pages, whole
from hwtests.kernel_log import KernelLog
from hwtests.kernel_trace import Unavailable, tracing
from hwtests.spaces import of_version
from pyvfio import errors
from pyvfio._sys import calls, memory
from pyvfio.abi import vfio
from pyvfio.device import Device, Region, Vector
from pyvfio.drivers import edu, nvme
from pyvfio.drivers.nvme import spec
from pyvfio.iommu import AddressSpace, DmaBuffer, Type1
from pyvfio.pci import Function

PAGE = mmap.PAGESIZE
WAIT = 60.0
PROT_NONE, MAP_FIXED, MAP_NORESERVE = 0, 0x10, 0x4000  # mmap(2)'s, which Python does not have

of_edu = pytest.mark.for_device(vendor=edu.VENDOR_ID, device=edu.DEVICE_ID)


# vfio_dma_mapping_test.c


@pytest.mark.parametrize(
    "page",
    [PAGE, pytest.param(HUGE, marks=changes_the_host), GIB],
    ids=["a page", "2 MiB", "1 GiB"],
)
def test_dma_map_unmap(space: Type1, page: int) -> None:
    """vfio_dma_mapping_test.c, dma_map_unmap: a page of each size is one piece for the IOMMU.

    The original looks into the IOMMU's own table, which Debian's kernels do not show. Here the
    kernel's trace tells how large a piece the IOMMU was given, where there is one.
    """
    if page == GIB and not free_huge_pages(GIB):
        pytest.skip("needs a huge page of 1 GiB: boot with hugepagesz=1G hugepages=1")
    with ExitStack() as stack:
        if page == HUGE:
            view = stack.enter_context(huge_pages(HUGE, HUGE))
        else:
            view = memory.allocate_shared(page, None if page == PAGE else page)
        trace = None
        with suppress(Unavailable):
            trace = stack.enter_context(tracing({}, ("iommu/map", "iommu/unmap")))
        iova = space.iova_ranges[-1].start + HIGH
        space._map(memory.address_of(view), iova, page, True, True)
        assert space._unmap(iova, page) == page
        assert space._unmap(iova, page) == 0
        if trace is not None:
            seen = [event for event in trace.take() if event.values["iova"] == f"{iova:#018x}"]
            assert [event.name for event in seen] == ["map", "unmap"]
            assert seen[0].number("size") == page


def test_unmap_all(space: Type1) -> None:
    """vfio_dma_mapping_test.c, unmap_all: one call undoes whatever is mapped, and says how much."""
    page = memory.allocate_shared(PAGE)
    space._map(memory.address_of(page), last_page(space), PAGE, True, True)
    argument = vfio.vfio_iommu_type1_dma_unmap(
        argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_unmap), flags=vfio.VFIO_DMA_UNMAP_FLAG_ALL
    )
    space.container.file.ioctl(vfio.VFIO_IOMMU_UNMAP_DMA, argument)
    assert argument.size == PAGE
    assert space._unmap(last_page(space), PAGE) == 0


def test_overflow(space: Type1) -> None:
    """vfio_dma_mapping_test.c, overflow: nothing is mapped or unmapped beyond 64 bits."""
    pages = memory.allocate_shared(2 * PAGE)
    iova = (1 << 64) - PAGE
    refused = []
    for attempt in (
        lambda: space._map(memory.address_of(pages), iova, 2 * PAGE, True, True),
        lambda: space._unmap(iova, 2 * PAGE),
    ):
        with pytest.raises(errors.KernelError) as caught:
            attempt()
        refused.append(caught.value.errno)
    if refused == [errno.EINVAL] * 2:
        pytest.skip("needs Linux 6.19, which tells overflow (EOVERFLOW) from other wrong arguments")
    assert refused == [errno.EOVERFLOW] * 2


def last_page(space: Type1) -> int:
    """The last IOVA at which a page can be mapped."""
    return space.iova_ranges[-1].last + 1 - PAGE


# vfio_dma_mapping_mmio_test.c


@pytest.fixture
def bar(type1_device: Device) -> Region:
    """The largest BAR that can be mapped whole."""
    bars = [bar for bar in type1_device.bars.values() if whole(bar)]
    if not bars:
        pytest.skip("needs a BAR that can be mapped")
    return max(bars, key=len)


def test_map_full_bar(space: Type1, bar: Region) -> None:
    """vfio_dma_mapping_mmio_test.c, map_full_bar: a BAR can be mapped for DMA."""
    with space.map(bar.view(), iova=HIGH) as mapping:
        assert mapping.size == bar.size


def test_map_partial_bar(space: Type1, bar: Region) -> None:
    """vfio_dma_mapping_mmio_test.c, map_partial_bar: so can its first page alone."""
    if bar.size < 2 * PAGE:
        pytest.skip("needs a BAR of two pages")
    with space.map(bar.view(0, PAGE), iova=HIGH) as mapping:
        assert mapping.size == PAGE


def test_map_bar_misaligned(
    space: Type1, bar: Region, type1_device: Device, request: pytest.FixtureRequest
) -> None:
    """vfio_dma_mapping_mmio_test.c, map_bar_misaligned: a page after a GiB is aligned enough."""
    size = min(bar.size, GIB)
    room = size + 2 * GIB
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    start = calls.mmap(0, room, PROT_NONE, flags, -1, 0)
    request.addfinalizer(lambda: calls.munmap(start, room))
    address = -(-start // GIB) * GIB + PAGE
    calls.mmap(
        address,
        size,
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_SHARED | MAP_FIXED,
        type1_device._file.fileno(),
        bar._offset,
    )
    space._map(address, HIGH, size, True, True)
    assert space._unmap(HIGH, size) == size


# vfio_pci_device_init_perf_test.c


def test_init(function: Function, other: Function, type1: None) -> None:
    """vfio_pci_device_init_perf_test.c, init: threads open devices in one address space at once."""
    for version in (2, 1):
        with of_version(version) as space, ThreadPoolExecutor(2) as pool:
            start = threading.Barrier(2)

            def opened(each: Function, space: AddressSpace, start: threading.Barrier) -> Device:
                start.wait()
                return pyvfio.open(each, space=space)

            futures = [pool.submit(opened, each, space, start) for each in (function, other)]
            devices = [future.result(WAIT) for future in futures]
            assert [device.address for device in devices] == [function.address, other.address]
            assert all(device.bus_master for device in devices)
            space.alloc(PAGE).close()
            for device in devices:
                device.close()


# vfio_pci_driver_test.c


def test_init_remove(device: Device) -> None:
    """vfio_pci_driver_test.c, init_remove: a driver starts and ends ten times on an open device."""
    if device.config.class_code == spec.CLASS_CODE:
        for _ in range(10):
            with nvme.Controller(device) as controller:
                assert controller.identity.vendor_id == device.config.vendor_id
    elif (device.config.vendor_id, device.config.device_id) == (edu.VENDOR_ID, edu.DEVICE_ID):
        for _ in range(10):
            with device.msi.enable() as vectors:
                assert edu.Edu(device).factorial(5, vectors[0]) == 120
    else:
        pytest.skip("needs a device that pyvfio has a driver of: edu, NVMe")


@pytest.fixture
def copier(device: Device) -> Iterator[Copier]:
    """edu, with its interrupt enabled."""
    buffer = device.dma.alloc(2 * Copier.SIZE, max_iova=edu.LAST_IOVA)
    with device.msi.enable() as vectors:
        yield Copier(edu.Edu(device), vectors[0], buffer)


class Copier:
    """Copies memory to memory by way of the device.

    Attributes:
        vector: the device's interrupt, which no copy asks for.
        unmapped: an IOVA within its reach where nothing is mapped.
    """

    SIZE = 2048

    def __init__(self, driver: edu.Edu, vector: Vector, buffer: DmaBuffer) -> None:
        self._driver = driver
        self.vector = vector
        self._buffer = buffer
        self.unmapped = (buffer.iova ^ (64 << 20)) & ~(PAGE - 1)

    def copy(self, data: bytes) -> bytes:
        """What arrives of some data."""
        view = self._buffer.view
        view[: self.SIZE] = data
        view[self.SIZE :] = bytes(self.SIZE)
        self._driver.read_memory(self._buffer.iova, self.SIZE)
        self._driver.write_memory(self._buffer.iova + self.SIZE, self.SIZE)
        return bytes(view[self.SIZE :])

    def read_unmapped(self) -> None:
        """Let the device read where it cannot."""
        self._driver.read_memory(self.unmapped, self.SIZE)

    def interrupt(self) -> None:
        """Let the device interrupt; it does once."""
        self._driver.raise_interrupt(1)
        assert self.vector.wait(WAIT) == 1
        assert self._driver.acknowledge() == 1


@of_edu
def test_memcpy_from_unmapped_iova(device: Device, copier: Copier, kernel_log: KernelLog) -> None:
    """vfio_pci_driver_test.c, memcpy_from_unmapped_iova: it does no harm and does not interrupt."""
    copier.read_unmapped()
    assert fault_is_logged(kernel_log, device.function, copier.unmapped, WAIT)
    assert copier.vector.take() == 0


@of_edu
def test_mix_and_match(copier: Copier) -> None:
    """vfio_pci_driver_test.c, mix_and_match: a copy that faults spoils nothing that comes after."""
    for number in range(10):
        data = bytes([number]) * Copier.SIZE
        assert copier.copy(data) == data
        copier.read_unmapped()
        copier.interrupt()


@of_edu
def test_memcpy_storm(copier: Copier) -> None:
    """vfio_pci_driver_test.c, memcpy_storm: many copies, none wrong, and no interrupt.

    edu takes a fifth of a second for each; hwtests/host/test_nvme_truth.py has many more by NVMe.
    """
    for number in range(20 * REPEAT):
        data = random.Random(number).randbytes(Copier.SIZE)
        assert copier.copy(data) == data
    assert copier.vector.take() == 0
