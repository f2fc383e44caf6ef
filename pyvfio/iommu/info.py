"""What VFIO's INFO requests answer: a structure, and a chain of capabilities behind it."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys.memory import PAGE_SIZE
from pyvfio.abi import vfio
from pyvfio.iommu.iova import IovaRange

_DEFAULT_WINDOW_PAGE = 4096  # by the kernel's own choice, whatever its pages are
_HEADER = ctypes.sizeof(vfio.vfio_info_cap_header)


class InfoCapability(NamedTuple):
    """One capability of an INFO answer.

    Attributes:
        id: what it is; its meaning depends on the request.
        version: of its layout.
        data: its bytes and all behind them, header included.
    """

    id: int
    version: int
    data: bytes


class SpaceInfo(NamedTuple):
    """What the kernel says of an address space.

    Attributes:
        ranges: the IOVAs that can be mapped.
        page_sizes: bit n is set where the IOMMU has pages of 2**n bytes.
        mappings_available: how many more mappings the kernel allows; None if it does not say.
    """

    ranges: tuple[IovaRange, ...]
    page_sizes: int
    mappings_available: int | None


class DmaWindow(NamedTuple):
    """A range of IOVAs with a translation table of its own (SPAPR TCE).

    Attributes:
        start: the first IOVA.
        size: bytes.
        page_size: bytes of a page there.
    """

    start: int
    size: int
    page_size: int

    @property
    def range(self) -> IovaRange:
        """Its IOVAs."""
        return IovaRange(self.start, self.start + self.size - 1)

    def __str__(self) -> str:
        return f"{self.range} in pages of {self.page_size:#x}"


class SpaprInfo(NamedTuple):
    """What the kernel says of a SPAPR TCE container.

    Attributes:
        default: the window below 4 GiB, or None if the host has none.
        page_sizes: of further windows: bit n is set where pages of 2**n bytes can be had.
        windows: how many windows there can be, the default one included.
        levels: how many levels a table can have.
    """

    default: DmaWindow | None
    page_sizes: int
    windows: int
    levels: int


def capabilities(answer: bytes, first: int, fixed_size: int) -> Iterator[InfoCapability]:
    """Walk the capability chain of an INFO answer.

    Args:
        answer: all that the kernel wrote.
        first: the chain's first offset (`cap_offset`); 0 when there is none.
        fixed_size: bytes of the structure in front, where no capability can be.

    Raises:
        KernelError: the chain leaves the answer or runs in a circle (EPROTO).
    """
    seen = set()
    offset = first
    while offset:
        if offset < fixed_size or offset + _HEADER > len(answer):
            raise malformed(f"a capability at {offset:#x} of {len(answer):#x} bytes")
        if offset in seen:
            raise malformed(f"the chain runs in a circle through {offset:#x}")
        seen.add(offset)
        header = vfio.vfio_info_cap_header.from_buffer_copy(answer, offset)
        yield InfoCapability(header.id, header.version, answer[offset:])
        offset = header.next


def parse_type1_info(answer: bytes) -> SpaceInfo:
    """Read the answer of ``VFIO_IOMMU_GET_INFO`` on a type1 container.

    Raises:
        KernelError: it contradicts itself (EPROTO).
    """
    fixed = vfio.vfio_iommu_type1_info.cap_offset.offset + 4
    if len(answer) < fixed:
        raise malformed(f"only {len(answer)} bytes")
    info = vfio.vfio_iommu_type1_info.from_buffer_copy(
        answer.ljust(ctypes.sizeof(vfio.vfio_iommu_type1_info), b"\0")
    )
    # Kernels before 5.4 do not tell: 39 bits is what the smallest of today's IOMMUs can do.
    ranges: tuple[IovaRange, ...] = (IovaRange(0, (1 << 39) - 1),)
    page_sizes = info.iova_pgsizes if info.flags & vfio.VFIO_IOMMU_INFO_PGSIZES else 0
    available = None
    if info.flags & vfio.VFIO_IOMMU_INFO_CAPS:
        for capability in capabilities(answer, info.cap_offset, fixed):
            if capability.id == vfio.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                ranges = _ranges(capability.data)
            elif capability.id == vfio.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
                kind = vfio.vfio_iommu_type1_info_dma_avail
                if len(capability.data) < ctypes.sizeof(kind):
                    raise malformed("the number of mappings available is cut off")
                available = kind.from_buffer_copy(capability.data).avail
    return SpaceInfo(_without_last_page(ranges), page_sizes, available)


def parse_spapr_info(answer: bytes) -> SpaprInfo:
    """Read the answer of ``VFIO_IOMMU_SPAPR_TCE_GET_INFO``.

    Raises:
        KernelError: it contradicts itself (EPROTO).
    """
    kind = vfio.vfio_iommu_spapr_tce_info
    if len(answer) < kind.ddw.offset:
        raise malformed(f"only {len(answer)} bytes")
    info = kind.from_buffer_copy(answer.ljust(ctypes.sizeof(kind), b"\0"))
    start, size = info.dma32_window_start, info.dma32_window_size
    if start + size > 1 << 32:
        raise malformed(f"a window below 4 GiB of {size:#x} bytes from {start:#x}")
    default = DmaWindow(start, size, _DEFAULT_WINDOW_PAGE) if size else None
    if not info.flags & vfio.VFIO_IOMMU_SPAPR_INFO_DDW:
        return SpaprInfo(default, 0, 1, 1)
    ddw = info.ddw
    return SpaprInfo(default, ddw.pgsizes, ddw.max_dynamic_windows_supported, ddw.levels)


def malformed(what: str) -> errors.KernelError:
    """The error for an INFO answer that makes no sense."""
    return errors.KernelError(
        errno.EPROTO, "INFO request", "vfio", f"{what}: the kernel's answer makes no sense"
    )


def _without_last_page(ranges: tuple[IovaRange, ...]) -> tuple[IovaRange, ...]:
    """Leave out the last page of the 64-bit address space, where an IOMMU has it (AMD-Vi).

    type1 computes the end of a mapping there as 0, so that the kernel accepts
    ``VFIO_IOMMU_MAP_DMA`` but then finds no mapping to undo: ``VFIO_IOMMU_UNMAP_DMA`` unmaps 0
    bytes, and the pages stay pinned even after the container is closed (``vfio_find_dma()`` and
    ``vfio_unmap_unpin()`` in drivers/vfio/vfio_iommu_type1.c, Linux 6.12).
    """
    last = (1 << 64) - PAGE_SIZE - 1
    return tuple(IovaRange(start, min(end, last)) for start, end in ranges if start <= last)


def _ranges(data: bytes) -> tuple[IovaRange, ...]:
    kind = vfio.vfio_iommu_type1_info_cap_iova_range
    fixed, each = ctypes.sizeof(kind), ctypes.sizeof(vfio.vfio_iova_range)
    count = kind.from_buffer_copy(data).nr_iovas if len(data) >= fixed else 0
    if len(data) < fixed + count * each:
        raise malformed(f"{count} IOVA ranges do not fit")
    ranges = []
    for index in range(count):
        found = vfio.vfio_iova_range.from_buffer_copy(data, fixed + index * each)
        if found.start > found.end:
            raise malformed(f"an IOVA range from {found.start:#x} to {found.end:#x}")
        ranges.append(IovaRange(found.start, found.end))
    return tuple(sorted(ranges))
