"""POWER's own: DMA windows and registered memory, as the kernel keeps them."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator

import pytest

import pyvfio
from hwtests.holdings import Holdings
from hwtests.spaces import ON_POWER
from pyvfio import errors
from pyvfio._sys.memory import address_of
from pyvfio.iommu import SpaprTce, SpaprTceV1, SpaprTceV2
from pyvfio.pci import Function

pytestmark = pytest.mark.skipif(not ON_POWER, reason="the host has no SPAPR TCE IOMMU")

PAGE = mmap.PAGESIZE
HIGH = 1 << 59


@pytest.fixture
def space(function: Function) -> Iterator[SpaprTceV2]:
    with SpaprTceV2() as space, pyvfio.open(function, space=space):
        yield space


def test_an_opened_device_has_both_windows(function: Function) -> None:
    with pyvfio.open(function) as device:
        assert isinstance(device.dma, SpaprTceV2)
        low, high = device.dma.windows
        assert (low.start, low.page_size) == (0, 4096)
        assert low.size <= 1 << 32
        assert high.start == HIGH
        assert high.page_size <= PAGE
        assert device.dma.page_size == PAGE


def test_the_high_window_is_removed_and_made_again(space: SpaprTceV2) -> None:
    before = Holdings.now().locked
    space.remove_window()
    assert Holdings.now().locked < before, "its table counts no longer"
    memory = mmap.mmap(-1, PAGE)
    assert space.map(memory).iova < 1 << 32
    with pytest.raises(errors.RangeError, match="out of reach"):
        space.map(memory, iova=HIGH)
    window = space.create_window(1 << 30)
    assert (window.start, window.size) == (HIGH, 1 << 30)
    assert space.map(memory, iova=window.range.last + 1 - PAGE).iova > HIGH


def test_memory_mapped_twice_and_in_parts(space: SpaprTceV2) -> None:
    space.map(mmap.mmap(-1, PAGE), max_iova=(1 << 32) - 1).close()
    before = Holdings.now()
    memory = memoryview(mmap.mmap(-1, 8 * PAGE))
    part = space.map(memory[2 * PAGE : 4 * PAGE])
    whole = space.map(memory)
    again = space.map(memory, max_iova=(1 << 32) - 1)
    assert Holdings.now().locked == before.locked + 8 * PAGE // 1024, "counted once"
    for mapping in (part, again, whole):
        mapping.close()
    assert Holdings.now() == before


def test_memory_that_is_not_registered_is_refused(space: SpaprTceV2) -> None:
    space.map(mmap.mmap(-1, PAGE))
    memory = memoryview(mmap.mmap(-1, PAGE))
    address = address_of(memory)
    with pytest.raises(errors.KernelError, match="the memory is not registered") as info:
        SpaprTce._map(space, address, HIGH + (1 << 20), PAGE, True, True)
    assert info.value.errno == errno.EINVAL


def test_a_mapping_larger_than_every_window(function: Function) -> None:
    with SpaprTceV2(window=0) as space, pyvfio.open(function, space=space):
        (window,) = space.windows
        with pytest.raises(errors.NoSpace, match="no DMA window has"):
            space.map(mmap.mmap(-1, window.size + PAGE))


def test_version_1_refuses_a_second_group(function: Function, other: Function) -> None:
    with SpaprTceV1() as space, pyvfio.open(function, space=space):
        with pytest.raises(errors.StateError, match="holds one group"):
            pyvfio.open(other, space=space)
        assert space.map(mmap.mmap(-1, PAGE)).iova
