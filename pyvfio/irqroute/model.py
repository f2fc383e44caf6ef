"""Stand-ins for what a host has not got: a device, and a kernel whose GSIs are computed.

They take the place of the file on which the ioctls are made, so all that is above them is the real
thing. What they show is a model's word, and is to be labelled so: traces are given
``modelled=True``.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

from pyvfio._sys import File, calls
from pyvfio.abi import kvm, vfio
from pyvfio.abi.ioctl import Request
from pyvfio.device import Irq
from pyvfio.kvm import Irqchip, Irqfds, Routes

_IRQ_SET = struct.Struct("<5I")  # argsz, flags, index, start, count
_IRQFD = struct.Struct("<4I")  # fd, gsi, flags, resamplefd


class _ModelFile(File):
    """A file whose ioctls are answered here. Its descriptor is some eventfd, to be one."""

    __slots__ = ()

    def __init__(self, path: str) -> None:
        super().__init__(os.eventfd(0, os.EFD_CLOEXEC), path)

    def ioctl(self, request: Request, arg: Any = 0) -> int:
        self.fileno()  # refuses when closed
        number = self._answer(request, arg)
        outcome = OSError(number, os.strerror(number)) if number else 0
        if self.watcher is not None:
            self.watcher(request, arg, outcome)
        if isinstance(outcome, OSError):
            raise self.refused(outcome, request.name)
        return 0

    def _answer(self, request: Request, arg: Any) -> int:
        """Do it, and return an errno or 0."""
        raise NotImplementedError


class _ModelDeviceFile(_ModelFile):
    """VFIO_DEVICE_SET_IRQS on an MSI-X index, as drivers/vfio/pci/vfio_pci_intrs.c has it."""

    __slots__ = ("_count", "_eventfds")

    def __init__(self, count: int) -> None:
        super().__init__("a modelled device")
        self._count = count
        self._eventfds: dict[int, int] | None = None  # by vector; None while disabled

    def _answer(self, request: Request, arg: Any) -> int:
        if request != vfio.VFIO_DEVICE_SET_IRQS:
            return errno.ENOTTY
        _, flags, _, start, count = _IRQ_SET.unpack_from(arg)
        if start + count > self._count:
            return errno.EINVAL
        if flags & vfio.VFIO_IRQ_SET_DATA_EVENTFD:
            if self._eventfds is None:
                self._eventfds = {}
            fds = struct.unpack_from(f"<{count}i", arg, _IRQ_SET.size)
            for vector, fd in enumerate(fds, start):
                self._eventfds.pop(vector, None)
                if fd >= 0:
                    self._eventfds[vector] = fd
        elif self._eventfds is None:
            return errno.EINVAL
        elif not count:
            self._eventfds = None
        else:
            for vector in range(start, start + count):
                if vector in self._eventfds:
                    calls.eventfd_write(self._eventfds[vector], 1)
        return 0


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
        _ModelDeviceFile(count),
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
    """KVM_IRQFD without routes (virt/kvm/eventfd.c, arch/powerpc/kvm/book3s_xics.c)."""

    __slots__ = ("arrived", "irqfds", "sources")

    def __init__(self, sources: frozenset[int]) -> None:
        super().__init__("a modelled VM")
        self.sources = sources
        self.irqfds: dict[int, int] = {}  # descriptor to GSI
        self.arrived: set[int] = set()

    def _answer(self, request: Request, arg: Any) -> int:
        if request != kvm.KVM_IRQFD:
            return errno.ENOTTY
        fd, gsi, flags, _ = _IRQFD.unpack_from(arg)
        self.take_in()
        if flags & kvm.KVM_IRQFD_FLAG_DEASSIGN:
            # Nothing is said where eventfd and GSI do not match.
            if self.irqfds.get(fd) == gsi:
                del self.irqfds[fd]
        elif fd in self.irqfds:
            return errno.EBUSY
        else:
            self.irqfds[fd] = gsi
        return 0

    def take_in(self) -> None:
        """What the kernel does at once: events become interrupts, or nothing."""
        for fd, gsi in list(self.irqfds.items()):
            try:
                calls.eventfd_read(fd)
            except BlockingIOError:
                continue
            except OSError:
                del self.irqfds[fd]  # closed: that has unbound it
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
