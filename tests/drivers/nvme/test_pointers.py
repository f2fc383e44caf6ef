"""PRP 1, PRP 2 and the list stand for exactly the bytes that were asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.drivers.nvme.queue import ENTRY, Queue

from .model import Memory, walk

DEPTH = 4
MOST = 512  # pages of one command


def make_queue(memory: Memory, page: int) -> Queue:
    queue = Queue(
        1,
        DEPTH,
        SimpleNamespace(),  # type: ignore[arg-type]
        alloc=memory.alloc,
        write32=lambda offset, value: None,
        stride=4,
        page=page,
        timeout=1.0,
    )
    queue.run()
    return queue


@st.composite
def places(draw: st.DrawFn) -> tuple[int, int, int]:
    """(page, IOVA, size), often just at the borders."""
    page = 4096 << draw(st.integers(0, 4))
    offset = draw(st.one_of(st.sampled_from([0, 4, page - 4]), st.integers(0, page // 4 - 1)))
    offset = offset if offset in (0, 4, page - 4) else 4 * offset
    iova = draw(st.integers(0, (1 << 63) // page)) * page + offset
    pages = draw(st.one_of(st.integers(0, 3), st.integers(0, MOST), st.just(MOST)))
    size = pages * page + draw(st.sampled_from([-page // 2, -4, 0, 4, 512, page - offset]))
    return page, iova, min(max(size, 4), MOST * page)


@settings(max_examples=150)
@given(places(), st.booleans())
def test_pointers(place: tuple[int, int, int], many: bool) -> None:
    page, iova, size = place
    memory = Memory()
    queue = make_queue(memory, page)
    before = bytes(queue._lists.view)
    work: Any = SimpleNamespace(timeout=1.0)
    if many:
        (identifier,) = queue.place_blocks(work, 2, 1, size, 0, [7], [iova])
    else:
        placed = queue.place(work, 2, 1, iova, size, (7, 0, 0, 0, 0, 0))
        assert placed is not None
        identifier = placed
    first, namespace, one, two, *dwords = ENTRY.unpack_from(queue._entries, 0)
    assert (first, namespace, dwords) == (2 | identifier << 16, 1, [7, 0, 0, 0, 0, 0])
    at = iova
    for piece, count in walk(memory, page, (one, two), size):
        assert piece == at
        at += count
    assert at == iova + size
    # The pages of pointers of other commands are theirs.
    mine = slice(identifier * page, (identifier + 1) * page)
    after = bytes(queue._lists.view)
    assert before[: mine.start] == after[: mine.start]
    assert before[mine.stop :] == after[mine.stop :]


@given(
    st.lists(st.integers(0, (1 << 64) - 1), max_size=6),
    st.integers(1, 8),
    st.integers(1, 4096),
    st.integers(0, 255),
)
def test_many_are_as_each(lbas: list[int], offset: int, pages: int, opcode: int) -> None:
    """place_blocks() writes what place() does, and as many as there is room for."""
    size = pages % 5 * 4096 + 512
    iovas = [4 * offset + size * number for number in range(len(lbas))]
    work: Any = SimpleNamespace(timeout=1.0)
    memory = Memory()
    one, other = make_queue(memory, 4096), make_queue(memory, 4096)
    placed = one.place_blocks(work, opcode, 3, size, 7, lbas, iovas)
    each = [
        other.place(work, opcode, 3, iova, size, (lba & 0xFFFFFFFF, lba >> 32, 7, 0, 0, 0))
        for lba, iova in zip(lbas, iovas, strict=True)
    ]
    assert placed == [identifier for identifier in each if identifier is not None]
    assert len(placed) == min(len(lbas), DEPTH - 1)
    for at in range(len(placed)):
        entry, expected = (ENTRY.unpack_from(q._entries, 64 * at) for q in (one, other))
        assert entry[:3] + entry[4:] == expected[:3] + expected[4:]
        assert [
            list(walk(memory, 4096, (iova, two), size)) for iova, two in (entry[2:4], expected[2:4])
        ] == 2 * [list(walk(memory, 4096, (entry[2], entry[3]), size))]
    assert one.under_way == other.under_way == len(placed)
