from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.eeh import ErrorFunction, InjectedError

functions = st.sampled_from(list(ErrorFunction))
numbers = st.integers(0, (1 << 64) - 1)


@given(functions)
def test_a_function_is_known_by_its_name(function: ErrorFunction) -> None:
    assert ErrorFunction.parse(function.word) is function
    assert ErrorFunction.parse(f" {function.word.upper()}") is function


@given(st.text())
def test_other_names_are_refused_and_those_that_there_are_named(text: str) -> None:
    assume(text.strip().lower() not in {function.word for function in ErrorFunction})
    with pytest.raises(errors.ArgumentError, match="dma-write-target"):
        ErrorFunction.parse(text)


@given(functions, st.sampled_from([32, 64]), numbers, numbers, st.integers(0, 0xFFFF))
def test_the_line_for_the_kernel_says_all_and_fits(
    function: ErrorFunction, bits: int, address: int, mask: int, pe: int
) -> None:
    error = InjectedError(function, bits, address, mask)
    line = error.debugfs(pe)
    assert [int(word, 16) for word in line.split(":")] == [
        pe,
        bits == 64,
        function,
        address,
        mask,
    ]
    assert len(line) < 49, "pnv_eeh_ei_write() takes 50 characters, with the newline"
    argument = error.argument
    assert (argument.type, argument.func) == (bits == 64, function)
    assert (argument.addr, argument.mask) == (address, mask)


@pytest.mark.parametrize("pe", [-1, 0x10000])
def test_a_pe_has_a_number_of_16_bits(pe: int) -> None:
    with pytest.raises(errors.RangeError, match="16 bits"):
        InjectedError().debugfs(pe)


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_addresses_and_masks_have_64_bits(number: int) -> None:
    with pytest.raises(errors.RangeError, match=r"the address .* no 64-bit"):
        InjectedError(address=number)
    with pytest.raises(errors.RangeError, match=r"the mask .* no 64-bit"):
        InjectedError(mask=number)


def test_errors_are_of_32_or_64_bits() -> None:
    with pytest.raises(errors.ArgumentError, match="32 or 64"):
        InjectedError(bits=16)


def test_an_error_in_words() -> None:
    assert str(InjectedError()) == "a 32-bit error at a load memory address, anywhere in the PE"
    assert "at 0x10, mask 0xff" in str(InjectedError(address=0x10, mask=0xFF))
