"""Forwarding many vectors to KVM: one commit of all routes and then the irqfds, against bare ioctls
and against the order of 2016, a commit for each vector.

Needs /dev/kvm and no device: MSI-X is modelled, eventfds, routes and irqfds are real. What is
counted is elapsed time, since most of it is waiting in the kernel. Every turn gets new eventfds,
made before the clock starts, save for what makes its own: the forwarder, and what it is held
against. The kernel is idle again before the next turn.
"""

from __future__ import annotations

import fcntl
import os
import resource
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter_ns

from pyvfio import kvm
from pyvfio._sys import EventFd
from pyvfio.abi import kvm as abi
from pyvfio.device import MsixEntry
from pyvfio.irqroute import MsixForwarder
from pyvfio.irqroute.model import modelled_msix
from tools._perf.measure import interleave
from tools._perf.row import Aim, Comparison, Row, Samples, Setting

COUNTS = (64, 256, 1024, 2048)
ROUNDS = 40
SELDOM = 8  # a commit a vector takes a second or more: it has a turn in one of so many rounds
GROWTH = (256, 2048)

ENABLE = "add_many, assign_many"
BARE = "bare ioctls"
PREPARED = "bare ioctls, all prepared"
FORWARD = "MsixForwarder"
BARE_EVENTFDS = "bare ioctls with eventfd()"
EACH = "a commit a vector"
END = "end_many"
DEASSIGN = "a deassign a vector"
STOP = "MsixForwarder off"

_HEADER = struct.Struct("<II")
_PIN = struct.Struct("<8I16x")  # kvm_irq_routing_entry: gsi, type, flags, pad; irqchip, pin
_MSI = struct.Struct("<7I20x")  # the same with address_lo, address_hi, data
_IRQFD = struct.Struct("<4I16x")


def of(contender: str, count: int) -> str:
    """A contender's name in the row."""
    return f"{count:,}: {contender}"


def per_vector(contender: str, count: int) -> str:
    """The same, divided by the number of vectors."""
    return f"{of(contender, count)}, per vector"


class _Contenders:
    """All that enables or disables `count` vectors of one VM; each leaves the VM as it was."""

    def __init__(self, vm: kvm.VM, count: int) -> None:
        self.vm = vm
        self.count = count
        self.fd = vm.file.fileno()
        self.messages = [kvm.apic_message(0x20 + n % 0xC0) for n in range(count)]
        first = vm.irqchip.first_gsi
        self.gsis = range(first, first + count)
        self.pins = [
            _PIN.pack(gsi, abi.KVM_IRQ_ROUTING_IRQCHIP, 0, 0, *pin, 0, 0)
            for gsi, pins in vm.irqchip.default_routes().items()
            for pin in pins
        ]
        self.table = self._pack_table()
        self.set_routing = int(abi.KVM_SET_GSI_ROUTING)
        self.irqfd = int(abi.KVM_IRQFD)
        irq = modelled_msix(count)
        self.forwarder = MsixForwarder(irq, vm)
        self.close = irq.file.close
        for number, message in enumerate(self.messages):
            self.forwarder.msix[number] = MsixEntry(*message, masked=False)

    def by_name(self) -> dict[str, Callable[[], float]]:
        """The contenders."""
        contenders = {
            ENABLE: self.enable,
            BARE: self.enable_bare,
            PREPARED: self.enable_prepared,
            FORWARD: self.forward,
            BARE_EVENTFDS: self.enable_bare_with_eventfds,
            EACH: self.enable_each,
            END: self.end,
            DEASSIGN: self.deassign,
            STOP: self.stop,
        }
        return {of(name, self.count): contender for name, contender in contenders.items()}

    # Enabling.

    def enable(self) -> float:
        with self._eventfds() as eventfds:
            start = perf_counter_ns()
            gsis = self.vm.routes.add_many(self.messages)
            irqfds = self.vm.irqfds.assign_many(zip(eventfds, gsis, strict=True))
            cost = perf_counter_ns() - start
            self._end(irqfds, eventfds)
        return cost

    def enable_bare(self) -> float:
        """From the same eventfds and messages, by nothing but struct and fcntl."""
        with self._eventfds() as eventfds:
            fd, irqfd, ioctl, pack = self.fd, self.irqfd, fcntl.ioctl, _IRQFD.pack
            start = perf_counter_ns()
            ioctl(fd, self.set_routing, self._pack_table())
            for eventfd, gsi in zip(eventfds, self.gsis, strict=True):
                ioctl(fd, irqfd, pack(eventfd.fileno(), gsi, 0, 0))
            return perf_counter_ns() - start

    def enable_prepared(self) -> float:
        """What is left when all arguments are there already: the kernel's part, and the loop's."""
        with self._eventfds() as eventfds:
            arguments = self._irqfd_arguments(eventfds)
            start = perf_counter_ns()
            self._enable_bare(arguments)
            return perf_counter_ns() - start

    def enable_each(self) -> float:
        with self._eventfds() as eventfds:
            arguments = self._irqfd_arguments(eventfds)
            fd, set_routing, irqfd, ioctl = self.fd, self.set_routing, self.irqfd, fcntl.ioctl
            table, pack, first = self.table, _HEADER.pack_into, len(self.pins) + 1
            start = perf_counter_ns()
            for entries, argument in enumerate(arguments, first):
                pack(table, 0, entries, 0)
                ioctl(fd, set_routing, table)
                ioctl(fd, irqfd, argument)
            return perf_counter_ns() - start

    def forward(self) -> float:
        start = perf_counter_ns()
        self.forwarder.msix.enabled = True
        cost = perf_counter_ns() - start
        self.forwarder.msix.enabled = False
        return cost

    def enable_bare_with_eventfds(self) -> float:
        fd, irqfd, ioctl, pack = self.fd, self.irqfd, fcntl.ioctl, _IRQFD.pack
        eventfds = []
        try:
            start = perf_counter_ns()
            for _ in self.gsis:
                eventfds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            ioctl(fd, self.set_routing, self.table)
            for eventfd, gsi in zip(eventfds, self.gsis, strict=True):
                ioctl(fd, irqfd, pack(eventfd, gsi, 0, 0))
            return perf_counter_ns() - start
        finally:
            for eventfd in eventfds:
                os.close(eventfd)
            self._settle()

    # Disabling.

    def end(self) -> float:
        with self._eventfds() as eventfds:
            gsis = self.vm.routes.add_many(self.messages)
            irqfds = self.vm.irqfds.assign_many(zip(eventfds, gsis, strict=True))
            return self._end(irqfds, eventfds)

    def deassign(self) -> float:
        with self._eventfds() as eventfds:
            self._enable_bare(self._irqfd_arguments(eventfds))
            arguments = self._irqfd_arguments(eventfds, abi.KVM_IRQFD_FLAG_DEASSIGN)
            fd, irqfd, ioctl = self.fd, self.irqfd, fcntl.ioctl
            start = perf_counter_ns()
            for argument in arguments:
                ioctl(fd, irqfd, argument)
            for eventfd in eventfds:
                eventfd.close()
            return perf_counter_ns() - start

    def stop(self) -> float:
        self.forwarder.msix.enabled = True
        start = perf_counter_ns()
        self.forwarder.msix.enabled = False
        return perf_counter_ns() - start

    # What they share.

    @contextmanager
    def _eventfds(self) -> Iterator[list[EventFd]]:
        eventfds = [EventFd() for _ in self.gsis]
        try:
            yield eventfds
        finally:
            for eventfd in eventfds:
                eventfd.close()
            self._settle()

    def _settle(self) -> None:
        """Wait until the kernel has done with what was unbound, and take its routes away."""
        with EventFd() as nothing:
            argument = _IRQFD.pack(nothing.fileno(), 0, abi.KVM_IRQFD_FLAG_DEASSIGN, 0)
            fcntl.ioctl(self.fd, self.irqfd, argument)
        self.vm.routes.commit()

    def _pack_table(self) -> bytearray:
        """The table of routes for KVM_SET_GSI_ROUTING, the irqchip's pins first."""
        routes = [
            _MSI.pack(gsi, abi.KVM_IRQ_ROUTING_MSI, 0, 0, address, 0, data)
            for gsi, (address, data) in zip(self.gsis, self.messages, strict=True)
        ]
        header = _HEADER.pack(len(self.pins) + self.count, 0)
        return bytearray(header + b"".join(self.pins + routes))

    def _irqfd_arguments(self, eventfds: Sequence[EventFd], flags: int = 0) -> list[bytearray]:
        return [
            bytearray(_IRQFD.pack(eventfd.fileno(), gsi, flags, 0))
            for eventfd, gsi in zip(eventfds, self.gsis, strict=True)
        ]

    def _enable_bare(self, arguments: Sequence[bytearray]) -> None:
        fd, irqfd, ioctl = self.fd, self.irqfd, fcntl.ioctl
        ioctl(fd, self.set_routing, self.table)
        for argument in arguments:
            ioctl(fd, irqfd, argument)

    def _end(self, irqfds: Sequence[kvm.Irqfd], eventfds: Sequence[EventFd]) -> float:
        pairs = list(zip(irqfds, eventfds, strict=True))
        start = perf_counter_ns()
        self.vm.irqfds.end_many(pairs)
        cost = perf_counter_ns() - start
        self.vm.routes.remove(*(irqfd.gsi for irqfd in irqfds))
        return cost


def _measure(setting: Setting) -> Samples:
    with ExitStack() as stack:
        stack.enter_context(_descriptors(max(COUNTS)))
        contenders: dict[str, Callable[[], float]] = {}
        for count in COUNTS:
            vm = stack.enter_context(kvm.VM())
            made = _Contenders(vm, count)
            stack.callback(made.close)
            contenders |= made.by_name()
        every = {of(EACH, count): SELDOM for count in COUNTS}
        costs = dict(interleave(contenders, setting.progress, ROUNDS, every))
    for name in (ENABLE, BARE):
        for count in GROWTH:
            costs[per_vector(name, count)] = [
                None if cost is None else cost / count for cost in costs[of(name, count)]
            ]
    return Samples(costs)


@contextmanager
def _descriptors(count: int) -> Iterator[None]:
    """Enough of them for so many eventfds, if this process may have them.

    Raises:
        OSError: it may not.
    """
    wanted = count + 256
    limits = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            most = hard if hard == resource.RLIM_INFINITY else max(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
        except (ValueError, OSError) as error:
            raise OSError(
                f"{count:,} vectors need {wanted:,} descriptors, this process may have {hard:,} "
                "(ulimit -Hn)"
            ) from error
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _comparisons() -> Iterator[Comparison]:
    for count in COUNTS:
        most = count == max(COUNTS)
        yield Comparison(of(ENABLE, count), of(BARE, count), Aim(1.3) if most else None)
        yield Comparison(of(ENABLE, count), of(PREPARED, count))
        yield Comparison(of(ENABLE, count), of(EACH, count), Aim(1 / 100) if most else None)
        yield Comparison(of(FORWARD, count), of(BARE_EVENTFDS, count))
        yield Comparison(of(FORWARD, count), of(EACH, count))
        yield Comparison(of(END, count), of(DEASSIGN, count))
        yield Comparison(of(STOP, count), of(DEASSIGN, count))
    for name in (ENABLE, BARE):
        few, many = (per_vector(name, count) for count in GROWTH)
        yield Comparison(many, few, Aim(1.2) if name == ENABLE else None)


ROW = Row("routes", "forwarding N vectors", "ns", tuple(_comparisons()), _measure)
