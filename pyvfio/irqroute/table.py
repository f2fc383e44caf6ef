"""An MSI-X capability in memory, as a guest or any software programs it.

PCI Local Bus 3.0, 6.8.2: table, pending bits, and the two bits of the message control register.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, MutableSequence, Sequence
from contextlib import suppress
from typing import NoReturn, Protocol, overload

from pyvfio import errors
from pyvfio.abi import pci_regs
from pyvfio.device.msix import ENTRY_SIZE, GuestMsixTable, MsixEntry

_ENABLE = pci_regs.PCI_MSIX_FLAGS_ENABLE
_MASKALL = pci_regs.PCI_MSIX_FLAGS_MASKALL
_CONTROL = pci_regs.PCI_MSIX_ENTRY_VECTOR_CTRL


class Follower(Protocol):
    """Who makes interrupts follow the table. What it raises undoes the write that it is told of."""

    def enable(self, vectors: Sequence[int]) -> None:
        """MSI-X was enabled; these vectors may send at once."""

    def disable(self) -> None:
        """MSI-X was disabled."""

    def unmask(self, vectors: Sequence[int]) -> None:
        """These vectors may send from now on."""

    def mask(self, vectors: Sequence[int]) -> None:
        """These vectors may not send any more."""

    def deliver(self, vector: int) -> None:
        """An interrupt that was pending is due."""

    def arrived(self, vectors: Iterable[int]) -> Iterable[int]:
        """Those of these vectors whose interrupts came while they were masked, since the last
        look."""


class VirtualMsix(MutableSequence[MsixEntry]):
    """Table, pending bits and message control, and what a change of them means.

    It begins as a device after a reset: disabled, every entry zero and masked, nothing pending. A
    vector *sends* while MSI-X is enabled and neither the function nor the vector is masked. An
    interrupt of a vector that may not send is kept in its pending bit and sent, once, when the
    vector may send again; disabling forgets it.

    Entries are read and written whole (``msix[0] = MsixEntry(...)``) or as a guest does, by
    :meth:`write_table`. As a guest must, mask a vector before changing its message: a new message
    counts from the next unmasking on. A write that raises has not been done.

    Threads may share it.
    """

    def __init__(
        self, entries: int, follower: Follower, lock: threading.RLock | None = None
    ) -> None:
        """
        Args:
            entries: how many vectors, 1 to 2,048.
            follower: who is told of changes, before they can be read here.
            lock: held over each change, the follower's work included; None for one of its own.

        Raises:
            RangeError: MSI-X allows no such number.
        """
        self._table = GuestMsixTable(entries)
        self._pending = 0
        self._control = 0
        self._follower = follower
        self._lock = threading.RLock() if lock is None else lock

    # Message control.

    @property
    def control(self) -> int:
        """The message control register, 16 bits; only enable and function mask can be written."""
        return self._control | len(self) - 1

    @control.setter
    def control(self, value: int) -> None:
        with self._lock:
            before = self._control
            after = value & (_ENABLE | _MASKALL)
            if after == before:
                return
            sent = self._sending()
            self._control = after
            try:
                if not after & _ENABLE:
                    if before & _ENABLE:
                        self._follower.disable()
                elif not before & _ENABLE:
                    self._follower.enable(self._sending())
                elif after & _MASKALL:
                    self._follower.mask(sent)
                else:
                    self._follower.unmask(self._sending())
            except BaseException:
                # What cannot be disabled (a device that has gone) is not enabled either.
                if after & _ENABLE:
                    self._control = before
                raise
            finally:
                if not self._control & _ENABLE:
                    self._pending = 0
            if not sent:
                self._deliver(self._sending())

    @property
    def enabled(self) -> bool:
        """MSI-X enable, bit 15 of :attr:`control`."""
        return bool(self._control & _ENABLE)

    @enabled.setter
    def enabled(self, on: bool) -> None:
        with self._lock:
            self.control = self._control | _ENABLE if on else self._control & ~_ENABLE

    @property
    def function_masked(self) -> bool:
        """Function mask, bit 14 of :attr:`control`."""
        return bool(self._control & _MASKALL)

    @function_masked.setter
    def function_masked(self, on: bool) -> None:
        with self._lock:
            self.control = self._control | _MASKALL if on else self._control & ~_MASKALL

    # The table, by entries.

    @overload
    def __getitem__(self, index: int) -> MsixEntry: ...

    @overload
    def __getitem__(self, index: slice) -> MutableSequence[MsixEntry]: ...

    def __getitem__(self, index: int | slice) -> MsixEntry | MutableSequence[MsixEntry]:
        return self._table[index]

    def __setitem__(self, index: int | slice, value: MsixEntry | Iterable[MsixEntry]) -> None:
        """Write an entry as a driver does: masked meanwhile.

        If it raises, the entry is as before, or, where even that is refused, masked.
        """
        if isinstance(index, slice) or not isinstance(value, MsixEntry):
            raise errors.ArgumentError("entries are set one at a time: msix[0] = MsixEntry(...)")
        with self._lock:
            before = self[index]
            self._set_mask(index, True)
            try:
                self._table[index] = value._replace(masked=True)
                self._set_mask(index, value.masked)
            except BaseException:
                self._table[index] = before._replace(masked=True)
                with suppress(errors.Error):
                    self._set_mask(index, before.masked)
                raise

    def __delitem__(self, index: int | slice) -> NoReturn:
        raise errors.ArgumentError("a table has a fixed number of entries")

    def insert(self, index: int, value: MsixEntry) -> NoReturn:
        """A table has a fixed number of entries."""
        raise errors.ArgumentError("a table has a fixed number of entries")

    def __len__(self) -> int:
        return len(self._table)

    # The table, as a guest accesses it.

    def read_table(self, offset: int, width: int = 4) -> int:
        """Read 4 or 8 bytes of the table, at a multiple of that.

        Raises:
            ArgumentError: another width or alignment, which the specification leaves undefined.
            RangeError: outside the table.
        """
        words = self._words(offset, width)
        return sum(self._table.read32(at) << 8 * (at - offset) for at in words)

    def write_table(self, offset: int, value: int, width: int = 4) -> None:
        """Write 4 or 8 bytes of the table, at a multiple of that; errors as :meth:`read_table`."""
        words = self._words(offset, width)
        with self._lock:
            before = [self._table.read32(at) for at in words]
            try:
                for at in words:
                    word = value >> 8 * (at - offset) & 0xFFFFFFFF
                    if at % ENTRY_SIZE != _CONTROL:
                        self._table.write32(at, word)
                        continue
                    masked = bool(word & pci_regs.PCI_MSIX_ENTRY_CTRL_MASKBIT)
                    self._set_mask(at // ENTRY_SIZE, masked)
            except BaseException:
                for at, word in zip(words, before, strict=True):
                    self._table.write32(at, word)
                raise

    # Pending bits.

    def read_pending(self, offset: int, width: int = 4) -> int:
        """Read 4 or 8 bytes of the pending-bit array, at a multiple of that.

        Raises:
            As :meth:`read_table`.
        """
        size = -(-len(self) // 64) * 8
        if width not in (4, 8) or offset % width:
            raise errors.ArgumentError(f"{width} bytes at {offset:#x}: MSI-X takes 4 or 8, aligned")
        if not 0 <= offset <= size - width:
            raise errors.RangeError(f"the pending bits have {size} bytes")
        with self._lock:
            self._collect(range(8 * offset, min(8 * (offset + width), len(self))))
            return self._pending >> 8 * offset & (1 << 8 * width) - 1

    def is_pending(self, vector: int) -> bool:
        """Whether an interrupt of a vector waits for it to be unmasked.

        Raises:
            RangeError: there is no such vector.
        """
        self._check(vector)
        with self._lock:
            self._collect((vector,))
            return bool(self._pending >> vector & 1)

    def interrupt(self, vector: int) -> bool:
        """The device has an interrupt of this vector.

        Returns:
            Whether it is to be sent now; if not, and MSI-X is enabled, it is pending.

        Raises:
            RangeError: there is no such vector.
        """
        self._check(vector)
        with self._lock:
            if self.sends(vector):
                return True
            if self.enabled:
                self._pending |= 1 << vector
            return False

    def sends(self, vector: int) -> bool:
        """Whether a vector may send: enabled, and masked neither itself nor with the function.

        Raises:
            RangeError: there is no such vector.
        """
        self._check(vector)
        return self._control & (_ENABLE | _MASKALL) == _ENABLE and not self._table[vector].masked

    def reset(self) -> None:
        """As a reset leaves it: disabled, every entry zero and masked, nothing pending."""
        with self._lock:
            try:
                self.control = 0
            finally:
                self._table.reset()
                self._pending = 0

    def __repr__(self) -> str:
        state = "enabled" if self.enabled else "disabled"
        masked = ", function masked" if self.function_masked else ""
        return f"<VirtualMsix {len(self)} vectors, {state}{masked}>"

    def _check(self, vector: int) -> None:
        if not 0 <= vector < len(self):
            raise errors.RangeError(f"there are {len(self)} vectors, no {vector}")

    def _words(self, offset: int, width: int) -> range:
        if width not in (4, 8) or offset % width:
            raise errors.ArgumentError(f"{width} bytes at {offset:#x}: MSI-X takes 4 or 8, aligned")
        if not 0 <= offset <= len(self) * ENTRY_SIZE - width:
            raise errors.RangeError(f"the MSI-X table has {len(self) * ENTRY_SIZE} bytes")
        return range(offset, offset + width, 4)

    def _sending(self) -> list[int]:
        """The vectors that may send."""
        if self._control & (_ENABLE | _MASKALL) != _ENABLE:
            return []
        return self._table.unmasked()

    def _set_mask(self, vector: int, masked: bool) -> None:
        before = self._table[vector]
        if masked == before.masked:
            return
        if self.sends(vector):
            self._follower.mask([vector])
        self._table[vector] = before._replace(masked=masked)
        if not self.sends(vector):
            return
        try:
            self._follower.unmask([vector])
        except BaseException:
            self._table[vector] = before
            raise
        self._deliver([vector])

    def _collect(self, vectors: Iterable[int]) -> None:
        for vector in self._follower.arrived(vectors):
            self._pending |= 1 << vector

    def _deliver(self, vectors: Sequence[int]) -> None:
        """What was pending of vectors that may send now."""
        self._collect(vectors)
        due = self._pending
        if not due:
            return
        for vector in vectors:
            if due >> vector & 1:
                self._pending &= ~(1 << vector)
                self._follower.deliver(vector)
