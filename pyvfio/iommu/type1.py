"""The type1 IOMMU: the address space of x86, arm64 and most other hosts."""

from __future__ import annotations

import ctypes
import errno

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.iommu.container import Container
from pyvfio.iommu.container_space import ContainerSpace
from pyvfio.iommu.dma import Mapping
from pyvfio.iommu.info import SpaceInfo, malformed, parse_type1_info
from pyvfio.pci import paths

_LARGEST_INFO = 1 << 20
_ENTRY_LIMIT = "module/vfio_iommu_type1/parameters/dma_entry_limit"


class Type1(ContainerSpace):
    """A type1 address space.

    Attributes:
        version: 2 for type1v2, 1 for type1, whose unmapping may split a mapping.
    """

    def __init__(self, container: Container | None = None, *, version: int = 2) -> None:
        """Make one.

        Args:
            container: an open container to use, closed with the space; None opens one.
            version: 2, or 1 for the old interface. Where the kernel has only the old one, that is
                taken.

        Raises:
            NoVfio, AccessDenied, OpenFilesLimit, KernelError: no container can be opened.
            Unsupported: the kernel has no type1 IOMMU.
        """
        if version not in _KINDS:
            raise errors.ArgumentError(f"type1 has versions 1 and 2, not {version!r}")
        with deferred_signals() as section:
            super().__init__(container)
            section.undo(self.container.close)
            self.version = next(
                (v for v in (version, 1) if self.container.check_extension(_KINDS[v])), 0
            )
            if not self.version:
                raise errors.Unsupported(
                    "the kernel has no type1 IOMMU: load it with: modprobe vfio_iommu_type1"
                )

    def _set_iommu(self) -> None:
        self.container.set_iommu(_KINDS[self.version])

    def _ask(self) -> SpaceInfo | None:
        kind = vfio.vfio_iommu_type1_info
        size = ctypes.sizeof(kind)
        while True:
            answer = bytearray(size)
            info = kind.from_buffer(answer)
            info.argsz = size
            try:
                self.container.file.ioctl(vfio.VFIO_IOMMU_GET_INFO, answer)
            except errors.KernelError as error:
                if error.errno == errno.EINVAL:
                    return None
                raise
            if info.argsz <= size:
                return parse_type1_info(bytes(answer))
            # The kernel has more to tell, and says how much room it needs.
            size = info.argsz
            if size > _LARGEST_INFO:
                raise malformed(f"{size:#x} bytes of information")

    def _map(self, address: int, iova: int, size: int, readable: bool, writable: bool) -> None:
        argument = vfio.vfio_iommu_type1_dma_map(
            argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_map),
            flags=vfio.VFIO_DMA_MAP_FLAG_READ * readable | vfio.VFIO_DMA_MAP_FLAG_WRITE * writable,
            vaddr=address,
            iova=iova,
            size=size,
        )
        try:
            self.container.file.ioctl(vfio.VFIO_IOMMU_MAP_DMA, argument)
        except errors.KernelError as error:
            raise _explain(error, iova, size) from None

    def _unmap(self, iova: int, size: int) -> int:
        argument = vfio.vfio_iommu_type1_dma_unmap(
            argsz=ctypes.sizeof(vfio.vfio_iommu_type1_dma_unmap), iova=iova, size=size
        )
        self.container.file.ioctl(vfio.VFIO_IOMMU_UNMAP_DMA, argument)
        return int(argument.size)

    def _unmapped_wrong(self, mapping: Mapping, size: int) -> errors.KernelError:
        return errors.KernelError(
            errno.EIO,
            vfio.VFIO_IOMMU_UNMAP_DMA.name,
            self.container.file.path,
            f"the kernel unmapped {size:#x} of the {mapping.size:#x} bytes at IOVA "
            f"{mapping.iova:#x}; devices may still reach the rest until the address space is "
            "closed",
        )


_KINDS = {1: vfio.VFIO_TYPE1_IOMMU, 2: vfio.VFIO_TYPE1v2_IOMMU}


def _explain(error: errors.KernelError, iova: int, size: int) -> errors.KernelError:
    """What it means that ``VFIO_IOMMU_MAP_DMA`` was refused."""
    if error.errno == errno.ENOMEM:
        from pyvfio.iommu import locked  # only a refusal needs it

        return locked.refused(error, size)
    if error.errno == errno.ENOSPC:
        switch = paths.SYSFS / _ENTRY_LIMIT
        try:
            limit = sysfs.read(switch)
        except errors.KernelError:
            limit = "its maximum of"
        return errors.MappingLimit.from_call(
            error,
            f"the container holds {limit} mappings, and the kernel allows no more: map fewer, "
            "larger pieces (alloc() serves many buffers from one mapping), or raise the limit for "
            f"containers made from now on: echo N > {switch}",
        )
    meaning = {
        errno.EEXIST: "something is mapped there already, not through this address space",
        errno.EINVAL: "the IOMMU cannot reach it",
        errno.EFAULT: "the memory is not this process's, or is read-only, or is a BAR of a device "
        "whose memory decoding is off (device.memory_decoding = True switches it on)",
    }.get(error.errno or 0, "")
    where = f"{size:#x} bytes at IOVA {iova:#x}"
    return errors.KernelError.from_call(error, f"{where}: {meaning}" if meaning else where)
