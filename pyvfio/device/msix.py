"""MSI-X: the vectors, and the tables that say where each one goes (PCI Local Bus 3.0, 6.8.2)."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.abi import pci_regs
from pyvfio.device.irq import Irq
from pyvfio.device.region import Region

ENTRY_SIZE = pci_regs.PCI_MSIX_ENTRY_SIZE


class MsixEntry(NamedTuple):
    """One entry of an MSI-X table.

    Attributes:
        address: what the device writes to, 64 bits; 0 is a legal address.
        data: what it writes, 32 bits.
        masked: the vector-control mask bit.
    """

    address: int
    data: int
    masked: bool


class MsixTable(Sequence[MsixEntry]):
    """An MSI-X table: entries by vector number, read afresh at each look."""

    @abstractmethod
    def read32(self, offset: int) -> int:
        """The 32 bits at byte `offset` of the table."""

    @overload
    def __getitem__(self, index: int) -> MsixEntry: ...

    @overload
    def __getitem__(self, index: slice) -> list[MsixEntry]: ...

    def __getitem__(self, index: int | slice) -> MsixEntry | list[MsixEntry]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise errors.RangeError(f"the MSI-X table has {len(self)} entries, no {index}")
        return self._entry(index)

    def _entry(self, index: int) -> MsixEntry:
        offset = index * ENTRY_SIZE
        low = self.read32(offset + pci_regs.PCI_MSIX_ENTRY_LOWER_ADDR)
        high = self.read32(offset + pci_regs.PCI_MSIX_ENTRY_UPPER_ADDR)
        control = self.read32(offset + pci_regs.PCI_MSIX_ENTRY_VECTOR_CTRL)
        return MsixEntry(
            high << 32 | low,
            self.read32(offset + pci_regs.PCI_MSIX_ENTRY_DATA),
            bool(control & pci_regs.PCI_MSIX_ENTRY_CTRL_MASKBIT),
        )


class PhysicalMsixTable(MsixTable):
    """The table in the device, which the kernel alone programs.

    VFIO owns it: enabling a vector makes the kernel write the entry, with an address and data of
    the host's choosing. Reading shows what it wrote; there is no writing.
    """

    def __init__(self, bar: Region, offset: int, entries: int) -> None:
        """
        Args:
            bar: the BAR that holds the table, mapped there (``MSIX_MAPPABLE``).
            offset: of the table in the BAR, bytes.
            entries: how many.
        """
        self._bar = bar
        self._offset = offset
        self._entries = entries

    def __len__(self) -> int:
        return self._entries

    def read32(self, offset: int) -> int:
        """The 32 bits at byte `offset` of the table, as the device has them."""
        return self._bar.read32(self._offset + offset)


class GuestMsixTable(MsixTable):
    """A table in memory, as software programs it for itself or for a guest. It has no lock.

    Entries begin masked, with address and data 0, as a device's do after a reset.
    """

    def __init__(self, entries: int) -> None:
        """
        Args:
            entries: how many, 1 to 2,048.

        Raises:
            RangeError: MSI-X allows no such number.
        """
        if not 1 <= entries <= pci_regs.PCI_MSIX_FLAGS_QSIZE + 1:
            raise errors.RangeError(f"an MSI-X table has 1 to 2048 entries, not {entries}")
        self._memory = memoryview(bytearray(entries * ENTRY_SIZE)).cast("I")
        self.reset()

    def __len__(self) -> int:
        return len(self._memory) * 4 // ENTRY_SIZE

    def read32(self, offset: int) -> int:
        """The 32 bits at byte `offset` of the table.

        Raises:
            RangeError: outside the table.
            ArgumentError: not a multiple of 4.
        """
        return self._memory[self._word(offset)]

    def write32(self, offset: int, value: int) -> None:
        """Write 32 bits at byte `offset`, as a driver does; errors as :meth:`read32`."""
        self._memory[self._word(offset)] = value & 0xFFFFFFFF

    def __setitem__(self, index: int, entry: MsixEntry) -> None:
        if not 0 <= index < len(self):
            raise errors.RangeError(f"the MSI-X table has {len(self)} entries, no {index}")
        if not (0 <= entry.address < 1 << 64 and 0 <= entry.data < 1 << 32):
            raise errors.ArgumentError(f"an address has 64 bits and data 32, not so {entry}")
        words = (entry.address & 0xFFFFFFFF, entry.address >> 32, entry.data, int(entry.masked))
        for position, word in enumerate(words):
            self._memory[index * ENTRY_SIZE // 4 + position] = word

    def _entry(self, index: int) -> MsixEntry:
        # In one piece, since memory is not a device: forwarding reads thousands.
        low, high, data, control = self._memory[index * 4 : index * 4 + 4]
        masked = bool(control & pci_regs.PCI_MSIX_ENTRY_CTRL_MASKBIT)
        return MsixEntry(high << 32 | low, data, masked)

    def unmasked(self) -> list[int]:
        """The numbers of the entries whose mask bit is clear."""
        controls = self._memory[pci_regs.PCI_MSIX_ENTRY_VECTOR_CTRL // 4 :: ENTRY_SIZE // 4]
        masked = pci_regs.PCI_MSIX_ENTRY_CTRL_MASKBIT
        return [number for number, control in enumerate(controls) if not control & masked]

    def reset(self) -> None:
        """Every entry zero and masked."""
        for index in range(len(self)):
            self[index] = MsixEntry(0, 0, True)

    def _word(self, offset: int) -> int:
        if offset % 4:
            raise errors.ArgumentError(f"offset {offset:#x} is not a multiple of 4")
        if not 0 <= offset < len(self) * ENTRY_SIZE:
            raise errors.RangeError(f"the MSI-X table has {len(self) * ENTRY_SIZE} bytes")
        return offset // 4


class Msix(Irq):
    """The MSI-X vectors of a device, with a look at what the kernel programmed for them."""

    def __init__(
        self,
        file: File,
        index: int,
        name: str,
        *,
        flags: int,
        count: int,
        siblings: Iterable[Irq],
        lock: threading.RLock | None = None,
        table: tuple[Region | None, int] | None,
        pending: tuple[Region | None, int] | None,
    ) -> None:
        """Made by :class:`~pyvfio.device.device.Device`.

        Args:
            table: the BAR (None: it names one that is not there) and the offset in it of the MSI-X
                table; None if there is none.
            pending: the same of the pending-bit array.
        """
        super().__init__(file, index, name, flags=flags, count=count, siblings=siblings, lock=lock)
        self._table = table
        self._pending = pending

    @property
    def table(self) -> PhysicalMsixTable:
        """The device's own table.

        Raises:
            Unsupported: the device has none, or this kernel keeps it to itself (it can be seen
                where the kernel reports ``VFIO_REGION_INFO_CAP_MSIX_MAPPABLE``).
        """
        bar, offset = self._visible(self._table, "table", self.count * ENTRY_SIZE)
        return PhysicalMsixTable(bar, offset, self.count)

    def pending(self, number: int) -> bool:
        """The pending bit of a vector: it fired while it was masked.

        Raises:
            RangeError: there is no such vector.
            Unsupported: as :attr:`table`.
        """
        bar, offset = self._visible(self._pending, "pending bits", -(-self.count // 64) * 8)
        if not 0 <= number < self.count:
            raise errors.RangeError(f"the device has {self.count} MSI-X vectors, no {number}")
        return bool(bar.read32(offset + number // 32 * 4) >> number % 32 & 1)

    def _visible(
        self, place: tuple[Region | None, int] | None, what: str, size: int
    ) -> tuple[Region, int]:
        if place is None:
            raise errors.Unsupported("the device has no MSI-X interrupts")
        bar, offset = place
        if bar is None:
            raise errors.Unsupported(f"the MSI-X {what} is said to be in a BAR that is not there")
        if not any(area.offset <= offset and offset + size <= area.end for area in bar.areas):
            raise errors.Unsupported(
                f"this kernel does not let {bar.name} be mapped where the MSI-X {what} stands"
            )
        return bar, offset
