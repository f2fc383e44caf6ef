"""A stand-in for a POWER host's VFIO: containers with windows and registered memory."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

from pyvfio.abi import vfio

from .standin import Kernel, _Container

GIB = 1 << 30
HIGH = 1 << 59


@dataclass
class _Tables:
    enabled: bool = False
    windows: dict[int, tuple[int, int]] = field(default_factory=dict)
    registered: set[tuple[int, int]] = field(default_factory=set)


class PowerKernel(Kernel):
    """What it does can be changed.

    Attributes:
        default: bytes of the window below 4 GiB.
        table_levels: fewer levels than this find no memory for a table.
        dynamic: whether groups have dynamic windows.
        pinned: what registering returns.
        keep_windows: where windows begin that are not removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.extensions = {vfio.VFIO_SPAPR_TCE_IOMMU, vfio.VFIO_SPAPR_TCE_v2_IOMMU}
        self.default = 2 * GIB
        self.page_sizes = 1 << 12 | 1 << 16 | 1 << 24
        self.windows_possible = 2
        self.table_levels = 1
        self.dynamic = True
        self.pinned = 0
        self.keep_windows: set[int] = set()
        self.tables: dict[int, _Tables] = {}
        self.ranges = [(0, (1 << 64) - 1)]  # windows hold no group back

    def of(self, container: _Container) -> _Tables:
        return self.tables.setdefault(id(container), _Tables())

    @property
    def only(self) -> _Tables:
        (tables,) = self.tables.values()
        return tables

    def vfio_set_iommu(self, container: _Container, arg: int) -> None:
        if arg == vfio.VFIO_SPAPR_TCE_v2_IOMMU and not self.dynamic:
            raise OSError(errno.EINVAL, "no dynamic windows")
        super().vfio_set_iommu(container, arg)
        self.tables[id(container)] = _Tables()

    def vfio_iommu_spapr_tce_get_info(self, container: _Container, arg: bytearray) -> None:
        self._configured(container)
        info = vfio.vfio_iommu_spapr_tce_info.from_buffer(arg)
        info.dma32_window_start, info.dma32_window_size = 0, self.default
        if container.iommu == vfio.VFIO_SPAPR_TCE_v2_IOMMU:
            info.flags = vfio.VFIO_IOMMU_SPAPR_INFO_DDW
            info.ddw.pgsizes, info.ddw.levels = self.page_sizes, 5
            info.ddw.max_dynamic_windows_supported = self.windows_possible

    def vfio_iommu_enable(self, container: _Container, arg: object) -> None:
        self.of(container).enabled = True

    def vfio_iommu_disable(self, container: _Container, arg: object) -> None:
        self.of(container).enabled = False

    def vfio_iommu_spapr_register_memory(self, container: _Container, arg: Any) -> int:
        tables = self.of(container)
        if self.pinned:
            return self.pinned
        for start, size in tables.registered:
            if start < arg.vaddr + arg.size and arg.vaddr < start + size:
                raise OSError(errno.EINVAL, "overlap")
        tables.registered.add((arg.vaddr, arg.size))
        tables.enabled = True
        return 0

    def vfio_iommu_spapr_unregister_memory(self, container: _Container, arg: Any) -> None:
        try:
            self.of(container).registered.remove((arg.vaddr, arg.size))
        except KeyError:
            raise OSError(errno.ENOENT, "not registered") from None

    def vfio_iommu_spapr_tce_create(self, container: _Container, arg: Any) -> None:
        windows = self.of(container).windows
        windows.setdefault(0, (0, self.default))
        if len(windows) == self.windows_possible:
            raise OSError(errno.ENOSPC, "no window left")
        assert arg.window_size & (arg.window_size - 1) == 0
        assert self.page_sizes >> arg.page_shift & 1
        if arg.levels < self.table_levels:
            raise OSError(errno.ENOMEM, "no memory for the table")
        arg.start_addr = HIGH
        windows[HIGH] = (HIGH, arg.window_size)

    def vfio_iommu_spapr_tce_remove(self, container: _Container, arg: Any) -> None:
        windows = self.of(container).windows
        if arg.start_addr in self.keep_windows:
            raise OSError(errno.EBUSY, "not removed")
        if windows.pop(arg.start_addr, None) is None and arg.start_addr:
            raise OSError(errno.EINVAL, "no such window")

    def vfio_iommu_map_dma(self, container: _Container, arg: Any) -> None:
        tables = self.of(container)
        if not tables.enabled:
            raise OSError(errno.EPERM, "not enabled")
        tables.windows.setdefault(0, (0, self.default))
        if not any(
            start <= arg.iova and arg.iova + arg.size <= start + size
            for start, size in tables.windows.values()
        ):
            raise OSError(errno.ENXIO, "no window")
        covered = sum(
            max(0, min(arg.vaddr + arg.size, start + size) - max(arg.vaddr, start))
            for start, size in tables.registered
        )
        if container.iommu == vfio.VFIO_SPAPR_TCE_v2_IOMMU and covered != arg.size:
            raise OSError(errno.EINVAL, "not registered")
        container.mappings[arg.iova] = arg.size

    def vfio_iommu_unmap_dma(self, container: _Container, arg: Any) -> None:
        container.mappings.pop(arg.iova, None)
