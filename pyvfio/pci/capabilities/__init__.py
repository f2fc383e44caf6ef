"""The capabilities of a PCI function: typed where it matters, listed where not."""

from __future__ import annotations

from pyvfio.pci.capabilities.aer import AerCapability, Correctable, Uncorrectable
from pyvfio.pci.capabilities.base import (
    Capability,
    ExtendedCapabilities,
    ExtendedCapability,
    StandardCapabilities,
    StandardCapability,
)
from pyvfio.pci.capabilities.express import Aspm, LinkSpeed, PcieCapability, PortType
from pyvfio.pci.capabilities.extended import (
    Acs,
    AcsCapability,
    AriCapability,
    AtsCapability,
    DsnCapability,
    DvsecCapability,
    PasidCapability,
    PriCapability,
    RebarCapability,
    ResizableBar,
    VfRebarCapability,
    VsecCapability,
)
from pyvfio.pci.capabilities.hidden import (
    EXTENDED_HIDDEN_BY_VFIO,
    HIDDEN_BY_VFIO,
    hidden_by_vfio,
)
from pyvfio.pci.capabilities.sriov import SriovCapability
from pyvfio.pci.capabilities.standard import (
    AfCapability,
    MsiCapability,
    MsixCapability,
    PmCapability,
    PowerState,
    SubsystemCapability,
    VendorCapability,
)
from pyvfio.pci.capabilities.vpd import Vpd, VpdCapability

__all__ = [
    "EXTENDED_HIDDEN_BY_VFIO",
    "HIDDEN_BY_VFIO",
    "Acs",
    "AcsCapability",
    "AerCapability",
    "AfCapability",
    "AriCapability",
    "Aspm",
    "AtsCapability",
    "Capability",
    "Correctable",
    "DsnCapability",
    "DvsecCapability",
    "ExtendedCapabilities",
    "ExtendedCapability",
    "LinkSpeed",
    "MsiCapability",
    "MsixCapability",
    "PasidCapability",
    "PcieCapability",
    "PmCapability",
    "PortType",
    "PowerState",
    "PriCapability",
    "RebarCapability",
    "ResizableBar",
    "SriovCapability",
    "StandardCapabilities",
    "StandardCapability",
    "SubsystemCapability",
    "Uncorrectable",
    "VendorCapability",
    "VfRebarCapability",
    "Vpd",
    "VpdCapability",
    "VsecCapability",
    "hidden_by_vfio",
]
