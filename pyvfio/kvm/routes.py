"""GSI routes: which message, or which controller's pin, an interrupt number stands for.

KVM takes the whole table at once and then looks at every irqfd again, so the cost of a commit grows
with the table: many changes belong in one :meth:`Routes.batch`.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.abi import kvm
from pyvfio.kvm.message import MsiMessage

_HEADER = struct.Struct("<II")  # kvm_irq_routing: nr, flags
_MSI = struct.Struct("<8I16x")  # kvm_irq_routing_entry: gsi, type, flags, pad; address, data, devid
_PIN = struct.Struct("<6I24x")  # gsi, type, flags, pad; irqchip, pin
_ENTRY_SIZE = 48
_LOW = 0xFFFFFFFF


class Pin(NamedTuple):
    """An input of an interrupt controller in the kernel.

    Attributes:
        irqchip: ``KVM_IRQCHIP_*``.
        pin: its number there.
    """

    irqchip: int
    pin: int


class Routes(Mapping[int, "MsiMessage | tuple[Pin, ...]"]):
    """A VM's table of routes, by GSI.

    Each change is one commit of the whole table, except in a :meth:`batch`. A change that the
    kernel refuses is not made. Threads may share it.

    Attributes:
        limit: how many entries the kernel takes, and the number below which GSIs lie.
    """

    def __init__(
        self, vm: File, limit: int, first_gsi: int, defaults: Mapping[int, tuple[Pin, ...]]
    ) -> None:
        """Made by :class:`pyvfio.kvm.VM`.

        Args:
            vm: the VM's file.
            limit: ``KVM_CAP_IRQ_ROUTING``; 0 where there are no routes.
            first_gsi: where allocation begins.
            defaults: what the kernel has put there.
        """
        self.limit = limit
        self._vm = vm
        self._lock = threading.RLock()
        self._batches = 0
        # The kernel's form of each GSI's entries.
        self._table = {gsi: b"".join(_pins(gsi, pins)) for gsi, pins in defaults.items()}
        self._entries = sum(map(len, defaults.values()))
        # A bit for each GSI that can be allocated.
        self._free = (1 << limit) - 1 & -1 << first_gsi
        for gsi in defaults:
            self._free &= ~(1 << gsi)
        self._dirty = False
        self._x2apic_format = False

    # The table as it is, with what a batch has changed so far.

    def __getitem__(self, gsi: int) -> MsiMessage | tuple[Pin, ...]:
        raw = self._table[gsi]
        _, kind, _, _, low, high, data, _ = _MSI.unpack_from(raw)
        if kind == kvm.KVM_IRQ_ROUTING_MSI:
            return MsiMessage(high << 32 | low, data)
        return tuple(Pin(*_PIN.unpack(entry)[4:]) for entry in _split(raw))

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._table))

    def __len__(self) -> int:
        return len(self._table)

    # Changes.

    def add(self, message: MsiMessage, gsi: int | None = None) -> int:
        """Route a GSI to a message.

        Args:
            message: what the interrupt is to be.
            gsi: its number; None allocates the lowest that is free.

        Returns:
            The GSI; 0 is a legal one.

        Raises:
            RoutesExhausted: no GSI is free, or the table is full.
            ArgumentError: the GSI has a route, or the message does not fit the VM's format.
            RangeError: the GSI is beyond :attr:`limit`.
            Unsupported: this irqchip has no routes.
            NoIrqchip, KernelError: the kernel refused the table.
        """
        if gsi is None:
            return self.add_many((message,))[0]
        with self.batch():
            self._check_message(message)
            self._take(gsi)
            self._table[gsi] = _msi(gsi, message)
        return gsi

    def add_many(self, messages: Iterable[MsiMessage]) -> list[int]:
        """Route the lowest free GSIs to messages, in one commit.

        Returns:
            A GSI for each message.

        Raises:
            As :meth:`add`; then none of them is routed.
        """
        with self.batch():
            free, table, pack, kind = self._free, self._table, _MSI.pack, kvm.KVM_IRQ_ROUTING_MSI
            gsis = []
            for message in messages:
                address, data = message
                if address & _SUSPECT or data >> 32:
                    self._check_message(message)
                bit = free & -free
                gsi = bit.bit_length() - 1
                free ^= bit
                if gsi < 0:
                    raise self._exhausted("no GSI is free")
                table[gsi] = pack(gsi, kind, 0, 0, address & _LOW, address >> 32, data, 0)
                gsis.append(gsi)
            self._free = free
            self._entries += len(gsis)
            self._changed()
            return gsis

    def add_pin(self, gsi: int, *pins: Pin) -> None:
        """Route a GSI to inputs of controllers in the kernel, one of each controller at most.

        Raises:
            As :meth:`add`; EINVAL where the irqchip has no such pins (split).
        """
        with self.batch():
            if not pins or len({pin.irqchip for pin in pins}) < len(pins):
                raise errors.ArgumentError(
                    f"GSI {gsi} can have one pin of each irqchip, not {pins}"
                )
            self._take(gsi, len(pins))
            self._table[gsi] = b"".join(_pins(gsi, pins))

    def change(self, gsi: int, message: MsiMessage) -> bool:
        """Give a GSI that is routed to a message another one.

        Returns:
            Whether it is another one; the same is no change, and costs nothing.

        Raises:
            ArgumentError: the GSI is not routed to a message, or as :meth:`add`.
        """
        with self.batch():
            self._check_message(message)
            if not isinstance(self.get(gsi), MsiMessage):
                raise errors.ArgumentError(f"GSI {gsi} is not routed to a message: add() it first")
            raw = _msi(gsi, message)
            if raw == self._table[gsi]:
                return False
            self._table[gsi] = raw
            self._changed()
            return True

    def remove(self, *gsis: int, lazily: bool = False) -> None:
        """Take routes away, in one commit; GSIs without a route are passed over.

        Args:
            gsis: which.
            lazily: leave it to the next commit, whoever makes it. Until then the kernel still
                has them; right where nothing is bound to these GSIs any more.

        Raises:
            KernelError: the kernel refused.
        """
        with self._lock, nullcontext() if lazily else self.batch():
            for gsi in gsis:
                raw = self._table.pop(gsi, None)
                if raw is not None:
                    self._entries -= len(raw) // _ENTRY_SIZE
                    self._free |= 1 << gsi
                    self._dirty |= not lazily

    @contextmanager
    def batch(self) -> Iterator[Routes]:
        """Commit all changes of the block at once, at its end.

        An exception in the block, or the kernel's refusal, leaves the table as it was before. A
        batch inside a batch is part of it. Other threads' changes wait meanwhile.

        Raises:
            NoIrqchip, KernelError: the kernel refused the table.
        """
        with self._lock:
            before = self._table.copy(), self._entries, self._free, self._dirty
            self._batches += 1
            try:
                yield self
                if self._batches == 1 and self._dirty:
                    self.commit()
            except BaseException:
                self._table, self._entries, self._free, self._dirty = before
                raise
            finally:
                self._batches -= 1

    def commit(self) -> None:
        """Give the kernel the whole table, changed or not.

        Raises:
            NoIrqchip, KernelError: the kernel refused it.
        """
        with self._lock:
            entries = b"".join(self._table.values())
            header = _HEADER.pack(len(entries) // _ENTRY_SIZE, 0)
            try:
                self._vm.ioctl(kvm.KVM_SET_GSI_ROUTING, bytearray(header + entries))
            except errors.KernelError as error:
                raise self._refused(error) from None
            self._dirty = False

    def require_x2apic_format(self) -> None:
        """From now on messages must have the format of ``KVM_CAP_X2APIC_API``."""
        self._x2apic_format = True

    def __repr__(self) -> str:
        return f"<Routes {self._entries} of {self.limit}>"

    def _changed(self) -> None:
        if not self.limit:
            raise errors.Unsupported(
                "this VM has no GSI routes: each GSI is one fixed input of its irqchip"
            )
        if self._entries > self.limit:
            raise self._exhausted(f"the table has its {self.limit} entries")
        self._dirty = True

    def _take(self, gsi: int, entries: int = 1) -> None:
        if not 0 <= gsi < self.limit:
            raise errors.RangeError(f"GSIs are 0 to {self.limit - 1}, not {gsi}")
        if gsi in self._table:
            raise errors.ArgumentError(
                f"GSI {gsi} is routed already: change() its message, or remove() it first"
            )
        self._free &= ~(1 << gsi)
        self._entries += entries
        self._changed()

    def _check_message(self, message: MsiMessage) -> None:
        address, data = message
        if not (0 <= address < 1 << 64 and 0 <= data < 1 << 32):
            raise errors.ArgumentError(
                f"an MSI message has an address of 64 bits and data of 32, not {message}"
            )
        if self._x2apic_format and address >> 32 & 0xFF:
            raise errors.ArgumentError(
                f"in the x2APIC format bits 39 to 32 of a message's address are 0, not in {message}"
                ": an APIC ID's bits from 8 on belong at bit 40 and above"
            )

    def _exhausted(self, what: str) -> errors.RoutesExhausted:
        return errors.RoutesExhausted(
            f"{what}: the kernel takes {self.limit} routes of a VM. Remove some, or use fewer "
            "vectors"
        )

    def _refused(self, error: errors.KernelError) -> errors.KernelError:
        if error.errno != errno.EINVAL:
            return error
        if not self._vm.ioctl(kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_IRQ_ROUTING):
            return error
        return errors.KernelError.from_call(
            error,
            "the VM has no irqchip in the kernel, or an entry names a pin that its irqchip has "
            "not got (a split irqchip has none)",
        )


# Address bits that make a message worth a closer look: those that no message to an APIC ID below
# 256 has, or that are more than 64.
_SUSPECT = -1 << 32


def _msi(gsi: int, message: MsiMessage) -> bytes:
    address, data = message
    kind = kvm.KVM_IRQ_ROUTING_MSI
    return _MSI.pack(gsi, kind, 0, 0, address & _LOW, address >> 32, data, 0)


def _pins(gsi: int, pins: Iterable[Pin]) -> Iterator[bytes]:
    for pin in pins:
        yield _PIN.pack(gsi, kvm.KVM_IRQ_ROUTING_IRQCHIP, 0, 0, *pin)


def _split(raw: bytes) -> Iterator[bytes]:
    for start in range(0, len(raw), _ENTRY_SIZE):
        yield raw[start : start + _ENTRY_SIZE]
