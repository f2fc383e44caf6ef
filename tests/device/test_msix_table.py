"""The MSI-X table that software programs."""

from __future__ import annotations

import os
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.abi import vfio
from pyvfio.device import Area, GuestMsixTable, MsixEntry
from pyvfio.device.msix import Msix

entries = st.builds(
    MsixEntry,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)


def test_entries_begin_zero_and_masked() -> None:
    assert list(GuestMsixTable(3)) == [MsixEntry(0, 0, True)] * 3


@given(st.lists(entries, min_size=1, max_size=2048))
def test_entries_read_back_as_written_and_lie_in_the_layout_of_the_specification(
    wanted: list[MsixEntry],
) -> None:
    table = GuestMsixTable(len(wanted))
    for index, entry in enumerate(wanted):
        table[index] = entry
    assert list(table) == wanted
    last = 16 * (len(wanted) - 1)
    assert table.read32(last) | table.read32(last + 4) << 32 == wanted[-1].address
    assert table.read32(last + 8) == wanted[-1].data
    assert table.read32(last + 12) & 1 == wanted[-1].masked


def test_a_driver_programs_it_by_registers() -> None:
    table = GuestMsixTable(2)
    table.write32(16, 0xFEE00000)
    table.write32(24, 0x41)
    table.write32(28, 0)
    assert table[1] == MsixEntry(0xFEE00000, 0x41, False)
    table.reset()
    assert table[1] == MsixEntry(0, 0, True)


def test_refuses_what_is_outside() -> None:
    for entries_ in (0, 2049):
        with pytest.raises(errors.RangeError):
            GuestMsixTable(entries_)
    table = GuestMsixTable(2)
    for offset in (-4, 32):
        with pytest.raises(errors.RangeError):
            table.read32(offset)
    with pytest.raises(errors.ArgumentError):
        table.write32(2, 0)
    with pytest.raises(IndexError):
        table[2]


# As a device's capability has them: which BAR is there or not, and an offset of 32 bits.
places = st.none() | st.tuples(
    st.booleans(), st.sampled_from([0, 0x800, 0xFF8, 0x1000, 0xFFFFFFF8]) | st.integers(0, 1 << 32)
)
areas = st.lists(st.builds(Area, st.integers(0, 1 << 16), st.integers(0, 1 << 17)), max_size=3)


@given(count=st.integers(0, 2048), table=places, pending=places, mappable=areas)
def test_tables_anywhere_are_read_within_the_bar(
    count: int,
    table: tuple[bool, int] | None,
    pending: tuple[bool, int] | None,
    mappable: list[Area],
) -> None:
    """Where a device says that they are, or nowhere."""
    read: list[int] = []

    def read32(offset: int) -> int:
        read.append(offset)
        return 0

    bar: Any = SimpleNamespace(name="BAR0", areas=tuple(mappable), read32=read32)

    def place(where: tuple[bool, int] | None) -> Any:
        return None if where is None else (bar if where[0] else None, where[1])

    with File(os.memfd_create("device"), "device") as file:
        msix = Msix(
            file,
            vfio.VFIO_PCI_MSIX_IRQ_INDEX,
            "MSI-X",
            flags=0,
            count=count,
            siblings=(),
            table=place(table),
            pending=place(pending),
        )
        with suppress(errors.Unsupported, errors.RangeError):
            assert len(msix.table) == count
            _ = msix.table[count - 1]
        with suppress(errors.Unsupported, errors.RangeError):
            msix.pending(count - 1)
    for offset in read:
        assert any(area.offset <= offset and offset + 4 <= area.end for area in mappable)
