"""Drive PCI devices from Python through Linux VFIO.

    import pyvfio

    with pyvfio.open("0000:01:00.0") as device:
        print(device.config.vendor_id, device.bars[0].read32(0))

Rooms, from the ground up: :mod:`pyvfio.abi` (the kernel's structures and numbers),
:mod:`pyvfio.pci` (the bus), :mod:`pyvfio.iommu` (address spaces and DMA), :mod:`pyvfio.device` (an
opened device), :mod:`pyvfio.eeh` (PEs of POWER), :mod:`pyvfio.kvm` (VMs and their interrupts),
:mod:`pyvfio.irqroute` (a device's interrupts forwarded to a VM), :mod:`pyvfio.errors` (everything
that is raised).
"""

from __future__ import annotations

import sys

if sys.byteorder != "little":
    raise ImportError("pyvfio needs a little-endian host")

# typing takes milliseconds to import, in which Ctrl-C would find the command without its handler.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvfio import device as device
    from pyvfio import drivers as drivers
    from pyvfio import eeh as eeh
    from pyvfio import errors as errors
    from pyvfio import iommu as iommu
    from pyvfio import irqroute as irqroute
    from pyvfio import kvm as kvm
    from pyvfio import pci as pci
    from pyvfio.device import Device, open
    from pyvfio.errors import Error
    from pyvfio.iommu import AddressSpace, DmaBuffer, Type1, fence, open_space
    from pyvfio.pci import Address, Function, bound

__all__ = [
    "Address",
    "AddressSpace",
    "Device",
    "DmaBuffer",
    "Error",
    "Function",
    "Type1",
    "bound",
    "fence",
    "open",
    "open_space",
]

_ROOMS = ("device", "drivers", "eeh", "errors", "iommu", "irqroute", "kvm", "pci")
_HOME = {
    "Address": "pci",
    "AddressSpace": "iommu",
    "Device": "device",
    "DmaBuffer": "iommu",
    "Error": "errors",
    "Function": "pci",
    "Type1": "iommu",
    "bound": "pci",
    "fence": "iommu",
    "open": "device",
    "open_space": "iommu",
}


def __getattr__(name: str) -> object:
    """Import what is used, when it is used: looking at the bus needs no device code."""
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f"pyvfio.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pyvfio' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"pyvfio.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
