"""irqfds: eventfds whose events KVM injects as interrupts, without waking anybody."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pyvfio import errors
from pyvfio._sys import EventFd, File, sysfs
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import kvm

if TYPE_CHECKING:
    from pyvfio.kvm.irqchip import Irqchip

_ARGUMENT = struct.Struct("<iIIi16x")  # kvm_irqfd: fd, gsi, flags, resamplefd
_PLAIN = struct.Struct("<iI24x")  # without flags


class HasFileno(Protocol):
    """A vector, an eventfd: what has a descriptor."""

    def fileno(self) -> int:
        """The descriptor; raises ValueError when closed."""


class Irqfd(Closing):
    """An eventfd that is bound to a GSI; leaving the block unbinds it.

    The kernel unbinds by eventfd *and* GSI, and says nothing where the two do not match: so both
    are kept here.

    Attributes:
        gsi: the GSI that each event injects.
    """

    __slots__ = ("_eventfd", "_irqfds", "gsi")

    def __init__(self, irqfds: Irqfds, eventfd: HasFileno, gsi: int) -> None:
        """Made by :meth:`Irqfds.assign`."""
        self._irqfds = irqfds
        self._eventfd = eventfd
        self.gsi = gsi

    @property
    def eventfd(self) -> HasFileno:
        """The eventfd."""
        return self._eventfd

    def close(self) -> None:
        """Unbind it; doing it again does nothing.

        Raises:
            KernelError: the kernel refused.
        """
        self._irqfds._deassign(self)

    def __repr__(self) -> str:
        return f"<Irqfd GSI {self.gsi:#x}>"


class Irqfds:
    """A VM's irqfds. Threads may share it; not one irqfd while another thread closes it."""

    def __init__(self, vm: File, irqchip: Irqchip) -> None:
        """Made by :class:`pyvfio.kvm.VM`."""
        self._vm = vm
        self._irqchip = irqchip
        self._assigned: set[Irqfd] = set()

    @property
    def bypass(self) -> bool:
        """Whether KVM drops what software signals; see :class:`~pyvfio.kvm.irqchip.Irqchip`."""
        return self._irqchip.bypass

    def assign(self, eventfd: HasFileno, gsi: int, resample: HasFileno | None = None) -> Irqfd:
        """Let an eventfd's events be interrupts.

        The kernel does not look whether the GSI leads anywhere: an event for one that has no route
        (or, on POWER, no source) is dropped without a word. Route it first.

        Args:
            eventfd: a vector of a device, or any eventfd. It is one irqfd at a time.
            gsi: the interrupt.
            resample: an eventfd to be told when the guest has acknowledged it (level-triggered
                interrupts); for :meth:`pyvfio.device.irq.Irq.unmask_by`.

        Raises:
            Busy: the eventfd is an irqfd already, of this VM or, on newer kernels (seen on
                6.18), another.
            NoIrqchip: the VM has no irqchip in the kernel.
            Unsupported: its irqchip cannot resample.
            RangeError: a GSI has 32 bits.
            ArgumentError: a descriptor is no eventfd.
            Closed: the VM, or the eventfd, is closed.
            KernelError: the kernel refused otherwise.
        """
        with deferred_signals() as section:
            if resample is None:
                irqfd = self.assign_many(((eventfd, gsi),))[0]
            else:
                irqfd = self._assign_resampling(eventfd, gsi, resample)
            section.undo(irqfd.close)
            return irqfd

    def _assign_resampling(self, eventfd: HasFileno, gsi: int, resample: HasFileno) -> Irqfd:
        flags = kvm.KVM_IRQFD_FLAG_RESAMPLE
        with deferred_signals() as section:
            # Recorded first, since the kernel may have it whatever ends the call.
            irqfd = Irqfd(self, eventfd, gsi)
            self._assigned.add(irqfd)
            section.undo(irqfd.close)
            try:
                argument = _ARGUMENT.pack(eventfd.fileno(), gsi, flags, resample.fileno())
                self._vm.ioctl(kvm.KVM_IRQFD, bytearray(argument))
            except Exception as error:
                self._assigned.discard(irqfd)
                raise self._refused(error, gsi, eventfd, resample) from None
            return irqfd

    def assign_many(self, pairs: Iterable[tuple[HasFileno, int]]) -> list[Irqfd]:
        """As :meth:`assign`, for (eventfd, GSI) pairs: all of them, or none.

        Raises:
            As :meth:`assign`.
        """
        done: list[Irqfd] = []
        pack, ioctl, request = _PLAIN.pack_into, self._vm.ioctl, kvm.KVM_IRQFD
        argument = bytearray(_PLAIN.size)  # the same for all: thousands are a matter of time
        with deferred_signals() as section:
            section.undo(self._close_all, done)
            for eventfd, gsi in pairs:
                # Recorded first, since the kernel may have it whatever ends the call.
                done.append(Irqfd(self, eventfd, gsi))
                try:
                    pack(argument, 0, eventfd.fileno(), gsi)
                    ioctl(request, argument)
                except Exception as error:
                    done.pop()
                    raise self._refused(error, gsi, eventfd) from None
            self._assigned.update(done)
            return done

    def _close_all(self, irqfds: Sequence[Irqfd]) -> None:
        self._assigned.update(irqfds)
        with ExitStack() as steps:
            for irqfd in irqfds:
                steps.callback(irqfd.close)

    def end_many(self, pairs: Sequence[tuple[Irqfd, EventFd]]) -> None:
        """Unbind irqfds by closing their eventfds, which must be nobody else's.

        A ``KVM_IRQFD`` that unbinds waits for the kernel's clean-up, some 80 microseconds each.
        Closing an eventfd unbinds it too, without waiting; one call at the end waits for all.

        Args:
            pairs: each irqfd with its eventfd.

        Raises:
            KernelError: the kernel refused the last; all are closed nevertheless.
        """
        with deferred_signals():
            for irqfd, eventfd in pairs[:-1]:
                self._assigned.discard(irqfd)
                eventfd.close()
            for irqfd, eventfd in pairs[-1:]:
                try:
                    irqfd.close()
                finally:
                    self._assigned.discard(irqfd)
                    eventfd.close()

    def __len__(self) -> int:
        return len(self._assigned)

    def __iter__(self) -> Iterator[Irqfd]:
        return iter(tuple(self._assigned))

    def _deassign(self, irqfd: Irqfd) -> None:
        with deferred_signals():
            if irqfd not in self._assigned:
                return
            try:
                if not self._vm.closed:
                    with suppress(ValueError):  # closing the eventfd, or the VM, has unbound it
                        fd = irqfd.eventfd.fileno()
                        argument = _ARGUMENT.pack(fd, irqfd.gsi, kvm.KVM_IRQFD_FLAG_DEASSIGN, 0)
                        self._vm.ioctl(kvm.KVM_IRQFD, bytearray(argument))
            except errors.KernelError:
                self._assigned.discard(irqfd)
                raise
            # After the call, which does no harm when it is made twice.
            self._assigned.discard(irqfd)

    def _refused(
        self, error: Exception, gsi: int, eventfd: HasFileno, resample: HasFileno | None = None
    ) -> Exception:
        """What it means that an eventfd could not be bound."""
        if isinstance(error, struct.error):
            return errors.RangeError(f"a GSI is a number of 32 bits, not {gsi}")
        if not isinstance(error, errors.KernelError):
            return error
        number = error.errno
        if number == errno.EBUSY:
            return errors.Busy.from_call(
                error, "this eventfd is an irqfd already: close that one first, or take another"
            )
        # x86 says EINVAL where there is no irqchip, POWER EAGAIN.
        if number in (errno.EINVAL, errno.EAGAIN) and not self._irqchip.irqfds:
            return errors.NoIrqchip.from_call(
                error,
                f"the VM has {self._irqchip.name}: make it with one, kvm.VM(kvm.FullIrqchip())",
            )
        if number == errno.EINVAL and resample is not None and not self._irqchip.resample:
            return errors.Unsupported(
                f"irqfds of a {self._irqchip.name} cannot resample: only a full irqchip sees when "
                "the guest acknowledges a level-triggered interrupt"
            )
        if number in (errno.EINVAL, errno.EBADF):
            for fd in [each.fileno() for each in (eventfd, resample) if each is not None]:
                what = sysfs.link_name(Path(f"/proc/self/fd/{fd}"))
                if what != "anon_inode:[eventfd]":
                    return errors.ArgumentError(
                        f"descriptor {fd} is no eventfd, but {what or 'closed'}"
                    )
        return error
