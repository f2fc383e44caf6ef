"""Base address registers as they stand in config space (PCIe 5.0, 7.5.1.2.1)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pyvfio.abi import pci_regs as pci
from pyvfio.errors import MalformedConfig
from pyvfio.pci.registers import Registers


class BarKind(enum.Enum):
    """What a BAR decodes."""

    MEMORY32 = "memory32"
    MEMORY64 = "memory64"
    IO = "io"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Bar:
    """A base address register; its size is not to be had without writing to it.

    Attributes:
        index: 0 to 5; a 64-bit BAR uses the next index too.
        kind: memory with 32- or 64-bit addresses, or I/O ports.
        prefetchable: reads have no side effects.
        address: on the bus; 0 while none is assigned.
    """

    index: int
    kind: BarKind
    prefetchable: bool
    address: int


def read_bars(registers: Registers, offset: int, count: int) -> tuple[Bar, ...]:
    """Decode `count` consecutive BARs, of which the first is at `offset`.

    Returns:
        The BARs that are not zero; a zero one is absent, or (for 32-bit memory) has no address.

    Raises:
        MalformedConfig: a reserved type, or the last BAR wants another one for its upper half.
    """
    bars, faults = try_bars(registers, offset, count)
    if faults:
        raise faults[0]
    return bars


def try_bars(
    registers: Registers, offset: int, count: int
) -> tuple[tuple[Bar, ...], tuple[MalformedConfig, ...]]:
    """Decode BARs as :func:`read_bars` does, and leave out those that are malformed.

    Returns:
        The others, and what is wrong with these.
    """
    bars: list[Bar] = []
    faults: list[MalformedConfig] = []
    index = 0
    while index < count:
        here = index
        low = registers.read(offset + 4 * here, 4)
        index += 1
        if low == 0:
            continue
        if low & pci.PCI_BASE_ADDRESS_SPACE_IO:
            bars.append(Bar(here, BarKind.IO, False, low & ~0x3))
            continue
        kind, address = BarKind.MEMORY32, low & ~0xF
        memory_type = low & pci.PCI_BASE_ADDRESS_MEM_TYPE_MASK
        if memory_type == pci.PCI_BASE_ADDRESS_MEM_TYPE_64:
            if index == count:
                faults.append(MalformedConfig(f"BAR {here} is 64-bit, but there is none after it"))
                continue
            kind = BarKind.MEMORY64
            address |= registers.read(offset + 4 * index, 4) << 32
            index += 1
        elif memory_type == pci.PCI_BASE_ADDRESS_MEM_TYPE_MASK:
            faults.append(MalformedConfig(f"BAR {here} ({low:#010x}) has a reserved type"))
            continue
        bars.append(Bar(here, kind, bool(low & pci.PCI_BASE_ADDRESS_MEM_PREFETCH), address))
    return tuple(bars), tuple(faults)
