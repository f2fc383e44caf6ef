"""The guest's MSI-X table: what the PCI specification says that a write means.

A state machine drives it against a model of one line a rule; what it tells its follower is what the
model says, and no interrupt is lost or sent twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvfio import errors
from pyvfio.device.msix import MsixEntry
from pyvfio.irqroute import VirtualMsix

from .rig import ENABLE, MASKALL

VECTORS = 70  # more than one quadword of pending bits
FEW = st.sampled_from([0, 1, 31, 32, 63, 64, 69])
WORDS = st.integers(0, 0xFFFFFFFF)


class Refused(errors.KernelError):
    def __init__(self) -> None:
        super().__init__(22, "VFIO_DEVICE_SET_IRQS", "a device")


class Recorder:
    """A follower that knows which vectors are on, and takes interrupts as VFIO and KVM do."""

    def __init__(self) -> None:
        self.on: set[int] = set()
        self.enabled = False
        self.delivered: list[int] = []
        self.kept: set[int] = set()
        self.refusing = False

    def _may(self) -> None:
        if self.refusing:
            raise Refused

    def enable(self, vectors: Sequence[int]) -> None:
        assert not self.enabled
        self._may()
        self.enabled, self.on = True, set(vectors)

    def disable(self) -> None:
        assert self.enabled
        self.enabled, self.on, self.kept = False, set(), set()
        self._may()

    def unmask(self, vectors: Sequence[int]) -> None:
        assert self.enabled
        assert not self.on & set(vectors)
        self._may()
        self.on |= set(vectors)

    def mask(self, vectors: Sequence[int]) -> None:
        assert self.enabled
        assert self.on >= set(vectors)
        self._may()
        self.on -= set(vectors)

    def deliver(self, vector: int) -> None:
        assert vector in self.on
        self.delivered.append(vector)

    def arrived(self, vectors: Iterable[int]) -> Iterable[int]:
        found = self.kept & set(vectors)
        self.kept -= found
        return found

    def fire(self, vector: int) -> None:
        """The device interrupts."""
        if vector in self.on:
            self.delivered.append(vector)
        elif self.enabled:
            self.kept.add(vector)


class Table(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.follower = Recorder()
        self.msix = VirtualMsix(VECTORS, self.follower)
        self.wipe()
        self.enabled = self.masked = False

    def wipe(self) -> None:
        self.rows: dict[int, list[int]] = {v: [0, 0, 0, 1] for v in range(VECTORS)}
        self.pending: set[int] = set()
        self.due: list[int] = []

    # The model.

    def sends(self, vector: int) -> bool:
        return self.enabled and not self.masked and not self.rows[vector][3]

    def settle(self) -> None:
        """What is pending and may be sent is sent."""
        if not self.enabled:
            self.pending.clear()
        now = sorted(vector for vector in self.pending if self.sends(vector))
        self.pending -= set(now)
        self.due += now

    # What a guest and a device do.

    @rule(enabled=st.booleans(), masked=st.booleans())
    def write_control(self, enabled: bool, masked: bool) -> None:
        self.msix.control = ENABLE * enabled | MASKALL * masked | 0x7FF
        self.enabled, self.masked = enabled, masked
        self.settle()

    @rule(on=st.booleans())
    def write_enable(self, on: bool) -> None:
        self.msix.enabled = self.enabled = on
        self.settle()

    @rule(on=st.booleans())
    def write_function_mask(self, on: bool) -> None:
        self.msix.function_masked = self.masked = on
        self.settle()

    @rule(vector=FEW, word=st.integers(0, 3), value=WORDS)
    def write_dword(self, vector: int, word: int, value: int) -> None:
        self.msix.write_table(16 * vector + 4 * word, value)
        self.rows[vector][word] = value & 1 if word == 3 else value
        self.settle()

    @rule(vector=FEW, half=st.integers(0, 1), low=WORDS, high=WORDS)
    def write_qword(self, vector: int, half: int, low: int, high: int) -> None:
        self.msix.write_table(16 * vector + 8 * half, high << 32 | low, 8)
        self.rows[vector][2 * half] = low
        self.rows[vector][2 * half + 1] = high & 1 if half else high
        self.settle()

    @rule(vector=FEW, masked=st.booleans(), address=st.integers(0, 2**64 - 1), data=WORDS)
    def write_entry(self, vector: int, masked: bool, address: int, data: int) -> None:
        self.msix[vector] = MsixEntry(address, data, masked)
        self.rows[vector] = [address & 0xFFFFFFFF, address >> 32, data, int(masked)]
        self.settle()

    @rule(vector=FEW)
    def mask(self, vector: int) -> None:
        self.write_dword(vector, 3, 1)

    @rule(vector=FEW)
    def unmask(self, vector: int) -> None:
        self.write_dword(vector, 3, 0)

    @rule(vector=FEW)
    def software_interrupts(self, vector: int) -> None:
        assert self.msix.interrupt(vector) == self.sends(vector)
        if self.enabled and not self.sends(vector):
            self.pending.add(vector)

    @rule(vector=FEW)
    def device_interrupts(self, vector: int) -> None:
        self.follower.fire(vector)
        if self.sends(vector):
            self.due.append(vector)
        elif self.enabled:
            self.pending.add(vector)

    @rule()
    def reset(self) -> None:
        self.msix.reset()
        self.enabled = self.masked = False
        due = self.due
        self.wipe()
        self.due = due

    @precondition(lambda self: self.enabled)
    @rule(vector=FEW, mask=st.booleans(), data=WORDS)
    def a_refusal_undoes_the_write(self, vector: int, mask: bool, data: int) -> None:
        sent = self.sends(vector)
        self.follower.refusing = True
        try:
            if self.masked or sent is not mask:
                return
            with pytest.raises(Refused):
                self.msix.write_table(16 * vector + 8, mask << 32 | data, 8)
            with pytest.raises(Refused):
                self.msix.function_masked = True
            if not sent:
                with pytest.raises(Refused):
                    self.msix[vector] = MsixEntry(0, data, False)
        finally:
            self.follower.refusing = False

    # What can be seen.

    @invariant()
    def entries_are_as_written(self) -> None:
        for vector in (0, 1, 31, 32, 63, 64, 69):
            low, high, data, masked = self.rows[vector]
            assert self.msix[vector] == MsixEntry(high << 32 | low, data, bool(masked))
            assert self.msix.read_table(16 * vector, 8) == high << 32 | low
            assert self.msix.read_table(16 * vector + 12) == masked

    @invariant()
    def control_is_as_written(self) -> None:
        assert self.msix.control == ENABLE * self.enabled | MASKALL * self.masked | VECTORS - 1
        assert (self.msix.enabled, self.msix.function_masked) == (self.enabled, self.masked)

    @invariant()
    def those_are_on_that_may_send(self) -> None:
        assert self.follower.enabled == self.enabled
        assert self.follower.on == {vector for vector in self.rows if self.sends(vector)}

    @invariant()
    def every_interrupt_was_sent_once(self) -> None:
        assert sorted(self.follower.delivered) == sorted(self.due)

    @rule(vector=FEW)
    def look_at_a_pending_bit(self, vector: int) -> None:
        assert self.msix.is_pending(vector) == (vector in self.pending)

    @rule()
    def look_at_pending_bits(self) -> None:
        expected = sum(1 << vector for vector in self.pending)
        assert self.msix.read_pending(0, 8) | self.msix.read_pending(8, 8) << 64 == expected
        words = [self.msix.read_pending(4 * word) for word in range(4)]
        assert sum(word << 32 * place for place, word in enumerate(words)) == expected


Table.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTable = Table.TestCase


def table(entries: int = 4) -> tuple[VirtualMsix, Recorder]:
    follower = Recorder()
    return VirtualMsix(entries, follower), follower


def test_it_begins_as_after_a_reset() -> None:
    msix, _ = table()
    assert list(msix) == [MsixEntry(0, 0, True)] * 4
    assert msix.control == 3
    assert repr(msix) == "<VirtualMsix 4 vectors, disabled>"


def test_a_disabled_table_is_kept_and_its_pending_bits_are_not() -> None:
    msix, _ = table()
    msix[0] = MsixEntry(1, 2, False)
    msix.control = ENABLE | MASKALL
    msix.interrupt(0)
    msix.enabled = False
    assert msix[0] == MsixEntry(1, 2, False)
    assert msix.function_masked
    assert not msix.is_pending(0)
    assert not msix.interrupt(0)
    assert not msix.is_pending(0), "disabled, the device uses INTx"


def test_a_new_message_while_unmasked_waits_for_the_next_unmasking() -> None:
    msix, follower = table()
    msix[0] = MsixEntry(1, 2, False)
    msix.enabled = True
    follower.refusing = True  # nobody is asked
    msix.write_table(8, 5)
    assert msix[0] == MsixEntry(1, 5, False)


def test_a_refused_retarget_leaves_the_old_message_masked_where_nothing_works() -> None:
    msix, follower = table()
    msix[0] = MsixEntry(1, 2, False)
    msix.enabled = True
    real = follower.mask

    def mask_then_refuse(vectors: Sequence[int]) -> None:
        real(vectors)
        follower.refusing = True

    follower.mask = mask_then_refuse  # type: ignore[method-assign]
    with pytest.raises(Refused):
        msix[0] = MsixEntry(3, 4, False)
    assert msix[0] == MsixEntry(1, 2, True)
    follower.refusing = False
    msix.write_table(12, 0)
    assert follower.on == {0}


def test_what_cannot_be_disabled_is_disabled_all_the_same() -> None:
    msix, follower = table()
    msix.enabled = True
    follower.refusing = True
    with pytest.raises(Refused):
        msix.reset()
    assert not msix.enabled
    msix.reset()


def test_what_cannot_be_enabled_is_not() -> None:
    msix, follower = table()
    follower.refusing = True
    with pytest.raises(Refused):
        msix.control = ENABLE | MASKALL
    assert msix.control == 3


@pytest.mark.parametrize("width", [1, 2, 3, 16, 0, -4])
def test_other_widths_are_undefined(width: int) -> None:
    msix, _ = table()
    for access in (
        lambda: msix.read_table(0, width),
        lambda: msix.write_table(0, 0, width),
        lambda: msix.read_pending(0, width),
    ):
        with pytest.raises(errors.ArgumentError, match="4 or 8"):
            access()


@pytest.mark.parametrize(("offset", "width"), [(2, 4), (4, 8), (1, 8), (-2, 4)])
def test_so_are_other_alignments(offset: int, width: int) -> None:
    msix, _ = table()
    with pytest.raises(errors.ArgumentError, match="aligned"):
        msix.read_table(offset, width)
    with pytest.raises(errors.ArgumentError, match="aligned"):
        msix.write_table(offset, 0, width)
    with pytest.raises(errors.ArgumentError, match="aligned"):
        msix.read_pending(offset, width)


def test_there_is_nothing_beyond_the_end() -> None:
    msix, _ = table()
    assert msix.read_table(56, 8) == 1 << 32
    for offset, width in ((64, 4), (64, 8), (-4, 4), (-8, 8)):
        with pytest.raises(errors.RangeError, match="64 bytes"):
            msix.read_table(offset, width)
        with pytest.raises(errors.RangeError, match="64 bytes"):
            msix.write_table(offset, 0, width)
    assert msix.read_pending(4) == 0, "pending bits come in quadwords"
    for offset, width in ((8, 4), (8, 8), (-4, 4)):
        with pytest.raises(errors.RangeError, match="8 bytes"):
            msix.read_pending(offset, width)


def test_there_is_no_vector_beyond_the_last() -> None:
    msix, _ = table()
    for vector in (4, -1):
        for access in (msix.sends, msix.interrupt, msix.is_pending, msix.__getitem__):
            with pytest.raises(errors.RangeError, match=f"no {vector}"):
                access(vector)
        with pytest.raises(errors.RangeError):
            msix[vector] = MsixEntry(0, 0, True)
    for entries in (0, 2049, -1):
        with pytest.raises(errors.RangeError, match="1 to 2048"):
            table(entries)


def test_a_table_has_a_fixed_number_of_entries() -> None:
    msix, _ = table()
    entry = MsixEntry(0, 0, True)
    with pytest.raises(errors.ArgumentError):
        msix.append(entry)
    with pytest.raises(errors.ArgumentError):
        del msix[0]
    with pytest.raises(errors.ArgumentError, match="one at a time"):
        msix[0:1] = [entry]
    assert msix[1:3] == [entry, entry]


@pytest.mark.parametrize("entry", [(1 << 64, 0), (-1, 0), (0, 1 << 32), (0, -1)])
def test_what_does_not_fit_an_entry_changes_nothing(entry: tuple[int, int]) -> None:
    msix, follower = table()
    msix[0] = MsixEntry(1, 2, False)
    msix.enabled = True
    with pytest.raises(errors.ArgumentError, match="64 bits"):
        msix[0] = MsixEntry(*entry, False)
    assert msix[0] == MsixEntry(1, 2, False)
    assert follower.on == {0}
