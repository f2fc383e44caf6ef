"""GSI routes: which message, or which controller's pin, an interrupt number stands for.

KVM takes the whole table at once and then looks at every irqfd again, so the cost of a commit grows
with the table: many changes belong in one :meth:`Routes.batch`.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, filterfalse, islice
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import File
from pyvfio._sys.signals import deferred_signals, deliver
from pyvfio.abi import kvm
from pyvfio.kvm.message import MsiMessage, check_message

_HEADER = struct.Struct("<II")  # kvm_irq_routing: nr, flags
_MSI = struct.Struct("<II8xQI20x")  # kvm_irq_routing_entry: gsi, type; address, data
_PIN = struct.Struct("<II8xII24x")  # gsi, type; irqchip, pin
_ENTRY_SIZE = 48


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
        # The kernel's form of each GSI's entries.
        self._table = {gsi: b"".join(_pins(gsi, pins)) for gsi, pins in defaults.items()}
        self._entries = sum(map(len, defaults.values()))
        # The kernel begins with a route to every pin that the irqchip has.
        self._irqchip_pins = frozenset(chain.from_iterable(defaults.values()))
        self._first_gsi = first_gsi
        self._lowest = first_gsi  # no GSI that may be allocated is free below
        self._batches = 0
        self._undo: list[dict[int, bytes | None]] = []  # what the open batches have replaced
        self._dirty = False
        self._commits = 0
        self._x2apic_format = False

    # The table as it is, with what a batch has changed so far.

    def __getitem__(self, gsi: int) -> MsiMessage | tuple[Pin, ...]:
        raw = self._table[gsi]
        _, kind, address, data = _MSI.unpack_from(raw)
        if kind == kvm.KVM_IRQ_ROUTING_MSI:
            return MsiMessage(address, data)
        return tuple(Pin(*pin) for _, _, *pin in _PIN.iter_unpack(raw))

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
        with deferred_signals() as section:
            with self.batch():
                self._check_vacant(gsi)
                self._put(gsi, self._msi(gsi, message))
            section.undo(self.remove, gsi)
            return gsi

    def add_many(self, messages: Iterable[MsiMessage]) -> list[int]:
        """Route the lowest free GSIs to messages, in one commit.

        Returns:
            A GSI for each message.

        Raises:
            As :meth:`add`; then none of them is routed.
        """
        messages = tuple(messages)
        with deferred_signals() as section:
            gsis = self._add_many(messages)
            section.undo(self.remove, *gsis)
            return gsis

    def _add_many(self, messages: Sequence[MsiMessage]) -> list[int]:
        with self.batch():
            self._check_routable()
            if self._x2apic_format:
                for message in messages:
                    self._check_message(message)
            vacant = filterfalse(self._table.__contains__, range(self._lowest, self.limit))
            gsis = list(islice(vacant, len(messages)))
            if len(gsis) < len(messages):
                raise self._exhausted("no GSI is free")
            pack, kind = _MSI.pack, kvm.KVM_IRQ_ROUTING_MSI
            try:
                added = {
                    gsi: pack(gsi, kind, address, data)
                    for gsi, (address, data) in zip(gsis, messages, strict=True)
                }
            except struct.error:
                for message in messages:
                    self._check_message(message)
                raise
            if gsis:
                self._undo.append(dict.fromkeys(gsis))
                self._table.update(added)
                self._entries += len(gsis)
                self._lowest = gsis[-1] + 1
                self._changed()
            return gsis

    def add_pin(self, gsi: int, *pins: Pin) -> None:
        """Route a GSI to inputs of controllers in the kernel, one of each controller at most.

        Raises:
            As :meth:`add`; EINVAL where the irqchip has no such pins (split).
        """
        if not pins or len({pin.irqchip for pin in pins}) < len(pins):
            raise errors.ArgumentError(f"GSI {gsi} can have one pin of each irqchip, not {pins}")
        if not all(0 <= number < 1 << 32 for pin in pins for number in pin):
            raise errors.RangeError(f"irqchips and pins are numbers of 32 bits, not {pins}")
        with self.batch():
            self._check_vacant(gsi)
            self._put(gsi, b"".join(_pins(gsi, pins)))

    def change(self, gsi: int, message: MsiMessage) -> bool:
        """Give a GSI that is routed to a message another one.

        Returns:
            Whether it is another one; the same is no change, and costs nothing.

        Raises:
            ArgumentError: the GSI is not routed to a message, or as :meth:`add`.
        """
        with self.batch():
            if not isinstance(self.get(gsi), MsiMessage):
                raise errors.ArgumentError(f"GSI {gsi} is not routed to a message: add() it first")
            raw = self._msi(gsi, message)
            if raw == self._table[gsi]:
                return False
            self._put(gsi, raw)
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
        with deferred_signals() if lazily else self.batch(), self._lock:
            for gsi in gsis:
                if gsi in self._table:
                    dirty = self._dirty
                    self._put(gsi, None)
                    self._dirty = dirty or not lazily

    @contextmanager
    def batch(self) -> Iterator[Routes]:
        """Commit all changes of the block at once, at its end.

        An exception in the block, or the kernel's refusal, leaves the table as it was before, with
        the kernel too. A batch inside a batch is part of it; an exception that goes no further than
        the inner one undoes its part. Other threads' changes wait meanwhile, and so does Ctrl-C.

        Raises:
            NoIrqchip, KernelError: the kernel refused the table.
        """
        with deferred_signals(), self._lock:
            with deferred_signals() as section:
                section.undo(self._revert, len(self._undo), self._dirty, self._commits)
                self._batches += 1
                try:
                    yield self
                    if self._batches == 1 and self._dirty:
                        self.commit()
                finally:
                    self._batches -= 1
                deliver()  # what came meanwhile undoes it
            if not self._batches:
                self._undo.clear()

    def _revert(self, mark: int, dirty: bool, commits: int) -> None:
        """Make a batch undone that began like this."""
        for replaced in reversed(self._undo[mark:]):
            for gsi, raw in replaced.items():
                self._set(gsi, raw)
        del self._undo[mark:]
        # The block may have committed of its own; then the kernel has to go back too.
        self._dirty = dirty or self._commits != commits
        if not self._batches and self._commits != commits:
            self.commit()

    def commit(self) -> None:
        """Give the kernel the whole table, changed or not.

        Raises:
            NoIrqchip, KernelError: the kernel refused it.
            Unsupported: this irqchip has no routes.
        """
        with deferred_signals(), self._lock:
            argument = bytearray(_HEADER.pack(self._entries, 0))
            argument += b"".join(self._table.values())
            # Counted first, since the kernel may have the table whatever ends the call.
            self._commits += 1
            try:
                self._vm.ioctl(kvm.KVM_SET_GSI_ROUTING, argument)
            except errors.KernelError as error:
                self._commits -= 1
                raise self._refused(error) from None
            self._dirty = False

    @property
    def x2apic_format(self) -> bool:
        """Whether messages must have the format of ``KVM_CAP_X2APIC_API``."""
        return self._x2apic_format

    @contextmanager
    def requiring_x2apic_format(self) -> Iterator[None]:
        """Messages must have that format from the end of the block on, which tells the kernel.

        Raises:
            ArgumentError: one that is routed has not.
        """
        with deferred_signals(), self._lock:
            for route in self.values():
                if isinstance(route, MsiMessage):
                    check_message(route, x2apic_format=True)
            yield
            self._x2apic_format = True

    def __repr__(self) -> str:
        return f"<Routes {self._entries} of {self.limit}>"

    def _put(self, gsi: int, raw: bytes | None) -> None:
        """Change one route, so that a batch can undo it."""
        if self._batches:
            self._undo.append({gsi: self._table.get(gsi)})
        self._set(gsi, raw)
        self._changed()

    def _set(self, gsi: int, raw: bytes | None) -> None:
        self._entries -= len(self._table.get(gsi, b"")) // _ENTRY_SIZE
        if raw is None:
            self._table.pop(gsi, None)
            self._lowest = min(self._lowest, max(gsi, self._first_gsi))
        else:
            self._table[gsi] = raw
            self._entries += len(raw) // _ENTRY_SIZE

    def _changed(self) -> None:
        if self._entries > self.limit:
            raise self._exhausted(f"the table has its {self.limit} entries")
        self._dirty = True

    def _check_routable(self) -> None:
        if not self.limit:
            self.commit()  # the kernel tells why not
            raise errors.Unsupported(_FIXED)

    def _check_vacant(self, gsi: int) -> None:
        self._check_routable()
        if not 0 <= gsi < self.limit:
            raise errors.RangeError(f"GSIs are 0 to {self.limit - 1}, not {gsi}")
        if gsi in self._table:
            raise errors.ArgumentError(
                f"GSI {gsi} is routed already: change() its message, or remove() it first"
            )

    def _msi(self, gsi: int, message: MsiMessage) -> bytes:
        self._check_message(message)
        return _MSI.pack(gsi, kvm.KVM_IRQ_ROUTING_MSI, *message)

    def _check_message(self, message: MsiMessage) -> None:
        check_message(message, x2apic_format=self._x2apic_format)

    def _exhausted(self, what: str) -> errors.RoutesExhausted:
        return errors.RoutesExhausted(
            f"{what}: the kernel takes {self.limit} routes of a VM. Remove some, or use fewer "
            "vectors"
        )

    def _refused(self, error: errors.KernelError) -> errors.Error:
        number = error.errno
        if number == errno.ENOTTY:
            return errors.Unsupported(_FIXED)
        if number == errno.EINVAL and not self.limit:
            return errors.NoIrqchip.from_call(
                error, "the VM has no irqchip: make it with one, kvm.VM(kvm.FullIrqchip())"
            )
        if number == errno.EINVAL:
            for gsi, route in self.items():
                for pin in () if isinstance(route, MsiMessage) else route:
                    if pin not in self._irqchip_pins:
                        return errors.KernelError.from_call(
                            error, f"GSI {gsi} leads to {pin}, which the VM's irqchip has not got"
                        )
        return error


_FIXED = "this VM has no GSI routes: each GSI is one fixed input of its irqchip"


def _pins(gsi: int, pins: Iterable[Pin]) -> Iterator[bytes]:
    for pin in pins:
        yield _PIN.pack(gsi, kvm.KVM_IRQ_ROUTING_IRQCHIP, *pin)
