"""Advanced Error Reporting (PCIe 5.0, 7.8.4)."""

from __future__ import annotations

import enum

from pyvfio.abi import pci_regs as pci
from pyvfio.pci.capabilities.base import ExtendedCapability
from pyvfio.pci.registers import Registers, derived, u32


class Uncorrectable(enum.IntFlag):
    """Errors that lose a transaction (7.8.4.2)."""

    DATA_LINK_PROTOCOL = pci.PCI_ERR_UNC_DLP
    SURPRISE_DOWN = pci.PCI_ERR_UNC_SURPDN
    POISONED_TLP = pci.PCI_ERR_UNC_POISON_TLP
    FLOW_CONTROL_PROTOCOL = pci.PCI_ERR_UNC_FCP
    COMPLETION_TIMEOUT = pci.PCI_ERR_UNC_COMP_TIME
    COMPLETER_ABORT = pci.PCI_ERR_UNC_COMP_ABORT
    UNEXPECTED_COMPLETION = pci.PCI_ERR_UNC_UNX_COMP
    RECEIVER_OVERFLOW = pci.PCI_ERR_UNC_RX_OVER
    MALFORMED_TLP = pci.PCI_ERR_UNC_MALF_TLP
    ECRC = pci.PCI_ERR_UNC_ECRC
    UNSUPPORTED_REQUEST = pci.PCI_ERR_UNC_UNSUP
    ACS_VIOLATION = pci.PCI_ERR_UNC_ACSV
    INTERNAL = pci.PCI_ERR_UNC_INTN
    MULTICAST_BLOCKED = pci.PCI_ERR_UNC_MCBTLP
    ATOMIC_EGRESS_BLOCKED = pci.PCI_ERR_UNC_ATOMEG
    TLP_PREFIX_BLOCKED = pci.PCI_ERR_UNC_TLPPRE
    POISONED_EGRESS_BLOCKED = pci.PCI_ERR_UNC_POISON_BLK
    DMWR_EGRESS_BLOCKED = pci.PCI_ERR_UNC_DMWR_BLK
    IDE_CHECK = pci.PCI_ERR_UNC_IDE_CHECK
    MISROUTED_IDE_TLP = pci.PCI_ERR_UNC_MISR_IDE
    PCRC_CHECK = pci.PCI_ERR_UNC_PCRC_CHECK
    TRANSLATION_EGRESS_BLOCKED = pci.PCI_ERR_UNC_XLAT_BLK


class Correctable(enum.IntFlag):
    """Errors that the hardware has repaired (7.8.4.5)."""

    RECEIVER = pci.PCI_ERR_COR_RCVR
    BAD_TLP = pci.PCI_ERR_COR_BAD_TLP
    BAD_DLLP = pci.PCI_ERR_COR_BAD_DLLP
    REPLAY_ROLLOVER = pci.PCI_ERR_COR_REP_ROLL
    REPLAY_TIMEOUT = pci.PCI_ERR_COR_REP_TIMER
    ADVISORY_NONFATAL = pci.PCI_ERR_COR_ADV_NFAT
    INTERNAL = pci.PCI_ERR_COR_INTERNAL
    LOG_OVERFLOW = pci.PCI_ERR_COR_LOG_OVER


class AerRootRegisters(Registers):
    """Root Error Command, Status and Source (7.8.4.9 to 7.8.4.11)."""

    correctable_interrupt = u32(pci.PCI_ERR_ROOT_COMMAND, pci.PCI_ERR_ROOT_CMD_COR_EN, bool)
    nonfatal_interrupt = u32(pci.PCI_ERR_ROOT_COMMAND, pci.PCI_ERR_ROOT_CMD_NONFATAL_EN, bool)
    fatal_interrupt = u32(pci.PCI_ERR_ROOT_COMMAND, pci.PCI_ERR_ROOT_CMD_FATAL_EN, bool)
    correctable_received = u32(pci.PCI_ERR_ROOT_STATUS, pci.PCI_ERR_ROOT_COR_RCV, bool)
    uncorrectable_received = u32(pci.PCI_ERR_ROOT_STATUS, pci.PCI_ERR_ROOT_UNCOR_RCV, bool)
    nonfatal_received = u32(pci.PCI_ERR_ROOT_STATUS, pci.PCI_ERR_ROOT_NONFATAL_RCV, bool)
    fatal_received = u32(pci.PCI_ERR_ROOT_STATUS, pci.PCI_ERR_ROOT_FATAL_RCV, bool)
    interrupt_message = u32(pci.PCI_ERR_ROOT_STATUS, pci.PCI_ERR_ROOT_AER_IRQ)
    #: Requester IDs of the first error of each kind.
    correctable_source = u32(pci.PCI_ERR_ROOT_ERR_SRC, 0xFFFF)
    uncorrectable_source = u32(pci.PCI_ERR_ROOT_ERR_SRC, 0xFFFF << 16)


class AerCapability(ExtendedCapability, id=pci.PCI_EXT_CAP_ID_ERR):
    """Which errors happened, which are reported, and how."""

    uncorrectable_status = u32(pci.PCI_ERR_UNCOR_STATUS, decode=Uncorrectable)
    uncorrectable_mask = u32(pci.PCI_ERR_UNCOR_MASK, decode=Uncorrectable)
    #: Those that are fatal.
    uncorrectable_severity = u32(pci.PCI_ERR_UNCOR_SEVER, decode=Uncorrectable)
    correctable_status = u32(pci.PCI_ERR_COR_STATUS, decode=Correctable)
    correctable_mask = u32(pci.PCI_ERR_COR_MASK, decode=Correctable)
    #: The bit of `uncorrectable_status` that was set first.
    first_error = u32(pci.PCI_ERR_CAP, 0x1F)
    ecrc_generation_capable = u32(pci.PCI_ERR_CAP, pci.PCI_ERR_CAP_ECRC_GENC, bool)
    ecrc_generation_enabled = u32(pci.PCI_ERR_CAP, pci.PCI_ERR_CAP_ECRC_GENE, bool)
    ecrc_check_capable = u32(pci.PCI_ERR_CAP, pci.PCI_ERR_CAP_ECRC_CHKC, bool)
    ecrc_check_enabled = u32(pci.PCI_ERR_CAP, pci.PCI_ERR_CAP_ECRC_CHKE, bool)

    @derived
    def header_log(self) -> tuple[int, ...]:
        """The header of the TLP of the first error, as four dwords."""
        return tuple(self.read(pci.PCI_ERR_HEADER_LOG + at, 4) for at in range(0, 16, 4))

    @derived
    def root(self) -> AerRootRegisters | None:
        """What root ports and event collectors have besides."""
        pcie = self._config.pcie
        return AerRootRegisters(self) if pcie and pcie.root else None

    @property
    def length(self) -> int:
        """Bytes, without the TLP prefix log."""
        return pci.PCI_ERR_PREFIX_LOG if self.root else pci.PCI_ERR_ROOT_COMMAND
