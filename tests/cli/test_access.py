"""The words that `pyvfio read` and `write` take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.cli import access
from pyvfio.cli.access import Access
from pyvfio.pci import Resource


@given(
    st.sampled_from(["bar0", "BAR5", "config", "rom", "vga"]),
    st.integers(0, 2**40),
    st.sampled_from([8, 16, 32, 64]),
    st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_an_access_parses_as_it_was_written(
    region: str, offset: int, bits: int, value: int | None
) -> None:
    text = f"{region}+{offset:#x}/{bits}" + ("" if value is None else f"={value:#x}")
    assert Access.parse(text) == [Access(region.lower(), offset, bits, value)]


def test_a_count_reads_registers_one_after_the_other() -> None:
    assert Access.parse("bar0+0x10/16x3") == [
        Access("bar0", 0x10, 16),
        Access("bar0", 0x12, 16),
        Access("bar0", 0x14, 16),
    ]


@pytest.mark.parametrize("text", ["", "bar0", "bar6+0", "bar0+x", "bar0+0/24", "bar0+-4", "0x10"])
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(errors.ArgumentError, match="bar0\\+0x10/32"):
        Access.parse(text)


def test_a_count_does_not_go_with_writing() -> None:
    with pytest.raises(errors.ArgumentError, match="reading only"):
        Access.parse("bar0+0x0x2=1")


@pytest.mark.parametrize(("size", "says"), [(0, "has no region rom"), (65536, "begin with 55 aa")])
def test_missing_rom_says_why(size: int, says: str) -> None:
    class Function:
        resources = (Resource(0, 0, 0),) * 6 + (Resource(0, max(size - 1, 0), 0),)

    class Device:
        address = "0000:01:00.0"
        function = Function()
        regions: dict[int, object] = {}

    with pytest.raises(errors.RangeError, match=says):
        access._region(Device(), "rom")  # type: ignore[arg-type]
