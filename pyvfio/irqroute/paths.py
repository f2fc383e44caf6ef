"""The way of each vector's interrupts: device, VFIO, eventfd, irqfd, GSI.

A vector that may send has its eventfd bound to a GSI. While it is masked, VFIO signals another
eventfd that nobody but us reads, so that its interrupts are kept (they make it pending) and the
binding stays for the unmasking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Protocol

from pyvfio import errors
from pyvfio._sys import EventFd
from pyvfio.device import Claim, Irq
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

    def __init__(self, number: int) -> None:
        self.number = number
        self.message: MsiMessage | None = None
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

    def part(self) -> int:
        """Close the eventfd that is an irqfd, which ends that; :attr:`to_guest` makes another.

        Returns:
            How many interrupts were still on it.
        """
        before, self._sent = self._sent, None
        if before is None or before.closed:
            return 0
        with before:
            return before.take()

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

    From :meth:`enable` to :meth:`disable` the device's interrupts are claimed
    (:meth:`~pyvfio.device.irq.Irq.claim`), so that nobody else changes what stands here.

    Attributes:
        irq: the device's MSI-X or MSI.
        irqfds: the VM's.
        gsis: where GSIs come from.
    """

    def __init__(
        self, irq: Irq, irqfds: Irqfds, gsis: GsiMapping, on_disable: Callable[[], object]
    ) -> None:
        """
        Args:
            irq: the device's MSI-X or MSI.
            irqfds: the VM's.
            gsis: where GSIs come from.
            on_disable: called when somebody else disables the device's interrupts; it is to call
                :meth:`disable`.
        """
        self.irq = irq
        self.irqfds = irqfds
        self.gsis = gsis
        self._on_disable = on_disable
        self._claimed: Claim | None = None
        self._paths: dict[int, Path] = {}

    @abstractmethod
    def enable(self, messages: Mapping[int, MsiMessage]) -> None:
        """The device's interrupts are enabled; these vectors may send at once.

        Raises:
            StateError: the device's vectors are this process's, or forwarded by another forwarder.
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
        """Send an interrupt by software, on the vector's own way.

        Raises:
            DeviceGone, KernelError: the kernel refused.
        """
        path = self._paths[number]
        if not self.irqfds.bypass:
            path.to_guest.signal()
            return
        due = path.irqfd is not None
        while due and path.irqfd is not None:
            # KVM drops it while VFIO signals the same eventfd. What the device sends meanwhile
            # comes to us, and is sent in the next round.
            self._signal(number, [path.to_us])
            try:
                path.to_guest.signal()
                # A worker of KVM sends it (irqfd_inject()), and unbinding waits for that.
                gsi, irqfd, path.irqfd = path.irqfd.gsi, path.irqfd, None
                irqfd.close()
                path.irqfd = self.irqfds.assign(path.to_guest, gsi)
            finally:
                self._signal(number, [path.to_guest])
            due = path.take() > 0

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

    @property
    def _claim(self) -> Claim:
        if self._claimed is None:
            raise errors.StateError(f"{self.irq.name} is not forwarded: enable it first")
        return self._claimed

    def _begin(self) -> None:
        self._claimed = self.irq.claim(self._on_disable)

    def _end(self) -> None:
        claim, self._claimed = self._claimed, None
        if claim is not None:
            claim.close()

    def _signal(self, start: int, eventfds: Sequence[EventFd | None]) -> None:
        """Point VFIO at eventfds, from vector `start` on, with one call."""
        self._claim.signal(start, [fd if fd is None else fd.fileno() for fd in eventfds])

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

    def __init__(
        self, irq: Irq, irqfds: Irqfds, gsis: GsiMapping, on_disable: Callable[[], object]
    ) -> None:
        super().__init__(irq, irqfds, gsis, on_disable)
        self._pointed: dict[int, EventFd] = {}  # what VFIO signals, by vector
        self._allocated = 0  # vectors that VFIO has been told of

    def enable(self, messages: Mapping[int, MsiMessage]) -> None:
        self._begin()
        try:
            # What an earlier disable() may have been refused; as a rule nothing.
            self._claim.disable()
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
        # The undoing of a step may be refused too (a device that has gone). It goes on with the
        # next one then, and what is told is the first refusal.
        with ExitStack() as undo:
            self._open([number for number in messages if number not in self._paths], undo)
            paths = [self._paths[number] for number in messages]
            unbound = [path for path in paths if path.irqfd is None]
            changed = [
                (path, path.irqfd)
                for path in paths
                if path.irqfd is not None and path.message != messages[path.number]
            ]
            before = [(path, path.message) for path in paths]
            with self.gsis.batch():
                gsis = self.gsis.add([messages[path.number] for path in unbound])
                moves = [
                    (path, irqfd, self.gsis.update(irqfd.gsi, messages[path.number]))
                    for path, irqfd in changed
                ]
            undo.callback(self._restore_gsis, gsis, before, moves)
            for path in paths:
                path.message = messages[path.number]
            undo.callback(self._unbind, unbound)
            for path, irqfd in zip(
                unbound,
                self.irqfds.assign_many(
                    zip([path.to_guest for path in unbound], gsis, strict=True)
                ),
                strict=True,
            ):
                path.irqfd = irqfd
            for path, irqfd, gsi in moves:
                if gsi != irqfd.gsi:
                    undo.callback(self._bind_again, path, irqfd.gsi)
                    path.irqfd = None
                    irqfd.close()
                    path.irqfd = self.irqfds.assign(path.to_guest, gsi)
            self._point({path.number: path.to_guest for path in paths})
            undo.pop_all()

    def mask(self, numbers: Sequence[int]) -> None:
        # All eventfds first, so that having too few of them changes nothing.
        self._point({number: self._paths[number].to_us for number in numbers})

    def disable(self) -> None:
        with ExitStack() as steps:
            steps.callback(self._forget)
            bound = [(path.irqfd, path.to_guest) for path in self._paths.values() if path.irqfd]
            steps.callback(self.gsis.remove, [irqfd.gsi for irqfd, _ in bound])
            steps.callback(self.irqfds.end_many, bound)
            steps.callback(self._end)

    def _forget(self) -> None:
        for path in self._paths.values():
            path.close()
        self._paths = {}
        self._pointed = {}
        self._allocated = 0

    def _open(self, numbers: Sequence[int], undo: ExitStack) -> None:
        """Ways, with the eventfds that are to be irqfds."""
        undo.callback(self._drop, numbers)
        try:
            for number in numbers:
                path = self._paths[number] = Path(number)
                path.to_guest  # noqa: B018 (made now)
        except errors.OpenFilesLimit as error:
            raise errors.OpenFilesLimit.from_call(
                error,
                f"{len(numbers)} vectors need {len(numbers)} descriptors, and as many again for "
                "those that are masked meanwhile; raise the limit (ulimit -n)",
            ) from None

    def _drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            path = self._paths.pop(number, None)
            if path is not None:
                path.close()

    # Undoing. What cannot be undone is left so that the next attempt does it afresh.

    def _restore_gsis(
        self,
        added: Sequence[int],
        before: Sequence[tuple[Path, MsiMessage | None]],
        moves: Sequence[tuple[Path, Irqfd, int]],
    ) -> None:
        messages = dict(before)
        for path, message in before:
            path.message = message
        try:
            with self.gsis.batch():
                self.gsis.remove(added)
                for path, _, gsi in moves:
                    message = messages[path]
                    if message is not None:
                        self.gsis.update(gsi, message)
        except errors.Error:
            # Nothing is bound to the new ones: the next commit takes them away.
            self.gsis.forget(added)
            for path, _, _ in moves:
                path.message = None

    def _unbind(self, paths: Sequence[Path]) -> None:
        bound = [(path.irqfd, path.to_guest) for path in paths if path.irqfd is not None]
        with suppress(errors.Error):
            self.irqfds.end_many(bound)
        for path in paths:
            path.irqfd = None
            path.part()

    def _bind_again(self, path: Path, gsi: int) -> None:
        """Bind a way to the GSI that it had, by a fresh eventfd: what a refused KVM_IRQFD has done
        to the other one is not known, and closing that undoes it."""
        old = path.to_guest
        path.irqfd = None
        missed = path.part()
        with suppress(errors.Error):
            path.irqfd = self.irqfds.assign(path.to_guest, gsi)
            if missed:
                path.to_guest.signal(missed)
        if self._pointed.get(path.number) is old:
            with suppress(errors.Error):
                self._point({path.number: path.to_guest})

    # VFIO.

    def _point(self, targets: Mapping[int, EventFd]) -> None:
        """Let VFIO signal these eventfds, by vector; in one call where that can be."""
        before = self._pointed
        changed = sorted(n for n, eventfd in targets.items() if before.get(n) is not eventfd)
        if not changed:
            return
        allocated = self._allocated
        self._pointed = {**before, **targets}
        try:
            self._tell(changed)
        except BaseException:
            self._pointed = before
            with suppress(errors.Error):
                self._tell_again(changed, allocated)
            raise

    def _tell(self, numbers: Sequence[int]) -> None:
        end = numbers[-1] + 1
        if not self._allocated:
            if self.irq.noresize or len(numbers) == end:
                numbers = range(end)
            else:
                # The first call allocates the host's vectors up to its last; this one, almost none.
                self._signal(0, [None])
                self._allocated = 1
        elif self.irq.noresize and end > self._allocated:
            # Interrupts in between are lost, as in QEMU: the kernel has no other way.
            self._claim.disable()
            self._allocated = 0
            numbers = range(end)
        for run in _runs(numbers, self._pointed):
            self._signal(run.start, [self._pointed.get(number) for number in run])
            self._allocated = max(self._allocated, run.stop)

    def _tell_again(self, numbers: Sequence[int], allocated: int) -> None:
        """After a refusal: as it was. The kernel may have parted any vector that the refused call
        named, those that it had joined before included."""
        if self.irq.noresize and numbers[-1] >= allocated:
            numbers = range(allocated)
        numbers = [number for number in numbers if number < max(allocated, self._allocated)]
        for run in _runs(numbers, self._pointed):
            self._signal(run.start, [self._pointed.get(number) for number in run])
        self._allocated = max(self._allocated, allocated)
        for number in numbers:
            # What came to us meanwhile was the guest's.
            path = self._paths.get(number)
            if path is not None and self._pointed.get(number) is path.to_guest and path.take():
                path.to_guest.signal()


def _runs(numbers: Sequence[int], pointed: Container[int]) -> list[range]:
    """Sorted numbers, as ranges that have none but them and vectors without eventfd, which a call
    may name for nothing."""
    runs: list[range] = []
    for number in numbers:
        if runs and not any(between in pointed for between in range(runs[-1].stop, number)):
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs
