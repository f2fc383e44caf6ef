"""What the kernel says of a device: its regions and IRQ indexes (linux/vfio.h)."""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.abi import vfio
from pyvfio.abi.ioctl import Request
from pyvfio.device.region import Area
from pyvfio.iommu.info import capabilities

# More than any kernel says of one region (a sparse map of thousands of areas); a larger answer is
# a fault, not a reason to allocate what it asks for.
_LARGEST = 1 << 16

# Of these the kernel always knows something, if only that there is none (count or size 0). EINVAL
# is its answer for those that came later, or that it has for some devices alone (VGA, ERR).
_REGIONS = range(vfio.VFIO_PCI_BAR0_REGION_INDEX, vfio.VFIO_PCI_CONFIG_REGION_INDEX + 1)
_IRQS = range(vfio.VFIO_PCI_INTX_IRQ_INDEX, vfio.VFIO_PCI_MSIX_IRQ_INDEX + 1)


@dataclass(frozen=True)
class RegionInfo:
    """One region, as ``VFIO_DEVICE_GET_REGION_INFO`` describes it.

    Attributes:
        index: the region's index.
        flags: ``VFIO_REGION_INFO_FLAG_*``.
        size: bytes; 0 where the device has no such region.
        offset: in the device's file, bytes.
        areas: the parts that can be mapped.
        kind: (type, subtype) of a device-specific region, else None.
    """

    index: int
    flags: int
    size: int
    offset: int
    areas: tuple[Area, ...]
    kind: tuple[int, int] | None


def device_info(file: File) -> vfio.vfio_device_info:
    """``VFIO_DEVICE_GET_INFO``.

    Raises:
        KernelError: the kernel refused.
    """
    info = vfio.vfio_device_info(argsz=ctypes.sizeof(vfio.vfio_device_info))
    _ask(file, vfio.VFIO_DEVICE_GET_INFO, info, required=True)
    return info


def irq_info(file: File, index: int) -> vfio.vfio_irq_info | None:
    """``VFIO_DEVICE_GET_IRQ_INFO``, or None if the device has no such index.

    Raises:
        KernelError: the kernel refused otherwise.
    """
    info = vfio.vfio_irq_info(argsz=ctypes.sizeof(vfio.vfio_irq_info), index=index)
    known = _ask(file, vfio.VFIO_DEVICE_GET_IRQ_INFO, info, required=index in _IRQS)
    return info if known else None


def region_info(file: File, index: int) -> RegionInfo | None:
    """``VFIO_DEVICE_GET_REGION_INFO`` with its capabilities, or None if there is no such region.

    Raises:
        KernelError: the kernel refused otherwise, or its answer makes no sense (EPROTO).
    """
    kind = vfio.vfio_region_info
    argument = bytearray(ctypes.sizeof(kind))
    info = kind.from_buffer(argument)
    info.argsz, info.index = len(argument), index
    request = vfio.VFIO_DEVICE_GET_REGION_INFO
    if not _ask(file, request, argument, required=index in _REGIONS):
        return None
    if info.argsz > _LARGEST:
        raise _nonsense(file, f"the kernel says it needs {info.argsz:#x} bytes")
    if len(argument) < info.argsz:
        # The kernel has capabilities to tell, and says how much room they need.
        argument = bytearray(info.argsz)
        info = kind.from_buffer(argument)
        info.argsz, info.index = len(argument), index
        _ask(file, request, argument, required=True)
    areas: list[Area] | None = None
    region_kind = None
    if info.flags & vfio.VFIO_REGION_INFO_FLAG_CAPS:
        for capability in capabilities(bytes(argument), info.cap_offset, ctypes.sizeof(kind)):
            if capability.id == vfio.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
                areas = _sparse_areas(file, capability.data, info.size)
            elif capability.id == vfio.VFIO_REGION_INFO_CAP_TYPE:
                if len(capability.data) < ctypes.sizeof(vfio.vfio_region_info_cap_type):
                    raise _nonsense(file, "the kernel's type of the region is cut off")
                cap = vfio.vfio_region_info_cap_type.from_buffer_copy(capability.data)
                region_kind = (cap.type, cap.subtype)
    if not info.flags & vfio.VFIO_REGION_INFO_FLAG_MMAP or not info.size:
        areas = []
    elif areas is None:
        areas = [Area(0, info.size)]
    return RegionInfo(index, info.flags, info.size, info.offset, tuple(areas), region_kind)


def _ask(file: File, request: Request, argument: object, *, required: bool) -> bool:
    """Make the call; False where the kernel knows no such index, unless it is required to."""
    try:
        file.ioctl(request, argument)
    except errors.KernelError as error:
        if error.errno == errno.EINVAL and not required:
            return False
        raise
    return True


def _sparse_areas(file: File, data: bytes, size: int) -> list[Area]:
    header = ctypes.sizeof(vfio.vfio_region_info_cap_sparse_mmap)
    each = ctypes.sizeof(vfio.vfio_region_sparse_mmap_area)
    areas = []
    if len(data) >= header:
        count = vfio.vfio_region_info_cap_sparse_mmap.from_buffer_copy(data).nr_areas
        if header + count * each <= len(data):
            for number in range(count):
                area = vfio.vfio_region_sparse_mmap_area.from_buffer_copy(
                    data, header + number * each
                )
                if area.offset + area.size > size:
                    break
                if area.size:
                    areas.append(Area(area.offset, area.size))
            else:
                return areas
    raise _nonsense(file, "the kernel's list of mappable areas does not fit the region")


def _nonsense(file: File, what: str) -> errors.KernelError:
    name = vfio.VFIO_DEVICE_GET_REGION_INFO.name
    return errors.KernelError(errno.EPROTO, name, file.path, what)
