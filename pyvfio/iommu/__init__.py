"""Where devices may do DMA: address spaces, IOVA allocation, DMA buffers.

:class:`Type1` is the address space of most hosts, :class:`SpaprTceV2` that of POWER. Through
:class:`AddressSpace`, what uses it does not care which one it has::

    with open_space() as space:
        file = space.open_device(function)
        buffer = space.alloc(4096)          # buffer.iova for the device, buffer.view for you
        mapping = space.map(array)          # memory of your own

:func:`fence` stands between writing a buffer and telling the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvfio.iommu.barrier import fence
from pyvfio.iommu.choice import open_space
from pyvfio.iommu.container import Container
from pyvfio.iommu.container_space import ContainerSpace
from pyvfio.iommu.dma import DmaBuffer, Mapping
from pyvfio.iommu.group import Group
from pyvfio.iommu.info import DmaWindow
from pyvfio.iommu.iova import IovaAllocator, IovaRange
from pyvfio.iommu.space import AddressSpace
from pyvfio.iommu.type1 import Type1

if TYPE_CHECKING:
    from pyvfio.iommu.spapr import SpaprTce, SpaprTceV1, SpaprTceV2

__all__ = [
    "AddressSpace",
    "Container",
    "ContainerSpace",
    "DmaBuffer",
    "DmaWindow",
    "Group",
    "IovaAllocator",
    "IovaRange",
    "Mapping",
    "SpaprTce",
    "SpaprTceV1",
    "SpaprTceV2",
    "Type1",
    "fence",
    "open_space",
]

_OF_POWER = ("SpaprTce", "SpaprTceV1", "SpaprTceV2")


def __getattr__(name: str) -> object:
    """Import POWER's when it is used: no other host's start waits for it."""
    if name not in _OF_POWER:
        raise AttributeError(f"module 'pyvfio.iommu' has no attribute {name!r}")
    from pyvfio.iommu import spapr

    value = globals()[name] = getattr(spapr, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
