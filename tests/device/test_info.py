"""Region information: whatever the kernel answers, it is used only if it makes sense."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio._sys import File, calls
from pyvfio.abi import vfio
from pyvfio.device import Area, info

FIXED = ctypes.sizeof(vfio.vfio_region_info)
MMAP = vfio.VFIO_REGION_INFO_FLAG_MMAP
CAPS = vfio.VFIO_REGION_INFO_FLAG_CAPS


class Kernel:
    """Answers GET_REGION_INFO with flags, a size and a chain of capabilities."""

    def __init__(self, flags: int, size: int, chain: bytes, first: int = FIXED) -> None:
        self.flags, self.size, self.chain, self.first = flags, size, chain, first

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        if request != vfio.VFIO_DEVICE_GET_REGION_INFO:
            raise OSError(errno.ENOTTY, "")
        room, _, index = struct.unpack_from("<III", argument)
        need = FIXED + len(self.chain)
        told = room >= need
        first = self.first if told and self.chain else 0
        struct.pack_into("<IIIIQQ", argument, 0, need, self.flags, index, first, self.size, 0)
        if told:
            argument[FIXED:need] = self.chain
        return 0


def ask(kernel: Kernel) -> info.RegionInfo | None:
    with pytest.MonkeyPatch.context() as patch, File(os.memfd_create("device"), "device") as file:
        patch.setattr(calls, "ioctl", kernel.ioctl)
        return info.region_info(file, 0)


def capability(id: int, body: bytes, next: int = 0) -> bytes:
    return struct.pack("<HHI", id, 1, next) + body


def sparse(*areas: tuple[int, int], count: int | None = None, next: int = 0) -> bytes:
    body = struct.pack("<II", len(areas) if count is None else count, 0)
    body += b"".join(struct.pack("<QQ", *area) for area in areas)
    return capability(vfio.VFIO_REGION_INFO_CAP_SPARSE_MMAP, body, next)


def test_a_region_without_capabilities_maps_whole_or_not_at_all() -> None:
    found = ask(Kernel(MMAP, 0x1000, b""))
    assert found is not None
    assert found.areas == (Area(0, 0x1000),)
    found = ask(Kernel(0, 0x1000, b""))
    assert found is not None
    assert found.areas == ()


def test_sparse_areas_and_type_are_read_from_one_chain() -> None:
    first = sparse((0, 0x1000), (0x3000, 0x1000))
    second = capability(vfio.VFIO_REGION_INFO_CAP_TYPE, struct.pack("<II", 5, 6))
    third = capability(vfio.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, b"")
    offsets = [FIXED + len(first), FIXED + len(first) + len(second)]
    chain = first[:4] + struct.pack("<I", offsets[0]) + first[8:]
    chain += second[:4] + struct.pack("<I", offsets[1]) + second[8:] + third
    found = ask(Kernel(MMAP | CAPS, 0x4000, chain))
    assert found is not None
    assert found.areas == (Area(0, 0x1000), Area(0x3000, 0x1000))
    assert found.kind == (5, 6)


@pytest.mark.parametrize(
    "chain",
    [
        sparse((0, 0x5000)),
        sparse((0x3000, 0x2000)),
        sparse((0, 0x1000), count=2),
        sparse((0, 0x1000), count=1 << 30),
        sparse((0, 0x1000), next=FIXED),
        sparse((0, 0x1000), next=FIXED + 100),
        sparse((0, 0x1000), next=8),
        capability(vfio.VFIO_REGION_INFO_CAP_TYPE, b"1234"),
    ],
    ids=["too long", "beyond", "cut off", "absurd", "circle", "outside", "into the head", "short"],
)
def test_a_chain_that_makes_no_sense_is_an_error(chain: bytes) -> None:
    with pytest.raises(errors.KernelError) as caught:
        ask(Kernel(MMAP | CAPS, 0x4000, chain))
    assert caught.value.errno == errno.EPROTO


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_arbitrary_answers_never_yield_an_area_outside_the_region(
    chain: bytes, first: int, size: int
) -> None:
    try:
        found = ask(Kernel(MMAP | CAPS, size, chain, first))
    except errors.KernelError as error:
        event(f"refused: errno {error.errno}")
        return
    assert found is not None
    assert all(area.end <= size for area in found.areas)


def test_an_index_that_the_kernel_does_not_know_is_no_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(calls, "ioctl", refuse)
    with File(os.memfd_create("device"), "device") as file:
        assert info.region_info(file, 99) is None
        assert info.irq_info(file, 99) is None
        with pytest.raises(errors.KernelError):
            info.device_info(file)
