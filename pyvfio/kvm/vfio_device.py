"""The KVM-VFIO device: KVM is told which VFIO groups a VM uses (virt/kvm/vfio.c).

KVM then knows that the VM has assigned devices: it honours no-snoop DMA on x86, and lets POWER's
real-mode handlers map for the group.
"""

from __future__ import annotations

import ctypes
import errno
from contextlib import suppress

from pyvfio import errors
from pyvfio._sys import File
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import kvm
from pyvfio.kvm.irqfd import HasFileno


class Membership(Closing):
    """A group that KVM knows of; leaving the block takes it out.

    While it is in, the kernel keeps the group's file open.
    """

    def __init__(self, device: VfioDevice, group: HasFileno) -> None:
        """Made by :meth:`VfioDevice.add`."""
        self._device = device
        self._group = group

    def close(self) -> None:
        """Take the group out; doing it again does nothing.

        Raises:
            Closed: the group's file is closed, by which the kernel would know it.
            KernelError: the kernel refused.
        """
        self._device._remove(self, self._group)


class VfioDevice(Closing):
    """A VM's KVM-VFIO device; there is one in a VM.

    Attributes:
        file: its file.
    """

    def __init__(self, vm: File) -> None:
        """Create it, in the VM that has the file `vm`.

        Raises:
            Unsupported: this kernel's KVM has none.
            Busy: the VM has one already.
            KernelError: the kernel refused.
        """
        try:
            self.file = create_device(vm, kvm.KVM_DEV_TYPE_VFIO, "the VM's KVM-VFIO device")
        except errors.KernelError as error:
            if error.errno == errno.ENODEV:
                raise errors.Unsupported("this kernel's KVM has no KVM-VFIO device") from None
            if error.errno == errno.EBUSY:
                raise errors.Busy.from_call(error, "the VM has a KVM-VFIO device") from None
            raise
        self._members: set[Membership] = set()

    def add(self, group: HasFileno) -> Membership:
        """Tell KVM of a group.

        Args:
            group: the group's file (:attr:`pyvfio.iommu.group.Group.file`).

        Raises:
            Busy: KVM knows of it.
            ArgumentError: the file is no VFIO group's.
            KernelError: the kernel refused.
        """
        with deferred_signals() as section:
            # Recorded first, since KVM may know of it whatever ends the call.
            membership = Membership(self, group)
            self._members.add(membership)
            section.undo(membership.close)
            try:
                self._set(kvm.KVM_DEV_VFIO_GROUP_ADD, group)
            except errors.Error as error:
                self._members.discard(membership)
                if isinstance(error, errors.KernelError):
                    if error.errno == errno.EEXIST:
                        raise errors.Busy.from_call(error, "KVM knows of this group") from None
                    if error.errno in (errno.EINVAL, errno.EBADF):
                        raise errors.ArgumentError("the descriptor is no VFIO group's") from None
                raise
            return membership

    def close(self) -> None:
        """Close it; the groups in it go too (on older kernels when the VM is closed).

        Closing again does nothing.
        """
        self.file.close()

    def _remove(self, membership: Membership, group: HasFileno) -> None:
        with deferred_signals():
            if membership not in self._members:
                return
            try:
                # One whose file was closed before cannot be named any more; it goes with the VM.
                with suppress(errors.Closed):
                    if not self.file.closed:
                        self._set(kvm.KVM_DEV_VFIO_GROUP_DEL, group)
            except errors.KernelError as error:
                if error.errno != errno.ENOENT:  # a call that was interrupted took it out
                    raise
            self._members.discard(membership)

    def _set(self, attribute: int, group: HasFileno) -> None:
        fd = ctypes.c_int32(group.fileno())
        attr = kvm.kvm_device_attr(
            group=kvm.KVM_DEV_VFIO_GROUP, attr=attribute, addr=ctypes.addressof(fd)
        )
        self.file.ioctl(kvm.KVM_SET_DEVICE_ATTR, attr)


def create_device(vm: File, kind: int, name: str) -> File:
    """``KVM_CREATE_DEVICE``.

    Args:
        vm: the VM's file.
        kind: ``KVM_DEV_TYPE_*``.
        name: for messages.

    Raises:
        KernelError: the kernel refused.
    """
    create = kvm.kvm_create_device(type=kind)

    def created() -> int:
        vm.ioctl(kvm.KVM_CREATE_DEVICE, create)
        return int(create.fd)

    return File.made_by(created, name)
