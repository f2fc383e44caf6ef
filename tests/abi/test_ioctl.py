"""ioctl numbers and their encodings."""

from __future__ import annotations

import ctypes
import os
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.abi import kvm, kvm_x86, vfio
from pyvfio.abi.ioctl import (
    GENERIC,
    HOST,
    IO,
    IOR,
    IOWR,
    POWERPC,
    Direction,
    Encoding,
    Request,
)

# Bits of the direction field, from the two asm/ioctl.h.
DIRECTIONS = {
    GENERIC: {
        0: Direction.NONE,
        1: Direction.WRITE,
        2: Direction.READ,
        3: Direction.READ | Direction.WRITE,
    },
    POWERPC: {
        1: Direction.NONE,
        2: Direction.READ,
        4: Direction.WRITE,
        6: Direction.READ | Direction.WRITE,
    },
}


@pytest.mark.parametrize(
    ("request_", "generic", "powerpc"),
    [
        (vfio.VFIO_GET_API_VERSION, 0x3B64, 0x20003B64),
        (vfio.VFIO_DEVICE_SET_IRQS, 0x3B6E, 0x20003B6E),
        (vfio.VFIO_EEH_PE_OP, 0x3B79, 0x20003B79),
        (kvm.KVM_GET_API_VERSION, 0xAE00, 0x2000AE00),
        (kvm.KVM_SET_GSI_ROUTING, 0x4008AE6A, 0x8008AE6A),
        (kvm.KVM_IRQFD, 0x4020AE76, 0x8020AE76),
        (kvm.KVM_SIGNAL_MSI, 0x4020AEA5, 0x8020AEA5),
        (kvm.KVM_CREATE_DEVICE, 0xC00CAEE0, 0xC00CAEE0),
        (kvm.KVM_SET_DEVICE_ATTR, 0x4018AEE1, 0x8018AEE1),
        (IOR("TUNGETIFF", ord("T"), 210, ctypes.c_uint), 0x800454D2, 0x400454D2),
    ],
    ids=lambda value: value.name if isinstance(value, Request) else None,
)
def test_known_numbers(request_: Request, generic: int, powerpc: int) -> None:
    assert request_.encode(GENERIC) == generic
    assert request_.encode(POWERPC) == powerpc


@given(
    encoding=st.sampled_from([GENERIC, POWERPC]),
    direction=st.sampled_from(list(DIRECTIONS[GENERIC].values())),
    type=st.integers(0, 0xFF),
    nr=st.integers(0, 0xFF),
    size=st.integers(0, (1 << 13) - 1),
)
def test_what_is_encoded_decodes_back(
    encoding: Encoding, direction: Direction, type: int, nr: int, size: int
) -> None:
    request = Request("X", direction, type, nr, size)
    number = request.encode(encoding)
    assert 0 <= number < 1 << 32
    assert number & 0xFF == nr
    assert number >> 8 & 0xFF == type
    assert number >> 16 & (1 << encoding.size_bits) - 1 == size
    assert DIRECTIONS[encoding][number >> (16 + encoding.size_bits)] == direction


def test_the_host_has_the_encoding_of_its_architecture() -> None:
    assert (HOST is POWERPC) == os.uname().machine.startswith("ppc")
    assert vfio.VFIO_GET_API_VERSION.encode(HOST) == vfio.VFIO_GET_API_VERSION


def test_a_request_says_what_it_is() -> None:
    request = IOWR("EXAMPLE", 0xAE, 5, ctypes.c_uint64)
    assert request.name == "EXAMPLE"
    assert request.direction == Direction.READ | Direction.WRITE
    assert (request.type, request.nr, request.size) == (0xAE, 5, 8)
    assert repr(request) == f"<EXAMPLE {int(request):#x}>"
    assert IO("PLAIN", 0xAE, 5).direction == Direction.NONE


@pytest.mark.parametrize("module", [vfio, kvm, kvm_x86])
def test_every_request_knows_its_name(module: ModuleType) -> None:
    requests = {name: v for name, v in vars(module).items() if isinstance(v, Request)}
    assert len(requests) >= 20
    assert {name: request.name for name, request in requests.items()} == {n: n for n in requests}
