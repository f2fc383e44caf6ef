"""A DMA buffer of 4 KiB: from the pool, and with a mapping of its own."""

from __future__ import annotations

import ctypes
import fcntl
import mmap

import pyvfio
from pyvfio._sys import memory
from pyvfio.abi import vfio
from tools._perf.measure import interleave, statement
from tools._perf.row import Aim, Comparison, Row, Samples, Setting

SIZE = 4096

POOL = "alloc(4096).close()"
MAP = "mmap, MAP_DMA, UNMAP_DMA, munmap"
OURS_MAP = "map(memory).close()"

_ROUNDS = 100  # under emulation a mapping takes long


def _measure(setting: Setting) -> Samples:
    with pyvfio.bound(setting.device), pyvfio.open(setting.device) as device:
        space = device.dma
        assert isinstance(space, pyvfio.Type1)
        space.alloc(SIZE).close()  # the pool is warm
        contenders = {
            POOL: statement("alloc(size).close()", alloc=space.alloc, size=SIZE),
            MAP: statement("map_and_unmap()", map_and_unmap=_Mapper(space)),
            OURS_MAP: statement(
                "map(mmap(-1, size)).close()", map=space.map, mmap=mmap.mmap, size=SIZE
            ),
        }
        return Samples(interleave(contenders, setting.progress, _ROUNDS))


class _Mapper:
    """What a driver does that has no pool, with nothing made that can be made before."""

    def __init__(self, space: pyvfio.Type1) -> None:
        self.fd = space.container.file.fileno()
        iova = (space.iova_ranges[-1].last + 1 - SIZE) & -space.page_size
        self.map = vfio.vfio_iommu_type1_dma_map(
            argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_map),
            flags=vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE,
            iova=iova,
            size=SIZE,
        )
        self.unmap = vfio.vfio_iommu_type1_dma_unmap(
            argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_unmap), iova=iova, size=SIZE
        )
        self.map_request = int(vfio.VFIO_IOMMU_MAP_DMA)
        self.unmap_request = int(vfio.VFIO_IOMMU_UNMAP_DMA)

    def __call__(self) -> None:
        page = mmap.mmap(-1, SIZE)
        self.map.vaddr = memory.address_of(page)
        fcntl.ioctl(self.fd, self.map_request, self.map)
        fcntl.ioctl(self.fd, self.unmap_request, self.unmap)
        page.close()


ROW = Row(
    "dma",
    "DMA buffer of 4 KiB",
    "ns",
    (Comparison(POOL, MAP, Aim(1 / 20)), Comparison(OURS_MAP, MAP)),
    _measure,
    needs_device=True,
)
