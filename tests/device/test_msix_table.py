"""The MSI-X table that software programs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.device import GuestMsixTable, MsixEntry

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
