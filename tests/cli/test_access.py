"""The words that `pyvfio read` and `write` take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.cli import access, main
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bar0+010", "010 can be read as octal, decimal or hexadecimal"),
        ("bar0+00", "00 can be read"),
        ("config+4/16=06", "06 can be read"),
        ("bar0+0x0x00", "00 can be read"),
        ("bar0+0x" + "f" * 17, "64 bits at most"),
        (f"bar0+0={1 << 64}", "64 bits at most"),
        ("bar0+" + "9" * 5000, "is not an access"),
        ("bar0+0x" + "9" * 5000, "is not an access"),
        ("bar0+0x0x" + "9" * 5000, "is not an access"),
        ("bar0+\u0663", "is not an access"),
        ("bar0+0x0x0", "must be 1 to 65536"),
        ("bar0+0x0x65537", "must be 1 to 65536"),
        ("bar0+0x0x1000000", "must be 1 to 65536"),
        ("bar0+0x0x" + "9" * 31, "64 bits at most"),
    ],
    ids=lambda text: text[:24],
)
def test_numbers_that_cannot_be_meant_are_refused(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(errors.ArgumentError, match=said):
        Access.parse(text)
    assert main(["write", "01:00.0", text]) == 2
    assert len(capsys.readouterr().err) < 400


def test_accesses_of_a_command_are_limited_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "01:00.0", *["bar0+0x0x65536"] * 1000]) == 2
    assert "65536 accesses at most" in capsys.readouterr().err


@given(st.text("bar0125config+x/=9f ", max_size=40) | st.text(max_size=20))
def test_any_text_is_accesses_or_refused(text: str) -> None:
    try:
        accesses = Access.parse(text)
    except errors.ArgumentError:
        return
    assert 1 <= len(accesses) <= 65536
