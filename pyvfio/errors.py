"""Everything pyvfio raises.

One root, :class:`Error`. What the kernel refused is also an :class:`OSError` and keeps its errno;
what the caller got wrong is also a :class:`ValueError` or :class:`IndexError`, as Python users
expect. Each message says what is wrong and what to do next.

    Error
     +-- KernelError (OSError)          a system call failed
     |    +-- AccessDenied (PermissionError)
     |    +-- NoInterruptRemapping (PermissionError)
     |    +-- Busy                      somebody else holds it
     |    +-- DeviceGone                removed or no longer answering
     |    +-- LockedMemoryLimit         RLIMIT_MEMLOCK
     |    +-- OpenFilesLimit            RLIMIT_NOFILE
     |    +-- MappingLimit              the IOMMU container's dma_entry_limit
     |    +-- VectorsExhausted          the host has no interrupt vectors left
     |    +-- NoIrqchip                 the VM has no interrupt controller in the kernel
     +-- HostError                      the host is not set up for what was asked
     |    +-- DeviceNotFound            no such PCI device
     |    +-- NotBound                  the device is not bound to vfio-pci
     |    +-- GroupNotViable            another device of its group is still in use by the host
     |    +-- DeviceInUse               refusing to take it from its users
     |    +-- BindFailed                the kernel did not bind it
     |    +-- NoIommu                   the device is in no IOMMU group
     |    +-- NoVfio                    the VFIO modules are absent
     |    +-- NoKvm                     there is no KVM
     |    +-- CannotRunGuest            KVM is there, and cannot execute guest code
     |    +-- NoEeh                     the host has no EEH
     |    +-- Unsupported               this kernel or device cannot do it
     +-- StateError                     not now: something must be enabled or done first
     |    +-- Closed (ValueError)
     |    +-- MemoryDisabled            memory decoding is off or the device sleeps
     |    +-- RoutesExhausted           the VM's table of GSI routes is full
     |    +-- PeFrozen                  the device's PE is frozen, or still is
     |    +-- PeUnavailable             the PE's state cannot be told
     |    +-- PeDead                    recovery gave the device up
     |    +-- NoFreeze                  an error was injected, and no freeze followed
     +-- ArgumentError (ValueError)     a bad address, alignment, size or value
     |    +-- RangeError (IndexError)   an offset, index or count outside what there is
     |    +-- NoSpace                   no room left in an IOVA range
     +-- MalformedConfig (ValueError)   config space that contradicts the PCI specification
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Sequence

__all__ = [
    "AccessDenied",
    "ArgumentError",
    "BindFailed",
    "Busy",
    "CannotRunGuest",
    "Closed",
    "DeviceGone",
    "DeviceInUse",
    "DeviceNotFound",
    "Error",
    "GroupNotViable",
    "HostError",
    "KernelError",
    "LockedMemoryLimit",
    "MalformedConfig",
    "MappingLimit",
    "MemoryDisabled",
    "NoEeh",
    "NoFreeze",
    "NoInterruptRemapping",
    "NoIommu",
    "NoIrqchip",
    "NoKvm",
    "NoSpace",
    "NoVfio",
    "NotBound",
    "OpenFilesLimit",
    "PeDead",
    "PeFrozen",
    "PeUnavailable",
    "RangeError",
    "RoutesExhausted",
    "StateError",
    "Unsupported",
    "VectorsExhausted",
]


class Error(Exception):
    """Root of everything pyvfio raises."""


class KernelError(Error, OSError):
    """A system call failed.

    Attributes:
        errno: the kernel's error number.
        call: what was called, e.g. ``"VFIO_IOMMU_MAP_DMA"`` or ``"open"``.
        filename: the file it was called on.
        meaning: what that errno means for this call, and what to do next ("" when unknown).
    """

    def __init__(self, errno: int, call: str, filename: str, meaning: str = "") -> None:
        # OSError fills errno, strerror and filename from these.
        super().__init__(errno, _errno_text(errno), filename)
        self.call = call
        self.meaning = meaning

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno or 0, str(self.errno))
        text = f"{self.call} on {self.filename}: {self.strerror} ({name})"
        return f"{text}: {self.meaning}" if self.meaning else text

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.errno, self.call, self.filename, self.meaning)

    @classmethod
    def from_call(cls, error: OSError, meaning: str = "") -> KernelError:
        """The same failure as this class, with what it means here.

        Args:
            error: the failure; a :class:`KernelError` keeps its call and file.
            meaning: what the errno means for this call and what to do next.
        """
        call = error.call if isinstance(error, KernelError) else "system call"
        return cls(error.errno or 0, call, str(error.filename or "?"), meaning)


def _errno_text(errno: int) -> str:
    from os import strerror

    return strerror(errno)


class AccessDenied(KernelError, PermissionError):
    """The process may not open or do this."""


class NoInterruptRemapping(KernelError, PermissionError):
    """The IOMMU cannot remap interrupts, so the kernel refuses the group as unsafe."""


class Busy(KernelError):
    """Somebody else holds the group, container or device."""


class DeviceGone(KernelError):
    """The device was removed, or no longer answers."""


class LockedMemoryLimit(KernelError):
    """Pinning the memory would exceed RLIMIT_MEMLOCK."""


class OpenFilesLimit(KernelError):
    """The process has no file descriptor left (RLIMIT_NOFILE)."""


class MappingLimit(KernelError):
    """The container holds as many mappings as the kernel allows (``dma_entry_limit``)."""


class VectorsExhausted(KernelError):
    """The host could not allocate that many interrupt vectors."""


class NoIrqchip(KernelError):
    """The VM has no interrupt controller in the kernel that could take the interrupt."""


class HostError(Error):
    """The host is not set up for what was asked."""


class DeviceNotFound(HostError):
    """There is no PCI device at that address."""


class NotBound(HostError):
    """The device is not bound to vfio-pci."""


class GroupNotViable(HostError):
    """A device of the same IOMMU group is still bound to a host driver.

    Attributes:
        culprits: (address, driver) of each member that stands in the way.
    """

    def __init__(self, message: str, culprits: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.culprits = tuple(culprits)


class DeviceInUse(HostError):
    """The host is using the device; it is not taken away unless forced.

    Attributes:
        users: what uses it, one phrase each.
    """

    def __init__(self, message: str, users: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.users = tuple(users)


class BindFailed(HostError):
    """The kernel did not bind the device to the driver asked for."""


class NoIommu(HostError):
    """The device is in no IOMMU group, so VFIO cannot isolate it."""


class NoVfio(HostError):
    """The kernel has no VFIO: its modules are absent or not loaded."""


class NoKvm(HostError):
    """The host has no KVM: no virtualisation in its processor, or the modules are not loaded."""


class CannotRunGuest(HostError):
    """KVM is there, and cannot execute guest code; routes and irqfds work all the same."""


class NoEeh(HostError):
    """The host has no EEH, or it is off: no POWER host, or a kernel without it."""


class Unsupported(HostError):
    """This kernel, or this device, cannot do what was asked."""


class StateError(Error):
    """Not now: something must be enabled, attached or released first."""


class Closed(StateError, ValueError):
    """The object was closed (as Python's own files, a :class:`ValueError` too)."""


class MemoryDisabled(StateError):
    """The device does not decode memory now, so touching a BAR would be a bus error."""


class RoutesExhausted(StateError):
    """The VM's table of GSI routes is full, or no GSI is free."""


class PeFrozen(StateError):
    """The device's PE is frozen where it should not be: thaw, reset or recover it."""


class PeUnavailable(StateError):
    """A PE's state cannot be told: one above it is frozen or being recovered."""


class PeDead(StateError):
    """Recovery gave the device up: it did not come back after the last reset."""


class NoFreeze(StateError):
    """An error was injected and accepted, and no freeze followed."""


class ArgumentError(Error, ValueError):
    """A value the caller passed makes no sense."""


class RangeError(ArgumentError, IndexError):
    """An offset, index or count lies outside what there is."""


class NoSpace(ArgumentError):
    """No free IOVA range satisfies size, alignment and highest address."""


class MalformedConfig(Error, ValueError):
    """Config space contradicts the PCI specification: a bad pointer, a loop, a truncated dump."""
