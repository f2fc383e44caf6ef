"""Which I/O virtual addresses are free."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from pyvfio import errors


class IovaRange(NamedTuple):
    """Addresses from `start` to `last`, both included, so that 2**64 - 1 can be one."""

    start: int
    last: int

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.last:#x}"


class IovaAllocator:
    """Hands out addresses from given ranges, lowest first; what comes back merges.

    0 is an address like any other. Sizes are bytes.

    Attributes:
        ranges: all that may be handed out, sorted, none touching another.
    """

    def __init__(self, ranges: Iterable[IovaRange]) -> None:
        merged: list[IovaRange] = []
        for start, last in sorted(ranges):
            if not 0 <= start <= last:
                raise errors.ArgumentError(f"{start:#x}-{last:#x} is no range of addresses")
            if merged and start <= merged[-1].last + 1:
                merged[-1] = IovaRange(merged[-1].start, max(last, merged[-1].last))
            else:
                merged.append(IovaRange(start, last))
        self.ranges = tuple(merged)
        # What is free, sorted; no two free ranges touch.
        self._starts = [r.start for r in merged]
        self._lasts = [r.last for r in merged]

    @property
    def free_ranges(self) -> tuple[IovaRange, ...]:
        """What is free now."""
        return tuple(map(IovaRange, self._starts, self._lasts))

    @property
    def unused(self) -> bool:
        """Whether everything is free."""
        return self.free_ranges == self.ranges

    def allocate(
        self, size: int, align: int = 1, *, lowest: int = 0, highest: int | None = None
    ) -> int:
        """Take the lowest free range that fits.

        Args:
            size: bytes.
            align: the start is a multiple of this.
            lowest: where to begin.
            highest: the last address that may be part of it; None for no limit.

        Returns:
            Its first address.

        Raises:
            NoSpace: nothing free fits.
        """
        if size <= 0 or align <= 0:
            raise errors.ArgumentError(f"size {size} and alignment {align} must be positive")
        for index in range(bisect_left(self._lasts, lowest), len(self._starts)):
            start = -(-max(self._starts[index], lowest) // align) * align
            last = start + size - 1
            if highest is not None and last > highest:
                break
            if last <= self._lasts[index]:
                self._cut(index, start, last)
                return start
        below = "" if highest is None else f" up to {highest:#x}"
        raise errors.NoSpace(
            f"no {size:#x} free bytes aligned to {align:#x} in the IOVA space{below}: "
            "close buffers or mappings that are no longer needed"
        )

    def take(self, start: int, size: int) -> None:
        """Take these very addresses.

        Raises:
            NoSpace: they are not all free.
        """
        last = start + size - 1
        index = bisect_right(self._starts, start) - 1
        if size <= 0 or index < 0 or last > self._lasts[index]:
            raise errors.NoSpace(f"IOVA {start:#x}-{last:#x} is not free")
        self._cut(index, start, last)

    def free(self, start: int, size: int) -> None:
        """Give back what was handed out, as a whole or in parts.

        Raises:
            ArgumentError: it is not all handed out.
        """
        last = start + size - 1
        starts, lasts = self._starts, self._lasts
        index = bisect_right(starts, start)  # the first free range behind it
        if (
            size <= 0
            or not any(r.start <= start and last <= r.last for r in self.ranges)
            or (index > 0 and lasts[index - 1] >= start)
            or (index < len(starts) and starts[index] <= last)
        ):
            raise errors.ArgumentError(f"IOVA {start:#x}-{last:#x} was not allocated")
        first = index
        if first > 0 and lasts[first - 1] == start - 1:
            first -= 1
            start = starts[first]
        if index < len(starts) and starts[index] == last + 1:
            last = lasts[index]
            index += 1
        starts[first:index] = [start]
        lasts[first:index] = [last]

    def _cut(self, index: int, start: int, last: int) -> None:
        """Take start..last out of the free range at `index`."""
        left, right = self._starts[index], self._lasts[index]
        rest = []
        if left < start:
            rest.append((left, start - 1))
        if last < right:
            rest.append((last + 1, right))
        self._starts[index : index + 1] = [piece[0] for piece in rest]
        self._lasts[index : index + 1] = [piece[1] for piece in rest]
