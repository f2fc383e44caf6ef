"""What the larger layouts need of host and device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hwtests.bench import setting
from hwtests.spaces import ENTRY_LIMIT
from pyvfio import errors
from pyvfio._sys import memory
from pyvfio.device import Region
from pyvfio.iommu import AddressSpace

GIB = 1 << 30
TIB = 1 << 40
HUGE = 2 << 20
HIGH = 4 * GIB

_POOLS = Path("/sys/kernel/mm/hugepages")


@contextmanager
def mappings_allowed(count: int) -> Iterator[None]:
    """Let each container that is made meanwhile hold this many mappings."""
    if int(ENTRY_LIMIT.read_text()) >= count:
        yield
        return
    with setting(ENTRY_LIMIT, count):
        yield


@contextmanager
def huge_pages(size: int, page: int) -> Iterator[memoryview]:
    """Memory of huge pages, for which the host's pool is made larger; skips where it cannot be."""
    pool = _POOLS / f"hugepages-{page >> 10}kB/nr_hugepages"
    need = f"{size >> 20} MiB in huge pages of {page >> 10} KiB"
    if not pool.exists():
        pytest.skip(f"needs {need}, of which this host has none")
    with setting(pool, int(pool.read_text()) + size // page):
        view = None
        with suppress(errors.KernelError):
            view = memory.allocate_shared(size, page)
        if view is None:
            pytest.skip(f"needs {need}: give the host more memory (the bench: --qemu-args '-m 8G')")
        yield view
        del view


def free_huge_pages(page: int) -> int:
    """How many huge pages of this size the host's pool has free."""
    free = _POOLS / f"hugepages-{page >> 10}kB/free_hugepages"
    return int(free.read_text()) if free.exists() else 0


def check_reach(space: AddressSpace, end: int) -> None:
    """Skip where the IOMMU has fewer address bits."""
    last = space.iova_ranges[-1].last
    if last < end - 1:
        pytest.skip(
            f"needs IOVAs up to {end - 1:#x}, and this IOMMU's end at {last:#x} (the bench: "
            "--qemu-args '-global intel-iommu.aw-bits=48')"
        )


def whole(bar: Region) -> bool:
    """Whether a BAR can be mapped whole."""
    return [(area.offset, area.size) for area in bar.areas] == [(0, bar.size)]
