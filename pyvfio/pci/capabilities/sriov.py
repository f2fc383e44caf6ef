"""Single Root I/O Virtualization (PCIe 5.0, 9.3.3)."""

from __future__ import annotations

from pyvfio.abi import pci_regs as pci
from pyvfio.pci.bars import Bar, read_bars
from pyvfio.pci.capabilities.base import ExtendedCapability
from pyvfio.pci.registers import derived, u16, u32


def _page_sizes(bits: int) -> tuple[int, ...]:
    """Bytes: bit n stands for 4 KiB << n."""
    return tuple(4096 << bit for bit in range(32) if bits >> bit & 1)


class SriovCapability(
    ExtendedCapability, id=pci.PCI_EXT_CAP_ID_SRIOV, length=pci.PCI_EXT_CAP_SRIOV_SIZEOF
):
    """A physical function's virtual functions."""

    total_vfs = u16(pci.PCI_SRIOV_TOTAL_VF)
    initial_vfs = u16(pci.PCI_SRIOV_INITIAL_VF)
    num_vfs = u16(pci.PCI_SRIOV_NUM_VF)
    enabled = u16(pci.PCI_SRIOV_CTRL, pci.PCI_SRIOV_CTRL_VFE, bool)
    memory_enabled = u16(pci.PCI_SRIOV_CTRL, pci.PCI_SRIOV_CTRL_MSE, bool)
    ari_hierarchy = u16(pci.PCI_SRIOV_CTRL, pci.PCI_SRIOV_CTRL_ARI, bool)
    migration_capable = u32(pci.PCI_SRIOV_CAP, pci.PCI_SRIOV_CAP_VFM, bool)
    dependency_link = u16(pci.PCI_SRIOV_FUNC_LINK, 0xFF)
    #: Routing IDs from this function to its first VF, and from each VF to the next.
    vf_offset = u16(pci.PCI_SRIOV_VF_OFFSET)
    vf_stride = u16(pci.PCI_SRIOV_VF_STRIDE)
    vf_device_id = u16(pci.PCI_SRIOV_VF_DID)
    #: Bytes; a VF's BARs are aligned to the system's.
    page_sizes_supported = u32(pci.PCI_SRIOV_SUP_PGSIZE, decode=_page_sizes)
    system_page_size = u32(pci.PCI_SRIOV_SYS_PGSIZE, decode=lambda bits: bits * 4096)

    @derived
    def vf_bars(self) -> tuple[Bar, ...]:
        """The BARs of the first VF; the others' follow it in memory."""
        return read_bars(self, pci.PCI_SRIOV_BAR, pci.PCI_SRIOV_NUM_BARS)
