"""Power management, MSI, MSI-X and other short capabilities of the standard list."""

from __future__ import annotations

from pyvfio.abi import pci_regs as pci
from pyvfio.pci.capabilities.base import StandardCapability
from pyvfio.pci.registers import Choice, derived, u8, u16, u32


class PowerState(Choice):
    """A function's power state (PCIe 5.0, 5.3.1)."""

    D0 = 0
    D1 = 1
    D2 = 2
    D3HOT = 3

    def __str__(self) -> str:
        return "D3hot" if self is PowerState.D3HOT else self.name


class PmCapability(StandardCapability, id=pci.PCI_CAP_ID_PM, length=pci.PCI_PM_SIZEOF):
    """Power management (PCIe 5.0, 7.5.2)."""

    interface_version = u16(pci.PCI_PM_PMC, pci.PCI_PM_CAP_VER_MASK)
    device_specific_init = u16(pci.PCI_PM_PMC, pci.PCI_PM_CAP_DSI, bool)
    #: Current drawn from Vaux for waking, in mA.
    aux_current = u16(
        pci.PCI_PM_PMC,
        pci.PCI_PM_CAP_AUX_POWER,
        (0, 55, 100, 160, 220, 270, 320, 375).__getitem__,
    )
    d1 = u16(pci.PCI_PM_PMC, pci.PCI_PM_CAP_D1, bool)
    d2 = u16(pci.PCI_PM_PMC, pci.PCI_PM_CAP_D2, bool)
    #: The states from which it can signal PME.
    pme_from = u16(
        pci.PCI_PM_PMC,
        pci.PCI_PM_CAP_PME_MASK,
        lambda bits: tuple(
            state
            for bit, state in enumerate(("D0", "D1", "D2", "D3hot", "D3cold"))
            if bits >> bit & 1
        ),
    )
    state = u16(pci.PCI_PM_CTRL, pci.PCI_PM_CTRL_STATE_MASK, PowerState)
    no_soft_reset = u16(pci.PCI_PM_CTRL, pci.PCI_PM_CTRL_NO_SOFT_RESET, bool)
    pme_enabled = u16(pci.PCI_PM_CTRL, pci.PCI_PM_CTRL_PME_ENABLE, bool)
    pme_status = u16(pci.PCI_PM_CTRL, pci.PCI_PM_CTRL_PME_STATUS, bool)


class MsiCapability(StandardCapability, id=pci.PCI_CAP_ID_MSI):
    """Message signalled interrupts, in any of the four layouts (PCIe 5.0, 7.7.1)."""

    enabled = u16(pci.PCI_MSI_FLAGS, pci.PCI_MSI_FLAGS_ENABLE, bool)
    #: Vectors that the function asks for, and those it was given; both powers of two.
    vectors = u16(pci.PCI_MSI_FLAGS, pci.PCI_MSI_FLAGS_QMASK, lambda log2: 1 << log2)
    vectors_enabled = u16(pci.PCI_MSI_FLAGS, pci.PCI_MSI_FLAGS_QSIZE, lambda log2: 1 << log2)
    is_64bit = u16(pci.PCI_MSI_FLAGS, pci.PCI_MSI_FLAGS_64BIT, bool)
    maskable = u16(pci.PCI_MSI_FLAGS, pci.PCI_MSI_FLAGS_MASKBIT, bool)

    @derived
    def address(self) -> int:
        """Where the function writes its messages."""
        high = self.read(pci.PCI_MSI_ADDRESS_HI, 4) if self.is_64bit else 0
        return high << 32 | self.read(pci.PCI_MSI_ADDRESS_LO, 4)

    @derived
    def data(self) -> int:
        """What it writes there; with several vectors the low bits are the vector's."""
        return self.read(pci.PCI_MSI_DATA_64 if self.is_64bit else pci.PCI_MSI_DATA_32, 2)

    @derived
    def mask(self) -> int | None:
        """A bit per vector that is masked; None where vectors cannot be masked."""
        if not self.maskable:
            return None
        return self.read(pci.PCI_MSI_MASK_64 if self.is_64bit else pci.PCI_MSI_MASK_32, 4)

    @derived
    def pending(self) -> int | None:
        """A bit per vector that waits to be unmasked; None where vectors cannot be masked."""
        if not self.maskable:
            return None
        return self.read(pci.PCI_MSI_PENDING_64 if self.is_64bit else pci.PCI_MSI_PENDING_32, 4)

    @property
    def length(self) -> int:
        """10, 14, 20 or 24 bytes."""
        return 10 + 4 * self.is_64bit + 10 * self.maskable


class MsixCapability(StandardCapability, id=pci.PCI_CAP_ID_MSIX, length=pci.PCI_CAP_MSIX_SIZEOF):
    """MSI-X (PCIe 5.0, 7.7.2); table and pending bits are in memory behind a BAR."""

    enabled = u16(pci.PCI_MSIX_FLAGS, pci.PCI_MSIX_FLAGS_ENABLE, bool)
    #: All vectors are masked, whatever the table says.
    masked = u16(pci.PCI_MSIX_FLAGS, pci.PCI_MSIX_FLAGS_MASKALL, bool)
    vectors = u16(pci.PCI_MSIX_FLAGS, pci.PCI_MSIX_FLAGS_QSIZE, lambda last: last + 1)
    table_bar = u32(pci.PCI_MSIX_TABLE, pci.PCI_MSIX_TABLE_BIR)
    #: In bytes from the start of its BAR, as is `pba_offset`.
    table_offset = u32(pci.PCI_MSIX_TABLE, decode=lambda dword: dword & ~7)
    pba_bar = u32(pci.PCI_MSIX_PBA, pci.PCI_MSIX_PBA_BIR)
    pba_offset = u32(pci.PCI_MSIX_PBA, decode=lambda dword: dword & ~7)


class VendorCapability(StandardCapability, id=pci.PCI_CAP_ID_VNDR):
    """Whatever the vendor likes (PCIe 5.0, 7.9.4)."""

    @property
    def length(self) -> int | None:
        """The length that it declares in its third byte; None if that is nonsense."""
        length = self.read(pci.PCI_CAP_FLAGS, 1)
        return length if length > pci.PCI_CAP_FLAGS else None


class SubsystemCapability(StandardCapability, id=pci.PCI_CAP_ID_SSVID, length=8):
    """A bridge's subsystem identifiers (PCIe 5.0, 7.9.23)."""

    vendor_id = u16(pci.PCI_SSVID_VENDOR_ID)
    device_id = u16(pci.PCI_SSVID_DEVICE_ID)


class AfCapability(StandardCapability, id=pci.PCI_CAP_ID_AF, length=pci.PCI_CAP_AF_SIZEOF):
    """Function level reset for a conventional function (PCIe 5.0, 7.9.22)."""

    flr = u8(pci.PCI_AF_CAP, pci.PCI_AF_CAP_FLR, bool)
    transactions_pending = u8(pci.PCI_AF_STATUS, pci.PCI_AF_STATUS_TP, bool)
