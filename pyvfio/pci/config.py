"""Configuration space as typed objects, of a live device and of a saved dump alike.

    config = ConfigSpace.from_sysfs("/sys/bus/pci/devices/0000:01:00.0")
    config.vendor_id, config.bars, config.msix.vectors
    for capability in config.capabilities:
        print(capability.name, capability.fields())

A device opened through VFIO shows less than this, see docs/config-space.md.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, overload

from pyvfio._sys import sysfs
from pyvfio.abi import pci_regs as pci
from pyvfio.errors import ArgumentError, MalformedConfig, RangeError, Unsupported
from pyvfio.pci.bars import Bar, BarKind, read_bars, try_bars
from pyvfio.pci.capabilities import (
    AcsCapability,
    AerCapability,
    AriCapability,
    AtsCapability,
    Capability,
    DsnCapability,
    ExtendedCapabilities,
    MsiCapability,
    MsixCapability,
    PasidCapability,
    PcieCapability,
    PmCapability,
    PriCapability,
    RebarCapability,
    SriovCapability,
    StandardCapabilities,
    VpdCapability,
)
from pyvfio.pci.registers import AssignableField, Choice, Registers, Space, derived, u8, u16, u32

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Bar",
    "BarKind",
    "BridgeRegisters",
    "Command",
    "ConfigSpace",
    "HeaderType",
    "Rom",
    "Source",
    "Status",
    "Window",
]


class Source(Space, Protocol):
    """Where config space comes from; ConfigSpace checks every access before it asks for it."""

    @property
    def size(self) -> int:
        """Bytes that can be read, at least 64."""
        ...


class Command(enum.IntFlag):
    """What a function may do (PCIe 5.0, 7.5.1.1.3)."""

    IO = pci.PCI_COMMAND_IO
    MEMORY = pci.PCI_COMMAND_MEMORY
    MASTER = pci.PCI_COMMAND_MASTER
    SPECIAL = pci.PCI_COMMAND_SPECIAL
    INVALIDATE = pci.PCI_COMMAND_INVALIDATE
    VGA_PALETTE = pci.PCI_COMMAND_VGA_PALETTE
    PARITY = pci.PCI_COMMAND_PARITY
    WAIT = pci.PCI_COMMAND_WAIT
    SERR = pci.PCI_COMMAND_SERR
    FAST_BACK = pci.PCI_COMMAND_FAST_BACK
    INTX_DISABLE = pci.PCI_COMMAND_INTX_DISABLE


class Status(enum.IntFlag):
    """What a function can do and what happened to it (PCIe 5.0, 7.5.1.1.4)."""

    IMMEDIATE_READINESS = pci.PCI_STATUS_IMM_READY
    INTERRUPT = pci.PCI_STATUS_INTERRUPT
    CAPABILITY_LIST = pci.PCI_STATUS_CAP_LIST
    MHZ_66 = pci.PCI_STATUS_66MHZ
    USER_DEFINABLE = pci.PCI_STATUS_UDF
    FAST_BACK = pci.PCI_STATUS_FAST_BACK
    MASTER_PARITY = pci.PCI_STATUS_PARITY
    DEVSEL_MEDIUM = pci.PCI_STATUS_DEVSEL_MEDIUM
    DEVSEL_SLOW = pci.PCI_STATUS_DEVSEL_SLOW
    SIGNALED_TARGET_ABORT = pci.PCI_STATUS_SIG_TARGET_ABORT
    RECEIVED_TARGET_ABORT = pci.PCI_STATUS_REC_TARGET_ABORT
    RECEIVED_MASTER_ABORT = pci.PCI_STATUS_REC_MASTER_ABORT
    SIGNALED_SYSTEM_ERROR = pci.PCI_STATUS_SIG_SYSTEM_ERROR
    DETECTED_PARITY = pci.PCI_STATUS_DETECTED_PARITY


class HeaderType(Choice):
    """The layout of the header from 0x10 on (PCIe 5.0, 7.5.1.1.9)."""

    ENDPOINT = pci.PCI_HEADER_TYPE_NORMAL
    BRIDGE = pci.PCI_HEADER_TYPE_BRIDGE
    CARDBUS = pci.PCI_HEADER_TYPE_CARDBUS


@dataclass(frozen=True)
class Rom:
    """The expansion ROM's address on the bus, and whether it is decoded."""

    address: int
    enabled: bool


@dataclass(frozen=True)
class Window:
    """Addresses that a bridge forwards; `last` is the last of them."""

    base: int
    last: int


class BridgeRegisters(Registers):
    """What a bridge has in its header (PCIe 5.0, 7.5.1.3); a closed window is None."""

    primary_bus = u8(pci.PCI_PRIMARY_BUS)
    secondary_bus = u8(pci.PCI_SECONDARY_BUS)
    subordinate_bus = u8(pci.PCI_SUBORDINATE_BUS)
    secondary_status = u16(pci.PCI_SEC_STATUS, decode=Status)
    forward_serr = u16(pci.PCI_BRIDGE_CONTROL, pci.PCI_BRIDGE_CTL_SERR, bool)
    forward_vga = u16(pci.PCI_BRIDGE_CONTROL, pci.PCI_BRIDGE_CTL_VGA, bool)
    bus_reset = u16(pci.PCI_BRIDGE_CONTROL, pci.PCI_BRIDGE_CTL_BUS_RESET, bool)

    @derived
    def io_window(self) -> Window | None:
        """I/O ports, in steps of 4 KiB."""
        base, last = self.read(pci.PCI_IO_BASE, 1), self.read(pci.PCI_IO_LIMIT, 1)
        high_base = high_last = 0
        if base & pci.PCI_IO_RANGE_TYPE_MASK == pci.PCI_IO_RANGE_TYPE_32:
            high_base = self.read(pci.PCI_IO_BASE_UPPER16, 2) << 16
            high_last = self.read(pci.PCI_IO_LIMIT_UPPER16, 2) << 16
        return _window(high_base | (base & 0xF0) << 8, high_last | (last & 0xF0) << 8, 12)

    @derived
    def memory_window(self) -> Window | None:
        """Memory, in steps of 1 MiB."""
        base, last = self.read(pci.PCI_MEMORY_BASE, 2), self.read(pci.PCI_MEMORY_LIMIT, 2)
        return _window((base & 0xFFF0) << 16, (last & 0xFFF0) << 16, 20)

    @derived
    def prefetchable_window(self) -> Window | None:
        """Prefetchable memory, in steps of 1 MiB."""
        base, last = self.read(pci.PCI_PREF_MEMORY_BASE, 2), self.read(pci.PCI_PREF_MEMORY_LIMIT, 2)
        high_base = high_last = 0
        if base & pci.PCI_PREF_RANGE_TYPE_MASK == pci.PCI_PREF_RANGE_TYPE_64:
            high_base = self.read(pci.PCI_PREF_BASE_UPPER32, 4) << 32
            high_last = self.read(pci.PCI_PREF_LIMIT_UPPER32, 4) << 32
        return _window(high_base | (base & 0xFFF0) << 16, high_last | (last & 0xFFF0) << 16, 20)


def _window(base: int, last: int, granularity: int) -> Window | None:
    return Window(base, last | (1 << granularity) - 1) if base <= last else None


C = TypeVar("C", bound=Capability)


class _First(Generic[C]):
    """An attribute of ConfigSpace: the first capability of a class, or None."""

    def __init__(self, kind: type[C]) -> None:
        self._kind = kind
        self.__doc__ = kind.__doc__

    @overload
    def __get__(self, config: None, owner: type) -> Self: ...
    @overload
    def __get__(self, config: ConfigSpace, owner: type) -> C | None: ...
    def __get__(self, config: ConfigSpace | None, owner: type) -> Self | C | None:
        if config is None:
            return self
        if self._kind.extended:
            return config.extended_capabilities.get(self._kind)
        return config.capabilities.get(self._kind)


class ConfigSpace(Registers):
    """The configuration space of a function.

    Registers are read when they are asked for, each in one access of its own width; only the
    places of the capabilities are remembered.

    Attributes:
        capabilities: the list in the first 256 bytes.
        extended_capabilities: the list that begins at 0x100.
        is_whole: whether all is here that the kernel reaches of the device's config space. Of a
            PCIe device behind a conventional bridge that is 256 bytes.
    """

    vendor_id = u16(pci.PCI_VENDOR_ID)
    device_id = u16(pci.PCI_DEVICE_ID)
    command = AssignableField(pci.PCI_COMMAND, 2, 0xFFFF, Command)
    status = u16(pci.PCI_STATUS, decode=Status)
    revision = u8(pci.PCI_REVISION_ID)
    #: Base class, subclass and programming interface, a byte each.
    class_code = u32(pci.PCI_CLASS_REVISION, 0xFFFFFF00)
    #: In dwords.
    cache_line_size = u8(pci.PCI_CACHE_LINE_SIZE)
    latency_timer = u8(pci.PCI_LATENCY_TIMER)
    header_type = u8(pci.PCI_HEADER_TYPE, pci.PCI_HEADER_TYPE_MASK, HeaderType)
    multifunction = u8(pci.PCI_HEADER_TYPE, pci.PCI_HEADER_TYPE_MFD, bool)
    interrupt_line = u8(pci.PCI_INTERRUPT_LINE)
    #: 0 for none, 1 to 4 for INTA to INTD.
    interrupt_pin = u8(pci.PCI_INTERRUPT_PIN)

    pm = _First(PmCapability)
    msi = _First(MsiCapability)
    msix = _First(MsixCapability)
    pcie = _First(PcieCapability)
    vpd = _First(VpdCapability)
    aer = _First(AerCapability)
    dsn = _First(DsnCapability)
    ari = _First(AriCapability)
    sriov = _First(SriovCapability)
    ats = _First(AtsCapability)
    pasid = _First(PasidCapability)
    pri = _First(PriCapability)
    rebar = _First(RebarCapability)
    acs = _First(AcsCapability)

    def __init__(self, source: Source, *, is_whole: bool = True) -> None:
        super().__init__(source)
        self._source = source
        self.is_whole = is_whole
        self.capabilities = StandardCapabilities(self)
        self.extended_capabilities = ExtendedCapabilities(self)

    @classmethod
    def from_bytes(cls, data: bytes, *, is_whole: bool = False) -> ConfigSpace:
        """A saved dump.

        Args:
            data: 64 to 4096 bytes. The kernel gives 64 to an ordinary user (128 for CardBus), and
                256 or 4096 to root; of some devices it reaches less, as 1536 of Netronome's NFP. A
                dword that is not all there is left out.
            is_whole: whether the kernel has no more of it. Otherwise what is missing is never taken
                for absent.

        Raises:
            MalformedConfig: another length.
        """
        if not pci.PCI_STD_HEADER_SIZEOF <= len(data) <= pci.PCI_CFG_SPACE_EXP_SIZE:
            raise MalformedConfig(
                f"{len(data)} bytes are not a configuration space, which has 64 to 4096"
            )
        return cls(_Saved(data[: len(data) & ~3]), is_whole=is_whole)

    @classmethod
    def from_sysfs(cls, path: str | Path) -> ConfigSpace:
        """What the kernel shows in sysfs, saved at this moment; nothing is opened but this file.

        Args:
            path: a device's directory, e.g. ``/sys/bus/pci/devices/0000:01:00.0``.

        Raises:
            KernelError: there is no such device (ENOENT), or it cannot be read.
        """
        file = Path(path) / "config"
        data = sysfs.read_bytes(file)
        # The file has the size that the kernel reaches, whoever reads it.
        is_whole = len(data) >= pci.PCI_CFG_SPACE_SIZE and sysfs.size(file) == len(data)
        return cls.from_bytes(data, is_whole=is_whole)

    @classmethod
    def from_lspci(cls, text: str) -> ConfigSpace:
        """What ``lspci -x``, ``-xxx`` or ``-xxxx`` printed for one device; ``-v`` does no harm.

        Raises:
            MalformedConfig: no hexadecimal dump, several, or one with gaps.
        """
        data = bytearray()
        for offset, line in _LSPCI_LINE.findall(text):
            if int(offset, 16) != len(data):
                raise MalformedConfig(
                    f"the dump goes on at {offset} where {len(data):02x} was expected; give the "
                    "text of one device: lspci -s ADDRESS -xxxx"
                )
            data += bytes.fromhex(line)
        return cls.from_bytes(bytes(data))

    @property
    def answers(self) -> bool:
        """Tell whether a device answers: where none does, reads give all ones.

        The class code is read, which is never all ones. The vendor ID does not tell: VFIO gives it
        from a copy of its own, whatever the device does.

        Raises:
            As :meth:`read`.
        """
        return self.read(pci.PCI_CLASS_REVISION, 4) != 0xFFFF_FFFF

    @property
    def size(self) -> int:
        """Bytes that are here, 64 to 4096."""
        return self._source.size

    def read(self, offset: int, width: int) -> int:
        """Read a register in one access.

        Args:
            offset: bytes, a multiple of `width`.
            width: bytes: 1, 2 or 4.

        Raises:
            ArgumentError: another width, or misaligned.
            RangeError: outside of what is here.
        """
        self._check(offset, width)
        return self._source.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register in one access; arguments as for :meth:`read`.

        Raises:
            ArgumentError: another width, misaligned, or a value that does not fit.
            RangeError: outside of what is here.
            Unsupported: a saved dump cannot be written.
        """
        self._check(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise ArgumentError(f"{value:#x} does not fit into {width} bytes")
        self._source.write(offset, width, value)

    def _check(self, offset: int, width: int) -> None:
        if width not in (1, 2, 4) or offset % width:
            raise ArgumentError(
                f"config space is accessed 1, 2 or 4 bytes at a time, naturally aligned, not "
                f"{width} at {offset:#x}"
            )
        if not 0 <= offset <= self.size - width:
            raise RangeError(
                f"{width} bytes at {offset:#x} are outside of this config space, which has "
                f"{self.size}"
            )

    def check_alive(self) -> None:
        """Tell a device that does not answer from one that is merely strange.

        Raises:
            MalformedConfig: Command and Status read all ones.
        """
        if self.read(pci.PCI_COMMAND, 4) == 0xFFFFFFFF:
            raise MalformedConfig(
                "config space reads all ones: the device was removed, sleeps in D3cold, or its "
                "link is down"
            )

    @property
    def capabilities_pointer_offset(self) -> int:
        """Where the header points to the first capability."""
        if self.header_type == HeaderType.CARDBUS:
            return pci.PCI_CB_CAPABILITY_LIST
        return pci.PCI_CAPABILITY_LIST

    @derived
    def subsystem_vendor_id(self) -> int | None:
        """Who made the board; None for a bridge, which may have SubsystemCapability instead."""
        return self._endpoint_only(pci.PCI_SUBSYSTEM_VENDOR_ID)

    @derived
    def subsystem_id(self) -> int | None:
        """Its maker's number for the board; None for a bridge."""
        return self._endpoint_only(pci.PCI_SUBSYSTEM_ID)

    def _endpoint_only(self, offset: int) -> int | None:
        return self.read(offset, 2) if self.header_type == HeaderType.ENDPOINT else None

    @derived
    def bars(self) -> tuple[Bar, ...]:
        """The base address registers that are in use.

        Raises:
            MalformedConfig: one has a reserved type, or lacks its upper half.
        """
        return read_bars(self, pci.PCI_BASE_ADDRESS_0, self._bar_count)

    def try_bars(self) -> tuple[tuple[Bar, ...], tuple[MalformedConfig, ...]]:
        """The base address registers that are in use, and what is wrong with the others."""
        return try_bars(self, pci.PCI_BASE_ADDRESS_0, self._bar_count)

    @property
    def _bar_count(self) -> int:
        return _BAR_COUNT.get(self.header_type, 0)

    @derived
    def rom(self) -> Rom | None:
        """The expansion ROM; None if there is none, or it has no address."""
        offset = _ROM_OFFSET.get(self.header_type)
        value = 0 if offset is None else self.read(offset, 4)
        if value == 0:
            return None
        return Rom(value & pci.PCI_ROM_ADDRESS_MASK, bool(value & pci.PCI_ROM_ADDRESS_ENABLE))

    @derived
    def bridge(self) -> BridgeRegisters | None:
        """What only a PCI-to-PCI bridge has."""
        return BridgeRegisters(self) if self.header_type == HeaderType.BRIDGE else None


_BAR_COUNT = {HeaderType.ENDPOINT: 6, HeaderType.BRIDGE: 2, HeaderType.CARDBUS: 1}
_ROM_OFFSET = {
    HeaderType.ENDPOINT: pci.PCI_ROM_ADDRESS,
    HeaderType.BRIDGE: pci.PCI_ROM_ADDRESS1,
}
_LSPCI_LINE = re.compile(r"^([0-9a-f]{2,3}):((?: [0-9a-f]{2})+)\s*$", re.MULTILINE)


class _Saved:
    """A dump as a source."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, width: int) -> int:
        return int.from_bytes(self._data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        raise Unsupported("a saved dump cannot be written: open the device for that")
