from __future__ import annotations

import contextlib
import ctypes
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.abi import vfio
from pyvfio.iommu import IovaRange
from pyvfio.iommu.info import capabilities, parse_type1_info

from .standin import type1_info

U64 = st.integers(0, (1 << 64) - 1)
# Below the largest page that a host may have: the last page is left out.
IOVA = st.integers(0, (1 << 64) - (1 << 16) - 1)
FIXED = ctypes.sizeof(vfio.vfio_iommu_type1_info)


def chain(*headers: tuple[int, int, int]) -> bytes:
    """Capability headers, one behind the other: (id, version, next)."""
    return b"".join(
        bytes(vfio.vfio_info_cap_header(id=i, version=v, next=n)) for i, v, n in headers
    )


@given(
    st.lists(st.tuples(IOVA, IOVA).map(lambda pair: (min(pair), max(pair))), max_size=9),
    U64,
    st.none() | st.integers(0, (1 << 32) - 1),
)
def test_what_the_kernel_says_is_read_back(
    ranges: list[tuple[int, int]], page_sizes: int, available: int | None
) -> None:
    info = parse_type1_info(type1_info(ranges, page_sizes, available))
    assert info.ranges == tuple(sorted(ranges))
    assert info.page_sizes == page_sizes
    assert info.mappings_available == available


@pytest.mark.parametrize("page", [4096, 65536])
def test_last_page_of_64_bits_is_left_out(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvfio.iommu.info.PAGE_SIZE", page)
    highest = (1 << 64) - 1
    answer = type1_info([(0, 0xFFFF), (1 << 32, highest)], 0x40201000, None)
    assert parse_type1_info(answer).ranges == (
        IovaRange(0, 0xFFFF),
        IovaRange(1 << 32, highest - page),
    )
    answer = type1_info([(0, 0xFFFF), (highest + 1 - page, highest)], 0x40201000, None)
    assert parse_type1_info(answer).ranges == (IovaRange(0, 0xFFFF),)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_read_or_refused(data: bytes, with_capabilities: bool) -> None:
    if with_capabilities and len(data) > 24:
        data = data[:4] + b"\3" + data[5:16] + b"\x18\0\0\0" + data[20:]
    with contextlib.suppress(errors.KernelError):
        assert all(r.start <= r.last for r in parse_type1_info(data).ranges)


@given(st.data())
def test_a_cut_answer_is_refused_or_read(data: st.DataObject) -> None:
    whole = type1_info([(0, 9), (20, 29)], 0x1000, 5)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(errors.KernelError, match="makes no sense"):
        parse_type1_info(cut)


def test_a_kernel_that_gives_no_ranges_is_taken_for_39_bits() -> None:
    info = vfio.vfio_iommu_type1_info(flags=vfio.VFIO_IOMMU_INFO_PGSIZES, iova_pgsizes=0x1000)
    assert parse_type1_info(bytes(info)).ranges == (IovaRange(0, (1 << 39) - 1),)


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(errors.KernelError, match="range from 0x9 to 0x8"):
        parse_type1_info(type1_info([(9, 8)], 0x1000, 1))


def test_the_chain_is_walked() -> None:
    data = bytes(16) + chain((1, 2, 32), (3, 4, 24)) + chain((5, 6, 0))
    # 16 -> 32 -> nothing: the one at 24 is not in the chain
    assert [(c.id, c.version) for c in capabilities(data, 16, 16)] == [(1, 2), (5, 6)]
    assert list(capabilities(data, 0, 16)) == []


@pytest.mark.parametrize(
    ("data", "first", "message"),
    [
        (bytes(16) + chain((1, 1, 16)), 16, "circle"),
        (bytes(16) + chain((1, 1, 24), (1, 1, 16)), 16, "circle"),
        (bytes(16) + chain((1, 1, 8)), 16, "at 0x8"),
        (bytes(16) + chain((1, 1, 25), (1, 1, 0)), 16, "at 0x19"),
        (bytes(16), 0xFFFFFFFF, "at 0xffffffff"),
    ],
    ids=["itself", "circle", "into the structure", "beyond the end", "nowhere"],
)
def test_a_broken_chain_is_refused(data: bytes, first: int, message: str) -> None:
    with pytest.raises(errors.KernelError, match=message) as caught:
        list(capabilities(data, first, 16))
    assert caught.value.errno == errno.EPROTO


@given(st.binary(min_size=16, max_size=120), st.integers(0, 130))
def test_any_chain_ends(data: bytes, first: int) -> None:
    try:
        found = list(capabilities(data, first, 16))
    except errors.KernelError:
        return
    assert len(found) <= len(data)
