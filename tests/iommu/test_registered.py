from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pyvfio import errors
from pyvfio.iommu.registered import RegisteredMemory


class Kernel:
    """What the kernel keeps to: no byte twice, and only what was registered as a whole goes."""

    def __init__(self) -> None:
        self.pieces: set[tuple[int, int]] = set()
        self.refuse_at: int | None = None
        self.keep: set[tuple[int, int]] = set()

    def register(self, address: int, size: int) -> None:
        end = address + size
        assert size > 0
        assert not any(start < end and address < start + length for start, length in self.pieces)
        if self.refuse_at is not None and address <= self.refuse_at < end:
            raise MemoryError
        self.pieces.add((address, size))

    def unregister(self, address: int, size: int) -> None:
        if (address, size) in self.keep:
            raise errors.KernelError(errno.EBUSY, "UNREGISTER", "container")
        self.pieces.remove((address, size))


class HeldPages(RuleBasedStateMachine):
    """However often, and in whatever parts: what is held is registered, and nothing stays."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel()
        self.memory = RegisteredMemory(self.kernel.register, self.kernel.unregister)
        self.holds: list[tuple[int, int]] = []

    def registered(self) -> set[int]:
        return {page for start, size in self.kernel.pieces for page in range(start, start + size)}

    @rule(target=held, start=st.integers(0, 20), size=st.integers(1, 12))
    def hold(self, start: int, size: int) -> tuple[int, int]:
        self.memory.hold(start, size)
        self.holds.append((start, size))
        return start, size

    @rule(what=consumes(held))
    def release(self, what: tuple[int, int]) -> None:
        self.memory.release(*what)
        self.holds.remove(what)

    @rule(start=st.integers(0, 20), size=st.integers(1, 12), at=st.integers(0, 32))
    def refused(self, start: int, size: int, at: int) -> None:
        before = set(self.kernel.pieces)
        if at in self.registered() or not start <= at < start + size:
            return
        self.kernel.refuse_at = at
        with pytest.raises(MemoryError):
            self.memory.hold(start, size)
        self.kernel.refuse_at = None
        assert self.kernel.pieces == before

    @invariant()
    def what_is_held_is_registered(self) -> None:
        held = {page for start, size in self.holds for page in range(start, start + size)}
        assert held <= self.registered()
        if not self.holds:
            assert not self.kernel.pieces


TestHeldPages = HeldPages.TestCase


def test_a_piece_goes_with_the_last_who_needs_it() -> None:
    kernel = Kernel()
    memory = RegisteredMemory(kernel.register, kernel.unregister)
    memory.hold(0, 4)
    memory.hold(2, 4)
    assert kernel.pieces == {(0, 4), (4, 2)}
    memory.release(0, 4)
    assert kernel.pieces == {(0, 4), (4, 2)}
    memory.release(2, 4)
    assert kernel.pieces == set()


def test_what_is_refused_stays_known_and_is_tried_again() -> None:
    kernel = Kernel()
    memory = RegisteredMemory(kernel.register, kernel.unregister)
    again: tuple[Callable[[], None], ...] = (
        lambda: memory.hold(20, 1),
        lambda: memory.release(20, 1),
        memory.retry,
        memory.clear,
    )
    for step in again:
        memory.hold(0, 4)
        kernel.keep = {(0, 4)}
        with pytest.raises(errors.KernelError):
            memory.release(0, 4)
        kernel.keep = set()
        step()
        assert (0, 4) not in kernel.pieces


def test_what_is_refused_can_be_held_again() -> None:
    kernel = Kernel()
    memory = RegisteredMemory(kernel.register, kernel.unregister)
    memory.hold(0, 4)
    kernel.keep = {(0, 4)}
    with pytest.raises(errors.KernelError):
        memory.release(0, 4)
    memory.hold(2, 4)
    kernel.keep = set()
    memory.hold(10, 1)
    assert kernel.pieces == {(0, 4), (4, 2), (10, 1)}
    memory.release(2, 4)
    assert kernel.pieces == {(10, 1)}


def test_a_hold_that_cannot_be_undone_stays_known() -> None:
    kernel = Kernel()
    memory = RegisteredMemory(kernel.register, kernel.unregister)
    memory.hold(2, 1)
    kernel.keep, kernel.refuse_at = {(0, 2)}, 4
    with pytest.raises(errors.KernelError):
        memory.hold(0, 5)
    kernel.keep, kernel.refuse_at = set(), None
    memory.hold(0, 5)
    memory.release(0, 5)
    memory.release(2, 1)
    assert kernel.pieces == set()
