"""The way of each vector's interrupts: device, VFIO, eventfd, irqfd, GSI.

A vector that may send has its eventfd bound to a GSI. While it is masked, VFIO signals another
eventfd that nobody but us reads, so that its interrupts are kept (they make it pending) and the
binding stays for the unmasking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Protocol

from pyvfio import errors
from pyvfio._sys import EventFd
from pyvfio.device import Irq
from pyvfio.irqroute.gsis import GsiMapping
from pyvfio.kvm import Irqchip, Irqfd, Irqfds, MsiMessage, Routes


class Machine(Protocol):
    """What is needed of a VM."""

    @property
    def irqchip(self) -> Irqchip:
        """Its interrupt controller."""

    @property
    def irqfds(self) -> Irqfds:
        """Its irqfds."""

    @property
    def routes(self) -> Routes:
        """Its routes."""


class Path:
    """One vector's way.

    Attributes:
        number: the vector.
        message: what it was last joined with, or None.
        irqfd: its interrupt in the VM, or None.
    """

    __slots__ = ("_masked", "_sent", "irqfd", "message", "number")

    def __init__(self, number: int, message: MsiMessage | None = None) -> None:
        self.number = number
        self.message = message
        self.irqfd: Irqfd | None = None
        self._sent: EventFd | None = None
        self._masked: EventFd | None = None

    # Names as in QEMU, whose eventfds these are: "interrupt" and "kvm_interrupt".

    @property
    def to_guest(self) -> EventFd:
        """The eventfd that is an irqfd; made when it is first asked for."""
        if self._sent is None:
            self._sent = EventFd(f"kvm{self.number}")
        return self._sent

    @property
    def to_us(self) -> EventFd:
        """The eventfd for interrupts while masked; made when it is first asked for."""
        if self._masked is None:
            self._masked = EventFd(f"int{self.number}")
        return self._masked

    def take(self) -> int:
        """Interrupts that arrived while masked, since the last look."""
        return 0 if self._masked is None else self._masked.take()

    def eventfds(self) -> list[EventFd]:
        """Those made so far and open."""
        return [fd for fd in (self._masked, self._sent) if fd is not None and not fd.closed]

    def close(self) -> None:
        """Close the eventfds, and thereby the irqfd."""
        for eventfd in self.eventfds():
            eventfd.close()


class Paths(ABC):
    """The vectors' ways, as something joins and parts them.

    Attributes:
        irq: the device's MSI-X or MSI.
        irqfds: the VM's.
        gsis: where GSIs come from.
    """

    def __init__(self, irq: Irq, irqfds: Irqfds, gsis: GsiMapping) -> None:
        self.irq = irq
        self.irqfds = irqfds
        self.gsis = gsis
        self._paths: dict[int, Path] = {}

    @abstractmethod
    def enable(self, messages: Mapping[int, MsiMessage]) -> None:
        """The device's interrupts are enabled; these vectors may send at once.

        Raises:
            OpenFilesLimit: too few descriptors for the eventfds.
            RoutesExhausted: too few GSIs.
            VectorsExhausted, DeviceGone, KernelError: the kernel refused. Nothing is left of it.
        """

    @abstractmethod
    def unmask(self, messages: Mapping[int, MsiMessage]) -> None:
        """These vectors may send from now on; errors as :meth:`enable`."""

    @abstractmethod
    def mask(self, numbers: Sequence[int]) -> None:
        """These vectors may not send.

        Raises:
            DeviceGone, KernelError: the kernel refused.
        """

    @abstractmethod
    def disable(self) -> None:
        """The device's interrupts are disabled, and nothing is left of their ways.

        Raises:
            DeviceGone, KernelError: a step was refused; the others were done.
        """

    def deliver(self, number: int) -> None:
        """An interrupt by software, on the vector's own way."""
        self._paths[number].to_guest.signal()

    def arrived(self, numbers: Iterable[int]) -> list[int]:
        """Those of these vectors whose interrupts came while they were masked, since the last
        look."""
        paths = self._paths
        return [number for number in numbers if number in paths and paths[number].take()]

    def gsi(self, number: int) -> int | None:
        """The GSI that a vector's eventfd is bound to, or None."""
        path = self._paths.get(number)
        return None if path is None or path.irqfd is None else path.irqfd.gsi

    def path(self, number: int) -> Path | None:
        """A vector's way, if it has one."""
        return self._paths.get(number)

    def _signal(self, start: int, eventfds: Sequence[EventFd | None]) -> None:
        """Point VFIO at eventfds, from vector `start` on, with one call."""
        self.irq.signal(start, [fd if fd is None else fd.fileno() for fd in eventfds])

    def _abandon(self) -> None:
        """After a failure, which is the one to tell: give everything back."""
        with suppress(errors.Error):
            self.disable()

    def names(self) -> dict[int, str]:
        """What each descriptor is called: "kvm0" is bound to KVM, "int0" comes to us."""
        return {
            eventfd.fileno(): eventfd.path
            for path in self._paths.values()
            for eventfd in path.eventfds()
        }


class BestPaths(Paths):
    """The order that costs least: one commit, then the irqfds, then one call to VFIO.

    The kernel looks at every irqfd at each commit, so routes come before irqfds and all at once.
    What is parted is parted first at VFIO, so that nothing arrives on a way half gone.
    """

    def __init__(self, irq: Irq, irqfds: Irqfds, gsis: GsiMapping) -> None:
        super().__init__(irq, irqfds, gsis)
        self._masked: set[int] = set()
        self._allocated = 0  # vectors that VFIO has been told of

    def enable(self, messages: Mapping[int, MsiMessage]) -> None:
        try:
            self.unmask(messages)
            if not self._allocated:
                # Enabled without a vector, as QEMU has it since 5ebffa4e87: no dummy is needed.
                self._signal(0, [None])
                self._allocated = 1
        except BaseException:
            self._abandon()
            raise

    def unmask(self, messages: Mapping[int, MsiMessage]) -> None:
        if not messages:
            return
        new = [number for number in messages if number not in self._paths]
        with ExitStack() as undo:
            if new:
                self._join(new, messages, undo)
            if len(new) < len(messages):
                self._update({n: m for n, m in messages.items() if n not in new}, undo)
            self._masked.difference_update(messages)
            undo.callback(self._masked.update, messages)
            self._send_to_guest(sorted(messages))
            undo.pop_all()

    def mask(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        self._masked.update(numbers)
        try:
            for run in _runs(numbers):
                self._signal(run[0], [self._paths[number].to_us for number in run])
        except BaseException:
            self._masked.difference_update(numbers)
            raise

    def disable(self) -> None:
        with ExitStack() as steps:
            steps.callback(self._forget)
            bound = [(path.irqfd, path.to_guest) for path in self._paths.values() if path.irqfd]
            steps.callback(self.gsis.remove, [irqfd.gsi for irqfd, _ in bound])
            steps.callback(self.irqfds.end_many, bound)
            steps.callback(self.irq.disable)

    def _forget(self) -> None:
        for path in self._paths.values():
            path.close()
        self._paths = {}
        self._masked.clear()
        self._allocated = 0

    def _join(
        self, numbers: Sequence[int], messages: Mapping[int, MsiMessage], undo: ExitStack
    ) -> None:
        """Eventfd, GSI and irqfd for vectors that have none."""
        paths = [Path(number, messages[number]) for number in numbers]
        for path in paths:
            self._paths[path.number] = path
            undo.callback(path.close)
            undo.callback(self._paths.pop, path.number)
        try:
            eventfds = [path.to_guest for path in paths]
        except errors.OpenFilesLimit as error:
            raise errors.OpenFilesLimit.from_call(
                error,
                f"{len(numbers)} vectors need {len(numbers)} descriptors, and as many again for "
                "those that are masked meanwhile; raise the limit (ulimit -n)",
            ) from None
        gsis = self.gsis.add([messages[number] for number in numbers])
        undo.callback(self.gsis.remove, gsis)
        irqfds = self.irqfds.assign_many(zip(eventfds, gsis, strict=True))
        undo.callback(self.irqfds.end_many, list(zip(irqfds, eventfds, strict=True)))
        for path, irqfd in zip(paths, irqfds, strict=True):
            path.irqfd = irqfd

    def _update(self, messages: Mapping[int, MsiMessage], undo: ExitStack) -> None:
        """Messages that may have changed, of vectors that are joined already."""
        before: dict[int, MsiMessage] = {}
        moves: list[tuple[Path, Irqfd, int]] = []
        with self.gsis.batch():
            for number, message in messages.items():
                path = self._paths[number]
                irqfd, known = path.irqfd, path.message
                assert irqfd is not None
                assert known is not None
                if message != known:
                    before[number] = known
                    moves.append((path, irqfd, self.gsis.update(irqfd.gsi, message)))
        if not before:
            return
        for number in before:
            self._paths[number].message = messages[number]
        undo.callback(self._update, before, undo)
        for path, irqfd, gsi in moves:
            if gsi != irqfd.gsi:
                irqfd.close()
                path.irqfd = self.irqfds.assign(path.to_guest, gsi)

    def _send_to_guest(self, numbers: Sequence[int]) -> None:
        """Point VFIO at these vectors' eventfds, in one call where that can be."""
        first, end = numbers[0], numbers[-1] + 1
        if not self._allocated:
            if self.irq.noresize or (first == 0 and len(numbers) == end):
                first = 0
            else:
                # The first call allocates the host's vectors up to its last; this one, almost none.
                self._signal(0, [None])
        elif self.irq.noresize and end > self._allocated:
            # Interrupts in between are lost, as in QEMU: the kernel has no other way.
            self.irq.disable()
            first = 0
        self._signal(first, [self._eventfd(number) for number in range(first, end)])
        self._allocated = max(self._allocated, end)

    def _eventfd(self, number: int) -> EventFd | None:
        path = self._paths.get(number)
        if path is None:
            return None
        return path.to_us if number in self._masked else path.to_guest


def _runs(numbers: Iterable[int]) -> list[list[int]]:
    """Consecutive numbers together."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
