from __future__ import annotations

import gc
import mmap
import random
import threading
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pyvfio import errors
from pyvfio._sys import memory
from pyvfio.iommu import DmaBuffer, Type1, dma

from .conftest import stand_in
from .standin import Kernel

PAGE = mmap.PAGESIZE
MAP, UNMAP = "VFIO_IOMMU_MAP_DMA", "VFIO_IOMMU_UNMAP_DMA"


def test_a_buffer_is_zeroed_writable_bytes(space: Type1) -> None:
    with space.alloc(100) as buffer:
        assert buffer.size == len(buffer.view) == 100
        assert buffer.view.format == "B"
        assert bytes(buffer.view) == bytes(100)
        buffer.view[:] = b"\xff" * 100
    with space.alloc(100) as again:
        assert again.iova == buffer.iova
        assert bytes(again.view) == bytes(100)


def test_many_buffers_share_one_mapping(space: Type1, kernel: Kernel) -> None:
    buffers = [space.alloc(4096) for _ in range(400)]
    assert kernel.count(MAP) == 1
    for buffer in buffers:
        buffer.close()
    calls = len(kernel.log)
    for _ in range(1000):
        space.alloc(4096).close()
    assert len(kernel.log) == calls


def test_iova_and_view_are_the_same_memory(space: Type1) -> None:
    arenas = space._pool
    buffers = [space.alloc(size) for size in (1, 64, 100, 4096, 5000)]
    (arena,) = arenas._arenas
    for number, buffer in enumerate(buffers, 1):
        buffer.view[:] = bytes([number]) * buffer.size
    for number, buffer in enumerate(buffers, 1):
        start = buffer.iova - arena.mapping.iova
        assert bytes(arena.memory[start : start + buffer.size]) == bytes([number]) * buffer.size


def test_numpy_takes_a_view_without_a_copy(space: Type1) -> None:
    numpy = pytest.importorskip("numpy")
    with space.alloc(4096) as buffer:
        words = numpy.frombuffer(buffer.view, "<u4")
        words[1] = 0x01020304
        assert bytes(buffer.view[4:8]) == b"\4\3\2\1"


def test_a_closed_buffer_says_so(space: Type1) -> None:
    buffer = space.alloc(64)
    buffer.close()
    buffer.close()
    assert buffer.closed
    with pytest.raises(errors.Closed, match=hex(buffer.iova)):
        _ = buffer.view


def test_memory_is_not_handed_out_again_while_a_view_lives(space: Type1) -> None:
    buffer = space.alloc(4096)
    holders: list[Any] = [
        buffer.view[8:16],
        buffer.view.cast("I"),
        memoryview(buffer.view),
    ]
    holders[0][0] = 0x5A
    buffer.close()
    while holders:
        with space.alloc(4096) as other:
            assert other.iova != buffer.iova
        holders.pop()
    with space.alloc(4096) as again:
        assert again.iova == buffer.iova


def test_numpy_holds_memory_too(space: Type1) -> None:
    numpy = pytest.importorskip("numpy")
    buffer = space.alloc(4096)
    array = numpy.frombuffer(buffer.view, "u1")[10:20]
    buffer.close()
    other = space.alloc(4096)
    other.view[:] = b"\xff" * 4096
    assert other.iova != buffer.iova
    assert not array.any()


def test_a_buffer_that_is_forgotten_stays_with_the_device(space: Type1) -> None:
    iova = space.alloc(4096).iova
    gc.collect()
    assert all(space.alloc(4096).iova != iova for _ in range(300))


@pytest.mark.parametrize(
    ("size", "align", "multiple"),
    [
        (1, None, 64),
        (65, None, 128),
        (2000, None, 2048),
        (PAGE, None, PAGE),
        (PAGE + 1, None, PAGE),
        (5 * PAGE, None, PAGE),
        (64, 1, 64),
        (64, 512, 512),
        (64, 1 << 16, 1 << 16),
        (100, 4 << 20, 4 << 20),
        (3 << 20, None, 2 << 20),
        (3 << 20, 8 << 20, 8 << 20),
    ],
)
def test_alignment_is_honoured(space: Type1, size: int, align: int | None, multiple: int) -> None:
    space.alloc(64)
    buffers = [space.alloc(size, align=align) for _ in range(3)]
    assert all(buffer.iova % multiple == 0 for buffer in buffers)
    assert len({buffer.iova for buffer in buffers}) == 3


def test_the_highest_address_is_honoured(space: Type1) -> None:
    top = (1 << 28) - 1
    for size in (64, 4096, 1 << 20, 5 << 20):
        high = space.alloc(size)
        low = space.alloc(size, max_iova=top)
        assert high.iova >= 1 << 32
        assert low.iova > 0
        assert low.iova + size - 1 <= top


def test_a_large_buffer_is_a_mapping_of_its_own(space: Type1, kernel: Kernel) -> None:
    buffer = space.alloc((3 << 20) + 1)
    assert kernel.mappings == {buffer.iova: (3 << 20) + PAGE}
    view = buffer.view
    buffer.close()
    assert kernel.mappings == {}
    view[-1] = 7  # the view outlives the mapping
    assert len(view) == buffer.size


def test_idle_arenas_are_given_back_but_one(space: Type1, kernel: Kernel) -> None:
    buffers = [space.alloc(4096) for _ in range(8_000)]
    assert len(kernel.mappings) == 5  # 2, 2, 4, 8 and 16 MiB
    for buffer in reversed(buffers):
        buffer.close()
    assert sum(kernel.mappings.values()) <= 4 << 20  # the spare one, and what is ready for reuse
    space._pool.trim()
    assert list(kernel.mappings.values()) == [2 << 20]


def test_arenas_grow_with_use(space: Type1, kernel: Kernel) -> None:
    for _ in range(64):
        space.alloc(1 << 20)
    assert kernel.count(MAP) == 7  # 2, 2, 4, 8, 16, 16 and 16 MiB


def test_sizes_share_memory(space: Type1, kernel: Kernel) -> None:
    """What small buffers leave merges into room for large ones."""
    for size in (64, 4096, 100_000, 1 << 20):
        for buffer in [space.alloc(size) for _ in range((2 << 20) // size // 2)]:
            buffer.close()
    assert kernel.count(MAP) == 1


def test_under_a_tight_limit_an_arena_is_as_small_as_it_must_be(
    space: Type1, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = space._map

    def limited(address: int, iova: int, size: int, readable: bool, writable: bool) -> None:
        if size > 64 << 10:
            raise errors.LockedMemoryLimit(12, "VFIO_IOMMU_MAP_DMA", "vfio")
        real(address, iova, size, readable, writable)

    monkeypatch.setattr(space, "_map", limited)
    assert space.alloc(4096).view[0] == 0
    assert list(kernel.mappings.values()) == [64 << 10]
    with pytest.raises(errors.LockedMemoryLimit):
        space.alloc(128 << 10)


@pytest.mark.parametrize(
    ("size", "align"),
    [(0, None), (-1, None), (-64, None), (64, 0), (64, 3), (64, -64), (1 << 30, 5)],
)
def test_nonsense_is_refused(space: Type1, kernel: Kernel, size: int, align: int | None) -> None:
    with pytest.raises(errors.ArgumentError):
        space.alloc(size, align=align)
    assert kernel.mappings == {}


def test_no_room_below_the_highest_address(space: Type1, kernel: Kernel) -> None:
    with pytest.raises(errors.NoSpace, match="0xfff"):
        space.alloc(4096, max_iova=0xFFF)
    assert kernel.mappings == {}


@pytest.mark.parametrize("size", [4096, 4 << 20])
def test_a_mapping_that_is_refused_leaves_nothing(space: Type1, kernel: Kernel, size: int) -> None:
    kernel.fail[MAP] = 14
    with pytest.raises(errors.KernelError, match="VFIO_IOMMU_MAP_DMA"):
        space.alloc(size)
    assert not space._mappings
    assert space._iovas.unused
    del kernel.fail[MAP]
    space.alloc(size).close()


def test_huge_pages_that_the_host_has_not_are_explained(space: Type1) -> None:
    with pytest.raises(errors.Unsupported, match=r"0x3000.*0x200000"):
        space.alloc(4096, huge=0x3000)


def test_an_empty_huge_page_pool_is_explained(
    space: Type1, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.KernelError, match=r"3 huge pages of 2048 KiB.*nr_hugepages"):
        # More than a pool in use for something else is likely to have, were there one.
        _with_empty_pool(monkeypatch, lambda: space.alloc(5 << 20, huge=2 << 20))
    assert kernel.mappings == {}


def _with_empty_pool(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    def empty(length: int, huge_page_size: int | None = None) -> memoryview:
        raise errors.KernelError(12, "mmap", "anonymous memory")

    monkeypatch.setattr(memory, "allocate_shared", empty)
    call()


def test_a_huge_page_buffer_is_aligned_to_it(
    space: Type1, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = memory.allocate_shared
    monkeypatch.setattr(memory, "allocate_shared", lambda length, huge_page_size=None: real(length))
    space.alloc(3 << 20)
    buffer = space.alloc(100, huge=True)
    assert buffer.iova % (2 << 20) == 0
    assert kernel.mappings[buffer.iova] == 2 << 20


def test_threads_never_get_the_same_memory(space: Type1) -> None:
    problems: list[str] = []

    def work(mark: int) -> None:
        for _ in range(300):
            buffers = [space.alloc(size) for size in (64, 4096, 4096)]
            for buffer in buffers:
                buffer.view[:] = bytes([mark]) * buffer.size
            for buffer in buffers:
                if bytes(buffer.view) != bytes([mark]) * buffer.size:
                    problems.append(f"{mark} at {buffer.iova:#x}")
                buffer.close()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


class Pooling(RuleBasedStateMachine):
    """Buffers never overlap, keep their contents, and lie in what is mapped."""

    buffers = Bundle("buffers")

    def __init__(self) -> None:
        super().__init__()
        self.undo = pytest.MonkeyPatch()
        self.kernel = stand_in(self.undo)
        self.kernel.ranges = [(0, (32 << 20) - 1), (1 << 32, (1 << 32) + (32 << 20) - 1)]
        self.space = Type1()
        self.space.open_device(_function(1))
        self.live: dict[DmaBuffer, int] = {}
        self.number = 0

    def teardown(self) -> None:
        self.space.close()
        assert self.kernel.files == {}
        self.undo.undo()

    @rule(
        target=buffers,
        size=st.integers(1, 300) | st.integers(1, 3 << 20),
        align=st.none() | st.sampled_from([1, 64, 4096, 1 << 20]),
        max_iova=st.none() | st.sampled_from([(16 << 20) - 1, (4 << 20) - 1]),
    )
    def alloc(self, size: int, align: int | None, max_iova: int | None) -> DmaBuffer | None:
        try:
            buffer = self.space.alloc(size, align=align, max_iova=max_iova)
        except errors.NoSpace:
            return None
        assert max_iova is None or buffer.iova + size - 1 <= max_iova
        assert buffer.iova % (align or 64) == 0
        assert not any(buffer.view)
        self.number = self.number % 255 + 1
        buffer.view[:] = bytes([self.number]) * size
        self.live[buffer] = self.number
        return buffer

    @rule(buffer=consumes(buffers))
    def close(self, buffer: DmaBuffer | None) -> None:
        if buffer is not None:
            assert set(buffer.view) == {self.live.pop(buffer)}
            buffer.close()

    @rule()
    def trim(self) -> None:
        self.space._pool.trim()

    @invariant()
    def apart_and_mapped(self) -> None:
        spans = sorted((b.iova, b.iova + b.size) for b in self.live)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        mapped = self.kernel.mappings
        assert all(any(m <= a and b <= m + n for m, n in mapped.items()) for a, b in spans)


def _function(group: int) -> Any:
    return SimpleNamespace(address="0000:01:00.0", iommu_group=SimpleNamespace(id=group))


TestPooling = Pooling.TestCase
TestPooling.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_memory_is_bounded_by_open_buffers_whatever_sizes(space: Type1, kernel: Kernel) -> None:
    chosen = random.Random(1)
    pool = space._pool
    for _ in range(20_000):
        align = chosen.choice([None, 64, 4096])
        space.alloc(chosen.randint(1, 1 << 20), align=align).close()
    assert sum(kernel.mappings.values()) == 2 << 20
    assert len(pool._bins) <= 3 * 96
    assert len(pool.found) <= dma._MOST_KEYS


def test_size_classes_that_nobody_uses_are_forgotten(space: Type1, kernel: Kernel) -> None:
    kept = space.alloc(100, max_iova=(1 << 30) - 1)
    kept.view[:] = b"k" * 100
    for top in range(3 * dma._MOST_BINS):
        space.alloc(64, max_iova=(1 << 31) + (top << 12) - 1).close()
    pool = space._pool
    assert len(pool._bins) <= dma._MOST_BINS
    assert bytes(kept.view) == b"k" * 100
    iova = kept.iova
    kept.close()
    assert space.alloc(100, max_iova=(1 << 30) - 1).iova == iova


def test_what_all_sizes_keep_ready_is_bounded(space: Type1, kernel: Kernel) -> None:
    sizes = [64 * number for number in range(1, 1 << 14, 37)]
    buffers = [space.alloc(size) for size in sizes]
    for buffer in buffers:
        buffer.close()
    idle = sum(len(bin.free) * bin.size for bin in space._pool._bins.values())
    largest = sum(bin.size for bin in space._pool._bins.values())
    assert idle <= dma._IDLE + largest


@given(st.integers(1, dma.LARGEST_BLOCK))
def test_size_class_is_an_eighth_larger_at_most(size: int) -> None:
    found = dma._class_size(size)
    assert found >= size
    assert found % dma.GRAIN == 0
    assert found <= dma.LARGEST_BLOCK
    assert found - size < max(size / 8, dma.GRAIN)
    assert dma._class_size(found) == found


def test_large_alignment_is_a_preference(space: Type1) -> None:
    top = (4 << 20) - 1
    with space.alloc(3 << 20, max_iova=top) as buffer:
        assert buffer.iova + buffer.size - 1 <= top
    with space.map(mmap.mmap(-1, 3 << 20), max_iova=top):
        pass
    with space.alloc(3 << 20) as buffer:
        assert buffer.iova % (2 << 20) == 0


def test_buffer_that_no_arena_can_hold_is_mapped_alone(space: Type1, kernel: Kernel) -> None:
    top = (1 << 20) - 1
    with space.alloc(600 << 10, max_iova=top) as buffer:
        assert buffer.iova + buffer.size - 1 <= top
        assert list(kernel.mappings.values()) == [600 << 10]
    assert kernel.mappings == {}


def test_zeros_are_zeros() -> None:
    """Buffers are zeroed from a constant that nobody can have written."""
    assert bytes(dma.LARGEST_BLOCK) == dma._ZEROS
