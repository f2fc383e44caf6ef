from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio.abi import vfio
from pyvfio.iommu import (
    Container,
    Group,
    SpaprTceV1,
    SpaprTceV2,
    Type1,
    container_space,
    locked,
    open_space,
    spapr,
)
from pyvfio.iommu.info import DmaWindow, parse_spapr_info

from .spapr_standin import GIB, HIGH, PowerKernel

PAGE = mmap.PAGESIZE
Functions = Callable[..., Any]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> PowerKernel:
    kernel = PowerKernel()
    for name in ("open", "close", "ioctl"):
        monkeypatch.setattr(calls, name, getattr(kernel, name))
    monkeypatch.setattr(container_space, "check_openable", lambda function: function.iommu_group)
    return kernel


@pytest.fixture
def space(kernel: PowerKernel, function: Functions) -> Iterator[SpaprTceV2]:
    with SpaprTceV2() as space:
        space.open_device(function(1))
        yield space


def test_the_container_says_which_space_it_takes(kernel: PowerKernel) -> None:
    for extensions, kind in (
        ({vfio.VFIO_SPAPR_TCE_IOMMU, vfio.VFIO_SPAPR_TCE_v2_IOMMU}, SpaprTceV2),
        ({vfio.VFIO_SPAPR_TCE_IOMMU}, SpaprTceV1),
        ({vfio.VFIO_TYPE1_IOMMU, vfio.VFIO_TYPE1v2_IOMMU}, Type1),
        ({vfio.VFIO_TYPE1_IOMMU}, Type1),
    ):
        kernel.extensions = set(extensions)
        with open_space() as space:
            assert type(space) is kind
    kernel.extensions = set()
    with pytest.raises(errors.Unsupported, match="modprobe"):
        open_space()
    for wrong in (SpaprTceV1, SpaprTceV2):
        with pytest.raises(errors.Unsupported, match="modprobe vfio_iommu_spapr_tce"):
            wrong()
    assert kernel.files == {}


def test_low_addresses_are_for_those_who_ask(space: SpaprTceV2) -> None:
    assert [window.start for window in space.windows] == [0, HIGH]
    assert space.page_size == PAGE
    assert space.map(mmap.mmap(-1, PAGE)).iova == HIGH
    assert 0 < space.map(mmap.mmap(-1, PAGE), max_iova=(1 << 28) - 1).iova < 1 << 28


def test_memory_may_be_mapped_twice_and_in_parts(kernel: PowerKernel, space: SpaprTceV2) -> None:
    memory = memoryview(mmap.mmap(-1, 4 * PAGE))
    whole = space.map(memory)
    part = space.map(memory[PAGE : 3 * PAGE])
    again = space.map(memory)
    whole.close()
    again.close()
    assert kernel.only.registered
    part.close()
    assert kernel.only.registered == set()


def test_a_refused_mapping_leaves_nothing_registered(
    kernel: PowerKernel, space: SpaprTceV2
) -> None:
    kernel.fail["VFIO_IOMMU_MAP_DMA"] = errno.EPERM
    with pytest.raises(errors.KernelError, match="pages are smaller than the window's"):
        space.map(mmap.mmap(-1, PAGE))
    assert kernel.only.registered == set()


def test_what_the_kernel_refuses_is_explained(kernel: PowerKernel, space: SpaprTceV2) -> None:
    with pytest.raises(errors.KernelError, match="no DMA window has this IOVA"):
        space._map(PAGE, 3 * GIB, PAGE, True, True)
    with pytest.raises(errors.KernelError, match="not registered") as info:
        super(SpaprTceV2, space)._map(PAGE, 0, PAGE, True, True)
    assert info.value.errno == errno.EINVAL
    # Of several pages only some could be pinned.
    kernel.pinned = 3
    with pytest.raises(errors.KernelError, match="not this process's") as info:
        space.map(mmap.mmap(-1, PAGE))
    assert info.value.errno == errno.EFAULT
    kernel.pinned = 0
    kernel.fail["VFIO_IOMMU_SPAPR_REGISTER_MEMORY"] = errno.EINVAL
    with pytest.raises(errors.KernelError, match="another address space of this process"):
        space.map(mmap.mmap(-1, PAGE))


def test_a_mapping_larger_than_its_window(kernel: PowerKernel, function: Functions) -> None:
    kernel.default = 1 << 20
    with SpaprTceV2(window=0) as space:
        space.open_device(function(1))
        assert space.windows == (DmaWindow(0, 1 << 20, 4096),)
        with pytest.raises(errors.NoSpace, match=r"no DMA window has 0x200000.*0x0-0xfffff"):
            space.map(mmap.mmap(-1, 2 << 20))
        with pytest.raises(errors.RangeError, match="out of reach"):
            space.map(mmap.mmap(-1, PAGE), iova=HIGH)
        assert space.create_window(GIB).size == GIB
        assert space.map(mmap.mmap(-1, 2 << 20)).iova == HIGH


def test_the_window_comes_and_goes(kernel: PowerKernel, space: SpaprTceV2) -> None:
    with pytest.raises(errors.StateError, match="there is a window"):
        space.create_window()
    mapping = space.map(mmap.mmap(-1, PAGE))
    space.alloc(64).close()
    with pytest.raises(errors.StateError, match="1 mappings are in the window"):
        space.remove_window()
    mapping.close()
    space.remove_window()
    space.remove_window()
    assert list(kernel.only.windows) == [0]
    assert space.map(mmap.mmap(-1, PAGE)).iova < 1 << 32
    for size in (0, -1, 3 << 20):
        with pytest.raises(errors.ArgumentError, match="power of two"):
            space.create_window(size)
    assert space.create_window(GIB) == DmaWindow(HIGH, GIB, 4096)


def test_more_levels_where_memory_is_in_pieces(kernel: PowerKernel, function: Functions) -> None:
    kernel.table_levels = 4
    with SpaprTceV2(window=GIB) as space:
        space.open_device(function(1))
        assert space.windows[1].size == GIB
    kernel.table_levels = 9
    with SpaprTceV2(window=GIB) as space, pytest.raises(errors.KernelError) as info:
        space.open_device(function(1))
    assert info.value.errno == errno.ENOMEM
    assert kernel.files == {}


def test_tables_that_may_not_be_locked(
    kernel: PowerKernel, function: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locked, "limit", lambda: 1 << 20)
    kernel.fail["VFIO_IOMMU_SPAPR_TCE_CREATE"] = errno.ENOMEM
    with SpaprTceV2() as space, pytest.raises(errors.LockedMemoryLimit, match="DMA window"):
        space.open_device(function(1))
    kernel.fail["VFIO_IOMMU_ENABLE"] = errno.ENOMEM
    with SpaprTceV1() as old, pytest.raises(errors.LockedMemoryLimit, match="2097152 KiB more"):
        old.open_device(function(1))
    assert kernel.files == {}


def test_a_window_is_no_larger_than_what_could_be_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locked, "limit", lambda: 300 << 20)
    assert spapr._reasonable_window() == GIB
    monkeypatch.setattr(locked, "limit", lambda: 0)
    assert spapr._reasonable_window() == 64 << 20


def test_a_host_without_dynamic_windows(kernel: PowerKernel, function: Functions) -> None:
    kernel.dynamic = False
    with SpaprTceV2() as space, pytest.raises(errors.Unsupported, match="SpaprTceV1"):
        space.open_device(function(1))
    assert kernel.files == {}


def test_version_1_holds_one_group(kernel: PowerKernel, function: Functions) -> None:
    with SpaprTceV1() as space:
        file = space.open_device(function(1))
        assert space.windows == (DmaWindow(0, 2 * GIB, 4096),)
        assert space.map(mmap.mmap(-1, PAGE)).iova < 2 * GIB
        with pytest.raises(errors.StateError, match="group 1 is in it"):
            space.open_device(function(2))
        space.close_device(file)
        assert not kernel.only.enabled
        space.open_device(function(2))


def test_closing_gives_back_what_counts_as_locked(kernel: PowerKernel, space: SpaprTceV2) -> None:
    space.map(mmap.mmap(-1, PAGE))
    tables = kernel.only
    space.close()
    assert tables.windows == {}
    assert tables.registered == set()


@pytest.mark.parametrize("kept", [0, HIGH])
def test_closing_goes_on_after_a_refusal(kernel: PowerKernel, space: SpaprTceV2, kept: int) -> None:
    mapping = space.map(mmap.mmap(-1, PAGE))
    tables = kernel.only
    kernel.keep_windows = {kept}
    with pytest.raises(errors.KernelError) as info:
        space.close()
    assert info.value.errno == errno.EBUSY
    assert list(tables.windows) == [kept]
    assert tables.registered == set()
    assert mapping.closed


def test_closing_where_the_kernel_does_not_tell(kernel: PowerKernel, space: SpaprTceV2) -> None:
    mapping = space.map(mmap.mmap(-1, PAGE))
    tables = kernel.only
    kernel.fail["VFIO_IOMMU_SPAPR_TCE_GET_INFO"] = errno.EIO
    with pytest.raises(errors.KernelError) as info:
        space.close()
    assert info.value.errno == errno.EIO
    assert list(tables.windows) == [0]
    assert tables.registered == set()
    assert mapping.closed
    assert kernel.files == {}


def test_a_refused_unregistering_is_tried_again(kernel: PowerKernel, space: SpaprTceV2) -> None:
    mapping = space.map(mmap.mmap(-1, PAGE))
    kernel.fail["VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY"] = errno.EBUSY
    for _ in range(2):
        with pytest.raises(errors.KernelError):
            mapping.close()
        assert kernel.only.registered
    kernel.fail.clear()
    mapping.close()
    assert kernel.only.registered == set()


def test_a_window_made_in_a_container_of_somebody_elses(
    kernel: PowerKernel, function: Functions
) -> None:
    container = Container.open()
    group = Group.open(1)
    group.set_container(container)
    container.set_iommu(vfio.VFIO_SPAPR_TCE_v2_IOMMU)
    with SpaprTceV2(container) as space:
        space.attach(group, joined=True)
        tables = kernel.only
        space.create_window(GIB)
    assert list(tables.windows) == [0], "the default window is not the space's"


def test_two_groups_share_the_windows(kernel: PowerKernel, function: Functions) -> None:
    with SpaprTceV2() as space:
        first = space.open_device(function(1))
        buffer = space.alloc(64)
        space.open_device(function(2))
        space.close_device(first)
        assert not buffer.closed
        assert len(space.windows) == 2


def test_nonsense_from_the_kernel() -> None:
    with pytest.raises(errors.KernelError, match="only 4 bytes"):
        parse_spapr_info(bytes(4))
    kind = vfio.vfio_iommu_spapr_tce_info
    with pytest.raises(errors.KernelError, match="below 4 GiB"):
        parse_spapr_info(bytes(kind(dma32_window_start=1 << 31, dma32_window_size=(1 << 31) + 1)))
    assert parse_spapr_info(bytes(16)).default is None
