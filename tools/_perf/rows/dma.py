"""A DMA buffer of a page: from the pool, and with a mapping of its own.

On POWER memory is registered before it is mapped, by the bare calls too.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap

import pyvfio
from pyvfio._sys import memory
from pyvfio.abi import vfio
from pyvfio.iommu import ContainerSpace
from tools._perf.measure import interleave, statement
from tools._perf.row import Aim, Comparison, Row, Samples, Setting

POOL = "alloc(page).close()"
MAP = "mmap, MAP_DMA, UNMAP_DMA, munmap"
OURS_MAP = "map(memory).close()"

_ROUNDS = 100  # under emulation a mapping takes long


def _measure(setting: Setting) -> Samples:
    with pyvfio.bound(setting.device), pyvfio.open(setting.device) as device:
        space = device.dma
        size = space.page_size
        space.alloc(size).close()  # the pool is warm
        bare = _Mapper(space, size) if isinstance(space, pyvfio.Type1) else _Registrar(space, size)
        contenders = {
            POOL: statement("alloc(size).close()", alloc=space.alloc, size=size),
            MAP: statement("map_and_unmap()", map_and_unmap=bare),
            OURS_MAP: statement(
                "map(mmap(-1, size)).close()", map=space.map, mmap=mmap.mmap, size=size
            ),
        }
        return Samples(interleave(contenders, setting.progress, _ROUNDS))


class _Mapper:
    """What a driver does that has no pool, with nothing made that can be made before."""

    def __init__(self, space: pyvfio.AddressSpace, size: int) -> None:
        assert isinstance(space, ContainerSpace)
        self.fd = space.container.file.fileno()
        self.size = size
        iova = (space.iova_ranges[-1].last + 1 - size) & -space.page_size
        self.map = vfio.vfio_iommu_type1_dma_map(
            argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_map),
            flags=vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE,
            iova=iova,
            size=size,
        )
        self.unmap = vfio.vfio_iommu_type1_dma_unmap(
            argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_unmap), iova=iova, size=size
        )
        self.map_request = int(vfio.VFIO_IOMMU_MAP_DMA)
        self.unmap_request = int(vfio.VFIO_IOMMU_UNMAP_DMA)

    def __call__(self) -> None:
        page = mmap.mmap(-1, self.size)
        self._map_and_unmap(memory.address_of(page))
        page.close()

    def _map_and_unmap(self, address: int) -> None:
        self.map.vaddr = address
        fcntl.ioctl(self.fd, self.map_request, self.map)
        fcntl.ioctl(self.fd, self.unmap_request, self.unmap)


class _Registrar(_Mapper):
    """The same on POWER (SPAPR TCE v2)."""

    def __init__(self, space: pyvfio.AddressSpace, size: int) -> None:
        super().__init__(space, size)
        self.memory = vfio.vfio_iommu_spapr_register_memory(
            argsz=ctypes.sizeof(vfio.vfio_iommu_spapr_register_memory), size=size
        )

    def _map_and_unmap(self, address: int) -> None:
        self.memory.vaddr = address
        fcntl.ioctl(self.fd, int(vfio.VFIO_IOMMU_SPAPR_REGISTER_MEMORY), self.memory)
        super()._map_and_unmap(address)
        fcntl.ioctl(self.fd, int(vfio.VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY), self.memory)


ROW = Row(
    "dma",
    "DMA buffer of a page",
    "ns",
    (Comparison(POOL, MAP, Aim(1 / 20)), Comparison(OURS_MAP, MAP)),
    _measure,
    needs_device=True,
)
