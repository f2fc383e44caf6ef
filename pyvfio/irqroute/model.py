"""Stand-ins for what a host has not got: a device, and a kernel whose GSIs are computed.

They take the place of the file on which the ioctls are made, so all that is above them is the real
thing. What they show is a model's word, and is to be labelled so: traces are given
``modelled=True``.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from typing import Any

from pyvfio._sys import DeviceFile, File, calls
from pyvfio.abi import kvm, vfio
from pyvfio.abi.ioctl import Request
from pyvfio.device import Irq
from pyvfio.kvm import Irqchip, Irqfds, Routes

_IRQ_SET = struct.Struct("<5I")  # argsz, flags, index, start, count
_IRQFD = struct.Struct("<4I")  # fd, gsi, flags, resamplefd


class _ModelFile(File):
    """A file whose ioctls are answered here.

    The kernel remembers eventfds, and not their descriptors, whose numbers are used again. Here an
    epoll does it: it forgets a file that is closed. Its descriptor is this file's too.
    """

    __slots__ = ("_epoll", "_held")

    def __init__(self, path: str) -> None:
        self._epoll = select.epoll()
        self._held: dict[int, object] = {}
        super().__init__(os.dup(self._epoll.fileno()), path)

    def ioctl(self, request: Request, arg: Any = 0, retry: bool = True) -> int:
        self.fileno()  # refuses when closed
        number = self._answer(request, arg)
        outcome = OSError(number, os.strerror(number)) if number else 0
        if self.watcher is not None:
            self.watcher(request, arg, outcome)
        if isinstance(outcome, OSError):
            raise self.refused(outcome, request.name)
        return 0

    def close(self) -> None:
        super().close()
        self._epoll.close()

    def _answer(self, request: Request, arg: Any) -> int:
        """Do it, and return an errno or 0."""
        raise NotImplementedError

    def _known(self, fd: int) -> object:
        """What stands for an eventfd as long as it is open; None for one that hold() was not told
        of, or that has been closed."""
        try:
            self._epoll.modify(fd, 0)
        except OSError:
            return None
        return self._held.get(fd)

    def _hold(self, fd: int) -> object:
        """As :meth:`_known`, for any descriptor; None if it is not open."""
        known = self._known(fd)
        if known is None:
            try:
                self._epoll.register(fd, 0)
            except OSError:
                return None
            known = self._held[fd] = object()
        return known


class _ModelDeviceFile(_ModelFile, DeviceFile):
    """VFIO_DEVICE_SET_IRQS on an MSI-X index, as drivers/vfio/pci/vfio_pci_intrs.c has it."""

    __slots__ = ("_allocated", "_count", "_eventfds", "_noresize")

    def __init__(self, count: int, noresize: bool) -> None:
        super().__init__("a modelled device")
        self._count = count
        self._noresize = noresize
        self._allocated = 0
        # By vector, None while disabled: a descriptor and the eventfd that it was.
        self._eventfds: dict[int, tuple[int, object]] | None = None

    def _answer(self, request: Request, arg: Any) -> int:
        if request != vfio.VFIO_DEVICE_SET_IRQS:
            return errno.ENOTTY
        _, flags, _, start, count = _IRQ_SET.unpack_from(arg)
        if start + count > self._count:
            return errno.EINVAL
        if flags & vfio.VFIO_IRQ_SET_DATA_EVENTFD:
            if self._eventfds is None:
                self._eventfds = {}
                self._allocated = start + count
            elif self._noresize and start + count > self._allocated:
                return errno.EINVAL
            fds = struct.unpack_from(f"<{count}i", arg, _IRQ_SET.size)
            for vector, fd in enumerate(fds, start):
                self._eventfds.pop(vector, None)
                if fd < 0:
                    continue
                held = self._hold(fd)
                if held is None:
                    for before in range(start, vector):
                        self._eventfds.pop(before, None)
                    return errno.EBADF
                self._eventfds[vector] = fd, held
        elif self._eventfds is None:
            return errno.EINVAL
        elif not count:
            self._eventfds = None
        else:
            signalled = self.signalled()
            for vector in range(start, start + count):
                if vector in signalled:
                    calls.eventfd_write(signalled[vector], 1)
        return 0

    def signalled(self) -> dict[int, int]:
        """The descriptors that vectors signal, of eventfds that are still open."""
        eventfds = self._eventfds or {}
        return {vector: fd for vector, (fd, held) in eventfds.items() if self._known(fd) is held}


def modelled_msix(count: int, *, noresize: bool = False) -> Irq:
    """The MSI-X of a device that is only modelled: its eventfds are real, and trigger() works.

    Args:
        count: vectors.
        noresize: as :attr:`pyvfio.device.Irq.noresize`.

    Returns:
        It; close its :attr:`~pyvfio.device.Irq.file` when done.
    """
    flags = vfio.VFIO_IRQ_INFO_EVENTFD | (vfio.VFIO_IRQ_INFO_NORESIZE if noresize else 0)
    siblings: list[Irq] = []
    irq = Irq(
        _ModelDeviceFile(count, noresize),
        vfio.VFIO_PCI_MSIX_IRQ_INDEX,
        "MSI-X",
        flags=flags,
        count=count,
        siblings=siblings,
    )
    siblings.append(irq)
    return irq


class _DirectIrqchip(Irqchip):
    """An irqchip without routes, as POWER's XICS is to KVM."""

    name = "modelled direct irqchip"

    def create(self, vm: File) -> None:
        """Nothing to create."""


class _ModelVmFile(_ModelFile):
    """KVM_IRQFD without routes (virt/kvm/eventfd.c, arch/powerpc/kvm/book3s.c and book3s_xics.c).

    Any GSI is accepted: kvm_irq_map_gsi() has an entry for each, and whether there is such a source
    is seen when an event comes.
    """

    __slots__ = ("_bound", "arrived", "irqfds", "sources")

    def __init__(self, sources: frozenset[int]) -> None:
        super().__init__("a modelled VM")
        self.sources = sources
        self.irqfds: dict[int, int] = {}  # descriptor to GSI
        self._bound: dict[int, object] = {}  # descriptor to the eventfd that it was
        self.arrived: set[int] = set()

    def _answer(self, request: Request, arg: Any) -> int:
        if request != kvm.KVM_IRQFD:
            return errno.ENOTTY
        fd, gsi, flags, _ = _IRQFD.unpack_from(arg)
        self.take_in()
        held = self._hold(fd)
        if held is None:
            return errno.EBADF
        if flags & kvm.KVM_IRQFD_FLAG_DEASSIGN:
            # Nothing is said where eventfd and GSI do not match.
            if self.irqfds.get(fd) == gsi:
                del self.irqfds[fd]
        elif fd in self.irqfds:
            return errno.EBUSY
        else:
            self.irqfds[fd] = gsi
            self._bound[fd] = held
        return 0

    def take_in(self) -> None:
        """What the kernel does at once: events become interrupts, or nothing."""
        for fd, gsi in list(self.irqfds.items()):
            if self._known(fd) is not self._bound[fd]:
                del self.irqfds[fd]  # closed: that has unbound it
                continue
            try:
                calls.eventfd_read(fd)
            except BlockingIOError:
                continue
            if gsi in self.sources:
                self.arrived.add(gsi)


class ModelledVm:
    """A VM whose GSIs are interrupt sources, with no kernel behind it.

    Attributes:
        file: on which its ioctls are made.
    """

    def __init__(self, sources: frozenset[int]) -> None:
        """
        Args:
            sources: the interrupt sources that exist; others drop what comes.
        """
        self.file = _ModelVmFile(sources)
        self.irqchip: Irqchip = _DirectIrqchip()
        self.irqfds = Irqfds(self.file, self.irqchip)
        self.routes = Routes(self.file, 0, 0, {})

    def take(self) -> frozenset[int]:
        """The sources whose interrupts arrived since the last look."""
        self.file.take_in()
        arrived, self.file.arrived = self.file.arrived, set()
        return frozenset(arrived)

    def close(self) -> None:
        """Close its file."""
        self.file.close()
