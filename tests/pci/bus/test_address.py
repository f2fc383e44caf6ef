"""Addresses: what is read as one, and what is said of what is not."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.errors import ArgumentError
from pyvfio.pci import Address

addresses = st.builds(
    Address,
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)


@given(addresses)
def test_round_trip(address: Address) -> None:
    text = str(address)
    assert Address.parse(text) == address
    assert Address.parse(text.upper()) == address
    assert text == text.lower()
    assert Address.parse(address) is address


@given(addresses)
def test_without_a_domain_it_is_domain_0(address: Address) -> None:
    short = str(address).split(":", 1)[1]
    assert Address.parse(short) == Address(0, address.bus, address.device, address.function)


@given(st.text(alphabet="0123456789abcdefABCDEFxg:. \n-", max_size=16))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = Address.parse(text)
    except ArgumentError:
        return
    numbers = [int(number, 16) for number in text.replace(".", ":").split(":")]
    assert [*[0] * (4 - len(numbers)), *numbers] == list(astuple(address))


def test_the_kernel_writes_it_so() -> None:
    assert str(Address(0, 1, 0x1F, 7)) == "0000:01:1f.7"
    assert str(Address(0x10000, 0xE1, 0, 0)) == "10000:e1:00.0"


def test_order_is_by_domain_bus_device_function() -> None:
    texts = ["0000:00:1f.7", "0000:01:00.0", "0000:01:00.1", "0000:0a:00.0", "10000:00:00.0"]
    assert sorted(map(Address.parse, reversed(texts))) == list(map(Address.parse, texts))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0000:01:00", r"lacks the function.*0000:01:00\.0"),
        ("01:00", r"lacks the function.*01:00\.0"),
        ("00:31.0", r"hexadecimal, 00 to 1f \(decimal 31 is written 1f\)"),
        ("00:20.0", r"hexadecimal, 00 to 1f \(decimal 20 is written 14\)"),
        ("00:ff.0", r"hexadecimal, 00 to 1f$"),
        ("00:1f.8", r"functions are 0 to 7"),
        ("0000:01:00:0", r"expected domain:bus:device\.function.*0000:01:00\.0"),
        ("100000000:01:00.0", r"expected domain:bus:device\.function"),
        ("0000:100:00.0", r"expected domain:bus:device\.function"),
        ("eth0", r"expected domain:bus:device\.function"),
        ("", r"expected domain:bus:device\.function"),
        (" 01:00.0", r"expected domain:bus:device\.function"),
        ("01:00.0\n", r"expected domain:bus:device\.function"),
        ("\u0660\u0661:00.0", r"expected domain:bus:device\.function"),
        (None, r"expected domain:bus:device\.function"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(ArgumentError, match=says) as caught:
        Address.parse(text)
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((1 << 32, 0, 0, 0), "domain"),
        ((0, 0x100, 0, 0), "bus"),
        ((0, 0, 0x20, 0), "device"),
        ((0, 0, 0, 8), "function"),
        ((0, -1, 0, 0), "bus"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: tuple[int, int, int, int], says: str) -> None:
    with pytest.raises(ArgumentError, match=f"PCI {says} .* out of range"):
        Address(*numbers)
