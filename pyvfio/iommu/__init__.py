"""Where devices may do DMA: address spaces, IOVA allocation, DMA buffers.

:class:`Type1` is the address space of most hosts. Through :class:`AddressSpace`, what uses it does
not care which one it has::

    with Type1() as space:
        file = space.open_device(function)
        buffer = space.alloc(4096)          # buffer.iova for the device, buffer.view for you
        mapping = space.map(array)          # memory of your own

:func:`fence` stands between writing a buffer and telling the device.
"""

from __future__ import annotations

from pyvfio.iommu.barrier import fence
from pyvfio.iommu.container import Container
from pyvfio.iommu.container_space import ContainerSpace
from pyvfio.iommu.dma import DmaBuffer, Mapping
from pyvfio.iommu.group import Group
from pyvfio.iommu.iova import IovaAllocator, IovaRange
from pyvfio.iommu.space import AddressSpace
from pyvfio.iommu.type1 import Type1

__all__ = [
    "AddressSpace",
    "Container",
    "ContainerSpace",
    "DmaBuffer",
    "Group",
    "IovaAllocator",
    "IovaRange",
    "Mapping",
    "Type1",
    "fence",
]
