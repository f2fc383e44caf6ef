"""/dev/kvm: the way in."""

from __future__ import annotations

import errno
from functools import partial

from pyvfio import errors
from pyvfio._sys import File
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import kvm

PATH = "/dev/kvm"


class System(Closing):
    """An open /dev/kvm.

    Attributes:
        file: its file.
    """

    def __init__(self) -> None:
        """Open it.

        Raises:
            NoKvm: there is none, or it speaks another version of the interface.
            AccessDenied: the process may not open it.
            OpenFilesLimit, KernelError: it cannot be opened otherwise.
        """
        with deferred_signals() as section:
            self.file = _open()
            section.undo(self.file.close)
            version = self.file.ioctl(kvm.KVM_GET_API_VERSION)
            if version != kvm.KVM_API_VERSION:
                raise errors.NoKvm(
                    f"{PATH} speaks version {version} of KVM's interface, not {kvm.KVM_API_VERSION}"
                )

    @property
    def vcpu_mmap_size(self) -> int:
        """Bytes of the area that a vCPU shares with whoever runs it."""
        return self.file.ioctl(kvm.KVM_GET_VCPU_MMAP_SIZE)

    def check_extension(self, capability: int) -> int:
        """What KVM says of a ``KVM_CAP_*``: 0 for "no", else 1 or a number that it stands for."""
        return self.file.ioctl(kvm.KVM_CHECK_EXTENSION, capability)

    def create_vm(self, type: int = 0) -> File:
        """``KVM_CREATE_VM``; :class:`pyvfio.kvm.VM` is what to use.

        Raises:
            KernelError: the kernel refused.
        """
        try:
            return File.made_by(partial(self.file.ioctl, kvm.KVM_CREATE_VM, type), "a VM")
        except errors.KernelError as error:
            if error.errno == errno.EBUSY:
                # As another hypervisor does that holds the processor's extensions.
                raise errors.NoKvm(
                    f"{PATH} cannot create a VM: another hypervisor uses the processor's extensions"
                ) from None
            raise

    def close(self) -> None:
        """Close it; VMs live on. Closing again does nothing."""
        self.file.close()

    def __repr__(self) -> str:
        return f"<System {PATH}>"


def _open() -> File:
    try:
        return File.open(PATH)
    except errors.AccessDenied as error:
        raise errors.AccessDenied.from_call(
            error, "become root, or join the group kvm: adduser USER kvm, then log in again"
        ) from None
    except errors.KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise errors.NoKvm(
                f"there is no {PATH}: load the module of this host's processor (modprobe "
                "kvm_intel, kvm_amd or kvm_hv); where that is refused, virtualisation is off "
                "in the firmware, or this is a virtual machine without nesting"
            ) from None
        raise
