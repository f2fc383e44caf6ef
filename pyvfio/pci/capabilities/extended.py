"""The short extended capabilities."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pyvfio.abi import pci_regs as pci
from pyvfio.pci.capabilities.base import ExtendedCapability
from pyvfio.pci.registers import derived, u8, u16, u32


class DsnCapability(
    ExtendedCapability, id=pci.PCI_EXT_CAP_ID_DSN, length=pci.PCI_EXT_CAP_DSN_SIZEOF
):
    """Device Serial Number (PCIe 5.0, 7.9.3)."""

    @derived
    def serial(self) -> str:
        """The EUI-64, most significant byte first, with dashes."""
        number = self.read(8, 4) << 32 | self.read(4, 4)
        return number.to_bytes(8, "big").hex("-")


class AriCapability(
    ExtendedCapability, id=pci.PCI_EXT_CAP_ID_ARI, length=pci.PCI_EXT_CAP_ARI_SIZEOF
):
    """Alternative Routing-ID Interpretation (PCIe 5.0, 7.8.7)."""

    next_function = u16(pci.PCI_ARI_CAP, 0xFF00)
    mfvc_groups_supported = u16(pci.PCI_ARI_CAP, pci.PCI_ARI_CAP_MFVC, bool)
    acs_groups_supported = u16(pci.PCI_ARI_CAP, pci.PCI_ARI_CAP_ACS, bool)
    mfvc_groups_enabled = u16(pci.PCI_ARI_CTRL, pci.PCI_ARI_CTRL_MFVC, bool)
    acs_groups_enabled = u16(pci.PCI_ARI_CTRL, pci.PCI_ARI_CTRL_ACS, bool)
    function_group = u16(pci.PCI_ARI_CTRL, 0x0070)


class AtsCapability(
    ExtendedCapability, id=pci.PCI_EXT_CAP_ID_ATS, length=pci.PCI_EXT_CAP_ATS_SIZEOF
):
    """Address Translation Service (PCIe 5.0, 10.5.1)."""

    enabled = u16(pci.PCI_ATS_CTRL, pci.PCI_ATS_CTRL_ENABLE, bool)
    #: Invalidations that the device takes before it must be waited for.
    invalidate_queue_depth = u16(
        pci.PCI_ATS_CAP, 0x001F, lambda depth: depth or pci.PCI_ATS_MAX_QDEP
    )
    page_aligned_request = u16(pci.PCI_ATS_CAP, pci.PCI_ATS_CAP_PAGE_ALIGNED, bool)
    #: In bytes.
    smallest_translation_unit = u16(
        pci.PCI_ATS_CTRL, 0x001F, lambda code: 1 << code + pci.PCI_ATS_MIN_STU
    )


class PriCapability(
    ExtendedCapability, id=pci.PCI_EXT_CAP_ID_PRI, length=pci.PCI_EXT_CAP_PRI_SIZEOF
):
    """Page Request Interface (PCIe 5.0, 10.5.2)."""

    enabled = u16(pci.PCI_PRI_CTRL, pci.PCI_PRI_CTRL_ENABLE, bool)
    response_failure = u16(pci.PCI_PRI_STATUS, pci.PCI_PRI_STATUS_RF, bool)
    unexpected_group_index = u16(pci.PCI_PRI_STATUS, pci.PCI_PRI_STATUS_UPRGI, bool)
    stopped = u16(pci.PCI_PRI_STATUS, pci.PCI_PRI_STATUS_STOPPED, bool)
    pasid_required = u16(pci.PCI_PRI_STATUS, pci.PCI_PRI_STATUS_PASID, bool)
    max_requests = u32(pci.PCI_PRI_MAX_REQ)
    allowed_requests = u32(pci.PCI_PRI_ALLOC_REQ)


class PasidCapability(
    ExtendedCapability, id=pci.PCI_EXT_CAP_ID_PASID, length=pci.PCI_EXT_CAP_PASID_SIZEOF
):
    """Process Address Space ID (PCIe 5.0, 7.8.8)."""

    enabled = u16(pci.PCI_PASID_CTRL, pci.PCI_PASID_CTRL_ENABLE, bool)
    #: Bits of a PASID.
    width = u16(pci.PCI_PASID_CAP, pci.PCI_PASID_CAP_WIDTH)
    execute_supported = u16(pci.PCI_PASID_CAP, pci.PCI_PASID_CAP_EXEC, bool)
    execute_enabled = u16(pci.PCI_PASID_CTRL, pci.PCI_PASID_CTRL_EXEC, bool)
    privileged_supported = u16(pci.PCI_PASID_CAP, pci.PCI_PASID_CAP_PRIV, bool)
    privileged_enabled = u16(pci.PCI_PASID_CTRL, pci.PCI_PASID_CTRL_PRIV, bool)


class Acs(enum.IntFlag):
    """What access control can do to requests between functions."""

    SOURCE_VALIDATION = pci.PCI_ACS_SV
    TRANSLATION_BLOCKING = pci.PCI_ACS_TB
    REQUEST_REDIRECT = pci.PCI_ACS_RR
    COMPLETION_REDIRECT = pci.PCI_ACS_CR
    UPSTREAM_FORWARDING = pci.PCI_ACS_UF
    EGRESS_CONTROL = pci.PCI_ACS_EC
    DIRECT_TRANSLATED = pci.PCI_ACS_DT


class AcsCapability(ExtendedCapability, id=pci.PCI_EXT_CAP_ID_ACS):
    """Access Control Services (PCIe 5.0, 7.7.8), which IOMMU groups are made from."""

    supported = u8(pci.PCI_ACS_CAP, decode=Acs)
    enabled = u16(pci.PCI_ACS_CTRL, decode=Acs)

    @property
    def length(self) -> int:
        """Bytes, with the egress control vector if there is one."""
        if Acs.EGRESS_CONTROL not in self.supported:
            return 8
        bits = self.read(pci.PCI_ACS_EGRESS_BITS, 1) or 256
        return 8 + (bits + 31) // 32 * 4


@dataclass(frozen=True)
class ResizableBar:
    """One BAR and the sizes it can have, in bytes."""

    bar: int
    size: int
    sizes: tuple[int, ...]


class RebarCapability(ExtendedCapability, id=pci.PCI_EXT_CAP_ID_REBAR):
    """Resizable BAR (PCIe 5.0, 7.8.6)."""

    @derived
    def bars(self) -> tuple[ResizableBar, ...]:
        """The BARs that can be resized."""
        return tuple(self._bar(8 * index) for index in range(self._count))

    @property
    def _count(self) -> int:
        # Only the first BAR's control register tells.
        control = self.read(pci.PCI_REBAR_CTRL, 4)
        return (control & pci.PCI_REBAR_CTRL_NBAR_MASK) >> pci.PCI_REBAR_CTRL_NBAR_SHIFT

    def _bar(self, at: int) -> ResizableBar:
        control = self.read(pci.PCI_REBAR_CTRL + at, 4)
        # A bit for each power of two from 1 MiB: 28 in the one register, 16 in the other.
        sizes = self.read(pci.PCI_REBAR_CAP + at, 4) >> 4 | control >> 16 << 28
        return ResizableBar(
            bar=control & pci.PCI_REBAR_CTRL_BAR_IDX,
            size=1 << 20 + (control >> 8 & 0x3F),
            sizes=tuple(1 << 20 + bit for bit in range(44) if sizes >> bit & 1),
        )

    @property
    def length(self) -> int:
        """Bytes: eight for each BAR."""
        return 4 + 8 * self._count


class VfRebarCapability(RebarCapability, id=pci.PCI_EXT_CAP_ID_VF_REBAR):
    """VF Resizable BAR (PCIe 5.0, 9.3.7.5): the same for the BARs of virtual functions."""


class VsecCapability(ExtendedCapability, id=pci.PCI_EXT_CAP_ID_VNDR):
    """Whatever the vendor likes, with an identifier (PCIe 5.0, 7.9.5)."""

    vsec_id = u32(pci.PCI_VNDR_HEADER, 0xFFFF)
    revision = u32(pci.PCI_VNDR_HEADER, 0xF << 16)

    @property
    def length(self) -> int | None:
        """The length that it declares; None if that is nonsense."""
        length = self.read(pci.PCI_VNDR_HEADER, 4) >> 20
        return length if length >= 8 else None


class DvsecCapability(ExtendedCapability, id=pci.PCI_EXT_CAP_ID_DVSEC):
    """The same for any vendor's identifier, not just the device's own (PCIe 5.0, 7.9.6)."""

    vendor_id = u32(pci.PCI_DVSEC_HEADER1, 0xFFFF)
    revision = u32(pci.PCI_DVSEC_HEADER1, 0xF << 16)
    dvsec_id = u16(pci.PCI_DVSEC_HEADER2)

    @property
    def length(self) -> int | None:
        """The length that it declares; None if that is nonsense."""
        length = self.read(pci.PCI_DVSEC_HEADER1, 4) >> 20
        return length if length >= 10 else None
