from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.eeh import Hardware, HostState, PeState, Software

words = st.integers(0, 0xFFFFFFFF)


@given(words, words)
def test_two_words_are_read_back_as_they_were_written(hardware: int, software: int) -> None:
    state = HostState.parse(f"0x{hardware:08x} 0x{software:08x}\n")
    assert (int(state.hardware), int(state.software)) == (hardware, software)
    assert str(state)


@given(st.text())
def test_anything_else_is_refused(text: str) -> None:
    try:
        state = HostState.parse(text)
    except errors.ArgumentError:
        return
    first, second = text.split()
    assert (int(first, 16), int(second, 16)) == state


@pytest.mark.parametrize(
    "text", ["", "0x78", "0x78 0x800 0x1", "78 800", "0x78  0x800", "0x-1 0x0", "0x\u0661 0x0"]
)
def test_what_only_looks_like_it_is_refused(text: str) -> None:
    with pytest.raises(errors.ArgumentError, match="eeh_pe_state"):
        HostState.parse(text)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        # As seen on an emulated POWER9 host.
        ("0x00000078 0x00000800", PeState.NORMAL),
        ("0x00000000 0x00000801", PeState.STOPPED),
        ("0x00000028 0x00000801", PeState.DMA_STOPPED),
        # As the kernel's pnv_eeh_get_pe_state() makes them.
        ("0x00000004 0x00000800", PeState.RESET),
        ("0x00000050 0x00000800", PeState.UNAVAILABLE),
        ("0x00000001 0x00000800", PeState.STOPPED),
        ("0x00000002 0x00000800", PeState.STOPPED),
    ],
)
def test_the_hosts_bits_in_vfios_words(text: str, state: PeState) -> None:
    assert HostState.parse(text).state is state


@given(words)
def test_the_state_is_the_one_that_vfio_tells_its_holder(hardware: int) -> None:
    """eeh_pe_get_state() of the kernel."""
    bits = Hardware(hardware)
    dma, mmio = bool(bits & Hardware.DMA_ENABLED), bool(bits & Hardware.MMIO_ENABLED)
    if bits & Hardware.RESET_ACTIVE:
        number = 1
    else:
        number = {(True, True): 0, (False, False): 2, (False, True): 4, (True, False): 5}[dma, mmio]
    assert HostState(bits, Software(0)).state is PeState(number)


def test_what_the_kernel_has_noted_is_told_in_words() -> None:
    state = HostState.parse("0x78 0x805")
    assert state.isolated
    assert state.flags == ("isolated", "config blocked")
    assert str(state) == "normal (isolated, config blocked)"
    assert str(HostState.parse("0x28 0x801")) == "DMA stopped (isolated)"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("0x78 0x800", False),
        ("0x78 0x804", True),
        ("0x00 0x805", True),
        ("0x00 0xa05", False),  # a BCM5719 that is frozen, and nothing else
        ("0x78 0xa04", True),
        ("0x04 0xa05", True),
    ],
)
def test_a_reset_is_told_from_a_freeze_that_blocks_config_space(text: str, left: bool) -> None:
    assert HostState.parse(text).reset_left is left
