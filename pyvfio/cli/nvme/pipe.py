"""From one end to the other, with many pieces under way."""

from __future__ import annotations

import mmap
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from pyvfio import errors
from pyvfio.cli.nvme.ends import Started
from pyvfio.cli.nvme.sizes import words

if TYPE_CHECKING:
    from pyvfio.cli.nvme.ends import End
    from pyvfio.cli.nvme.meter import Meter

PIECE = 1 << 20
"""Bytes of a piece: several commands of most controllers, and whole blocks of any."""
_PIECES = 16


class Pieces:
    """Memory for the pieces under way; what drives a device maps it, so that nothing is copied.

    Attributes:
        memory: all of it, whole pages.
        each: a view of each piece.
    """

    def __init__(self, size: int | None = None) -> None:
        """For a transfer of so many bytes; None if that is not known."""
        count = _PIECES if size is None else min(_PIECES, max(2, -(-size // PIECE)))
        count += count % 2
        self.memory = mmap.mmap(-1, count * PIECE)
        view = memoryview(self.memory)
        self.each = [view[at : at + PIECE] for at in range(0, len(view), PIECE)]


def copy(
    source: End,
    target: End,
    size: int | None,
    pieces: Pieces,
    meter: Meter,
    *,
    pad: bool = False,
) -> int:
    """Copy from the beginning of one end to the beginning of the other, and flush it.

    Half of the pieces are being read while the other half is being written.

    Args:
        size: bytes; None for all that the source has.
        meter: told of each piece, in order, when it has been written.
        pad: fill the last block with zeros.

    Returns:
        Bytes copied, without padding.

    Raises:
        ArgumentError: what the source has is no whole number of the target's blocks, and `pad` is
            not set; the whole blocks are written.
        RangeError: the source has more than the target takes; it is full.
        Error: reading or writing failed.
    """
    free = deque(pieces.each)
    reads: deque[tuple[memoryview, Started]] = deque()
    writes: deque[tuple[memoryview, int, Started]] = deque()
    half = len(free) // 2
    asked = wrote = tail = 0
    ended = full = False
    while True:
        length = PIECE if size is None else min(PIECE, size - asked)
        if length and not ended and free and len(reads) < half:
            piece = free.popleft()
            started = source.read(asked, piece[:length])
            ended = len(started.memory) < length
            asked += len(started.memory)
            reads.append((piece, started))
        elif reads and len(writes) < half:
            piece, started = reads.popleft()
            started.wait()
            count = len(started.memory)
            if target.size is not None and count > target.size - wrote:
                count = target.size - wrote
                ended = full = True
            tail = count % target.grain
            whole = count - tail
            if tail and pad:
                whole += target.grain
                piece[count:whole] = bytes(whole - count)
            writes.append((piece, count, _write(target, wrote, piece[:whole])))
            wrote += count
        elif writes:
            piece, count, started = writes.popleft()
            started.wait()
            meter.advance(count)
            free.append(piece)
        else:
            break
    target.flush()
    if full:
        raise errors.RangeError(
            f"{target.name} is full after {words(wrote)}, and {source.name} has more: "
            "give --size for a part of it"
        )
    if tail and not pad:
        raise not_whole(source.name, wrote, target)
    if size is not None and wrote < size:
        raise errors.RangeError(f"{source.name} ended after {wrote} of {size} bytes")
    return wrote


def _write(target: End, offset: int, memory: memoryview) -> Started:
    # Nothing is left of a piece that is shorter than a block, or comes when all is full.
    return target.write(offset, memory) if len(memory) else Started(memory)


def not_whole(what: str, size: int, target: End) -> errors.ArgumentError:
    """The refusal of what ends within a block."""
    return errors.ArgumentError(
        f"{size} bytes of {what} end {size % target.grain} bytes into a block, and {target.name} "
        f"takes whole blocks of {target.grain}: fill the last one with zeros (--pad), or cut it off"
    )


def compare(source: End, target: End, size: int, pieces: Pieces, meter: Meter) -> None:
    """Read both ends and see that they are the same.

    Raises:
        Different: they are not.
        Error: reading failed.
    """
    pairs = deque(zip(pieces.each[::2], pieces.each[1::2], strict=True))
    under_way: deque[_Pair] = deque()
    for offset in range(0, size, PIECE):
        if not pairs:
            pairs.append(_compared(source, target, under_way.popleft(), meter))
        length = min(PIECE, size - offset)
        pair = pairs.popleft()
        # Whole blocks are read; what the last one has beyond the end is not compared.
        started = [
            end.read(offset, memory[: -(-length // end.grain) * end.grain])
            for end, memory in zip((source, target), pair, strict=True)
        ]
        under_way.append(_Pair(offset, length, pair, started))
    for pair_under_way in under_way:
        _compared(source, target, pair_under_way, meter)


class Different(errors.Error):
    """What was read back is not what was written."""


class _Pair(NamedTuple):
    offset: int
    length: int
    memory: tuple[memoryview, memoryview]
    started: list[Started]


def _compared(source: End, target: End, pair: _Pair, meter: Meter) -> tuple[memoryview, memoryview]:
    """Wait for a pair and compare it; its memory."""
    for started in pair.started:
        started.wait()
    # Bytes are compared at once, memoryviews item by item.
    one, other = (bytes(started.memory[: pair.length]) for started in pair.started)
    if one != other:
        different = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        at = pair.offset + next(different, min(len(one), len(other)))
        raise Different(f"{target.name} differs from {source.name} at byte {at} ({at:#x})")
    meter.advance(pair.length)
    return pair.memory
