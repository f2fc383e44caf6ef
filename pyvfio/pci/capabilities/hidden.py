"""Which capabilities a device opened through VFIO does not show.

From ``pci_cap_length`` and ``pci_ext_cap_length`` of drivers/vfio/pci/vfio_pci_config.c (6.12):
a capability that has no length there is unlinked from its list. docs/config-space.md tells more.
"""

from __future__ import annotations

from pyvfio.abi import pci_regs as pci
from pyvfio.pci.capabilities.base import Capability
from pyvfio.pci.capabilities.names import EXTENDED_NAMES, STANDARD_NAMES

_SHOWN = frozenset(
    {
        pci.PCI_CAP_ID_PM,
        pci.PCI_CAP_ID_AGP,
        pci.PCI_CAP_ID_VPD,
        pci.PCI_CAP_ID_MSI,
        pci.PCI_CAP_ID_PCIX,
        pci.PCI_CAP_ID_HT,
        pci.PCI_CAP_ID_VNDR,
        pci.PCI_CAP_ID_EXP,
        pci.PCI_CAP_ID_MSIX,
        pci.PCI_CAP_ID_SATA,
        pci.PCI_CAP_ID_AF,
    }
)
_EXTENDED_SHOWN = frozenset(
    {
        pci.PCI_EXT_CAP_ID_ERR,
        pci.PCI_EXT_CAP_ID_VC,
        pci.PCI_EXT_CAP_ID_DSN,
        pci.PCI_EXT_CAP_ID_PWR,
        pci.PCI_EXT_CAP_ID_MFVC,
        pci.PCI_EXT_CAP_ID_VC9,
        pci.PCI_EXT_CAP_ID_VNDR,
        pci.PCI_EXT_CAP_ID_ACS,
        pci.PCI_EXT_CAP_ID_ARI,
        pci.PCI_EXT_CAP_ID_ATS,
        pci.PCI_EXT_CAP_ID_SRIOV,
        pci.PCI_EXT_CAP_ID_MCAST,
        pci.PCI_EXT_CAP_ID_PRI,
        pci.PCI_EXT_CAP_ID_REBAR,
        pci.PCI_EXT_CAP_ID_DPA,
        pci.PCI_EXT_CAP_ID_TPH,
        pci.PCI_EXT_CAP_ID_LTR,
    }
)

#: ``PCI_CAP_ID_*`` that are absent through VFIO, of those that have a name.
HIDDEN_BY_VFIO = frozenset(STANDARD_NAMES) - _SHOWN

#: ``PCI_EXT_CAP_ID_*`` that are absent through VFIO. DVSEC is in Linux 6.1, but not in 6.12.
EXTENDED_HIDDEN_BY_VFIO = frozenset(EXTENDED_NAMES) - _EXTENDED_SHOWN


def hidden_by_vfio(capability: Capability) -> bool:
    """Whether VFIO may leave out this capability, seen in sysfs.

    Some kernels show more (DVSEC), none that pyvfio knows shows less.
    """
    return capability.id not in (_EXTENDED_SHOWN if capability.extended else _SHOWN)
