"""An opened device: regions, interrupts, reset and power."""

from __future__ import annotations

from pyvfio._sys import Watch
from pyvfio.device.device import Bars, Device, open
from pyvfio.device.irq import Claim, Irq, Vectors
from pyvfio.device.msix import GuestMsixTable, Msix, MsixEntry, MsixTable, PhysicalMsixTable
from pyvfio.device.region import Area, Region
from pyvfio.device.vector import Vector

__all__ = [
    "Area",
    "Bars",
    "Claim",
    "Device",
    "GuestMsixTable",
    "Irq",
    "Msix",
    "MsixEntry",
    "MsixTable",
    "PhysicalMsixTable",
    "Region",
    "Vector",
    "Vectors",
    "Watch",
    "open",
]
