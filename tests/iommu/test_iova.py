from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pyvfio import errors
from pyvfio.iommu import IovaAllocator, IovaRange

RANGES = (IovaRange(0, 39), IovaRange(48, 79), IovaRange(90, 90))


class AgainstASet(RuleBasedStateMachine):
    """Every address is either in the model's set of free ones or it is not."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.allocator = IovaAllocator(RANGES)
        self.all = {a for r in RANGES for a in range(r.start, r.last + 1)}
        self.free = set(self.all)

    def fits(self, start: int, size: int) -> bool:
        return all(address in self.free for address in range(start, start + size))

    @rule(
        target=taken,
        size=st.integers(1, 42),
        align=st.sampled_from([1, 2, 4, 8, 16, 12]),
        lowest=st.integers(0, 95),
        highest=st.none() | st.integers(0, 100),
    )
    def allocate(
        self, size: int, align: int, lowest: int, highest: int | None
    ) -> tuple[int, int] | None:
        top = 100 if highest is None else highest
        expected = next(
            (
                start
                for start in range(0, 100, align)
                if start >= lowest and start + size - 1 <= top and self.fits(start, size)
            ),
            None,
        )
        if expected is None:
            with pytest.raises(errors.NoSpace):
                self.allocator.allocate(size, align, lowest=lowest, highest=highest)
            return None
        assert self.allocator.allocate(size, align, lowest=lowest, highest=highest) == expected
        self.free -= set(range(expected, expected + size))
        return expected, size

    @rule(target=taken, start=st.integers(0, 99), size=st.integers(1, 12))
    def take(self, start: int, size: int) -> tuple[int, int] | None:
        if not self.fits(start, size):
            with pytest.raises(errors.NoSpace):
                self.allocator.take(start, size)
            return None
        self.allocator.take(start, size)
        self.free -= set(range(start, start + size))
        return start, size

    @rule(what=consumes(taken))
    def give_back(self, what: tuple[int, int] | None) -> None:
        if what is not None:
            self.allocator.free(*what)
            self.free |= set(range(what[0], sum(what)))

    @rule(start=st.integers(0, 99), size=st.integers(1, 12))
    def give_back_what_is_not_taken(self, start: int, size: int) -> None:
        addresses = set(range(start, start + size))
        if addresses & self.free or not addresses <= self.all:
            with pytest.raises(errors.ArgumentError):
                self.allocator.free(start, size)

    @invariant()
    def same_as_the_model(self) -> None:
        ranges = self.allocator.free_ranges
        assert {a for r in ranges for a in range(r.start, r.last + 1)} == self.free
        assert all(a.last + 1 < b.start for a, b in pairwise(ranges))
        assert self.allocator.unused == (self.free == self.all)


TestAgainstASet = AgainstASet.TestCase
TestAgainstASet.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_the_last_address_of_64_bits_can_be_had() -> None:
    allocator = IovaAllocator([IovaRange((1 << 64) - 0x1000, (1 << 64) - 1)])
    assert allocator.allocate(0x1000, 0x1000) == (1 << 64) - 0x1000
    assert allocator.free_ranges == ()


def test_zero_is_an_address() -> None:
    assert IovaAllocator([IovaRange(0, 9)]).allocate(10) == 0


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8))
def test_ranges_that_touch_or_overlap_become_one(pieces: list[tuple[int, int]]) -> None:
    ranges = IovaAllocator(IovaRange(a, a + n - 1) for a, n in pieces).ranges
    assert {x for r in ranges for x in range(r.start, r.last + 1)} == {
        x for a, n in pieces for x in range(a, a + n)
    }
    assert all(a.last + 1 < b.start for a, b in pairwise(ranges))


@pytest.mark.parametrize(("start", "last"), [(-1, 5), (6, 5)])
def test_a_range_that_is_none_is_refused(start: int, last: int) -> None:
    with pytest.raises(errors.ArgumentError):
        IovaAllocator([IovaRange(start, last)])


@pytest.mark.parametrize(("size", "align"), [(0, 1), (-1, 1), (1, 0), (1, -4)])
def test_nonsense_sizes_are_refused(size: int, align: int) -> None:
    allocator = IovaAllocator([IovaRange(0, 99)])
    with pytest.raises(errors.ArgumentError):
        allocator.allocate(size, align)
    with pytest.raises(errors.ArgumentError):
        allocator.take(0, min(size, 0))
    with pytest.raises(errors.ArgumentError):
        allocator.free(0, min(size, 0))
    assert allocator.unused
