"""A VFIO group: an open /dev/vfio/N, all devices that the IOMMU cannot tell apart."""

from __future__ import annotations

import ctypes
import errno
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio._sys import DeviceFile, File, sysfs
from pyvfio._sys.closing import Closing
from pyvfio._sys.device_lock import retry_while_locked
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.iommu.container import Container
from pyvfio.pci import paths
from pyvfio.pci.openable import denied

if TYPE_CHECKING:
    from typing_extensions import Self

_UNSAFE = "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"


class Group(Closing):
    """An open group. The kernel lets a group be opened only once at a time.

    Attributes:
        file: its file.
        id: the IOMMU group's number.
    """

    def __init__(self, file: File, id: int) -> None:
        """Take over an open group; :meth:`open` opens one."""
        self.file = file
        self.id = id

    @classmethod
    def open(cls, id: int) -> Self:
        """Open a group.

        Raises:
            Busy: somebody has it open.
            AccessDenied: the process may not open it.
            NotBound: there is no such group, or none of its devices is bound to a VFIO driver.
            OpenFilesLimit, KernelError: it cannot be opened otherwise.
        """
        path = f"/dev/vfio/{id}"
        try:
            with deferred_signals() as section:
                group = cls(File.open(path), id)
                section.undo(group.close)
                return group
        except errors.AccessDenied as error:
            raise errors.AccessDenied.from_call(error, denied(path, error.errno or 0)) from None
        except errors.KernelError as error:
            if error.errno == errno.EBUSY:
                # Here, since it is seldom needed.
                from pyvfio.pci.usage import holders

                held = "; ".join(holder.text for holder in holders.of_node(path))
                raise errors.Busy.from_call(
                    error, f"{held}. A group can be open only once at a time"
                ) from None
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                raise errors.NotBound(
                    f"{path} cannot be opened ({error.strerror}): no device of IOMMU group {id} is "
                    "bound to vfio-pci; bind one first"
                ) from None
            raise

    @classmethod
    def from_fd(cls, fd: int, id: int) -> Self:
        """Take over a descriptor of an open group; close() closes it."""
        return cls(File(fd, f"/dev/vfio/{id}"), id)

    @property
    def viable(self) -> bool:
        """Whether no host driver holds a device of the group."""
        return bool(self._flags & vfio.VFIO_GROUP_FLAGS_VIABLE)

    @property
    def has_container(self) -> bool:
        """Whether it was put into a container."""
        return bool(self._flags & vfio.VFIO_GROUP_FLAGS_CONTAINER_SET)

    def set_container(self, container: Container) -> None:
        """Put it into a container; it leaves when its file and those of its devices are closed.

        Raises:
            GroupNotViable: a host driver holds one of its devices.
            NoInterruptRemapping: the IOMMU does not isolate interrupts.
            KernelError: the kernel refused otherwise; EINVAL for one that is in a container.
        """
        if not self.viable:
            raise self._not_viable()
        try:
            self.file.ioctl(
                vfio.VFIO_GROUP_SET_CONTAINER, bytearray(ctypes.c_int32(container.file.fileno()))
            )
        except errors.KernelError as error:
            if error.errno == errno.EINVAL and self.has_container:
                raise errors.KernelError.from_call(
                    error,
                    f"group {self.id} is in a container already: it leaves that when its file and "
                    "those of its devices are closed",
                ) from None
            refusal = self.refusal(error)
            if refusal is error and error.errno == errno.EINVAL:
                raise errors.KernelError.from_call(
                    error,
                    "the group's IOMMU cannot reach, or reserves, an IOVA that is mapped in this "
                    "address space: open the device before mapping, or in an address space of its "
                    "own",
                ) from None
            raise refusal from None

    def refusal(self, error: errors.KernelError) -> errors.Error:
        """What it means that the kernel refused to let the group's devices do DMA.

        The kernel gives the same errno for several reasons, so the host is asked.

        Args:
            error: why ``VFIO_GROUP_SET_CONTAINER`` or ``VFIO_SET_IOMMU`` failed.

        Returns:
            The error to raise; the same one where nothing more is known.
        """
        if error.errno not in (errno.EPERM, errno.EINVAL):
            return error
        if error.errno == errno.EPERM and not self.viable:
            return self._not_viable()
        if kept := self._firmware_memory():
            return errors.KernelError.from_call(
                error,
                f"the firmware keeps memory at {', '.join(kept)} for a device of IOMMU group "
                f"{self.id} (`direct` in /sys/kernel/iommu_groups/{self.id}/reserved_regions; RMRR "
                "on Intel), so the kernel lets no one else set up the group's DMA: look for a "
                "firmware setting that releases the device, or use another slot or device",
            )
        if error.errno == errno.EPERM and _text(paths.SYSFS / _UNSAFE) == "N":
            return errors.NoInterruptRemapping.from_call(
                error,
                "this host's IOMMU does not remap interrupts, so a device could raise any "
                "interrupt of the host by DMA and the kernel refuses it. Switch interrupt "
                "remapping on (firmware setup; intremap=on for an emulated IOMMU), or, if you "
                f"trust the device, lower the guard: echo Y > /sys/{_UNSAFE}",
            )
        return error

    def open_device(self, name: str) -> File:
        """``VFIO_GROUP_GET_DEVICE_FD``.

        Args:
            name: the device's, as in the group's ``devices`` folder: "0000:01:00.0".

        Raises:
            DeviceGone: the group has no such device (any more).
            Busy: it is open already, by its owner alone; or the host holds its lock of it.
            AccessDenied: it needs a token.
            OpenFilesLimit, KernelError: the kernel refused otherwise.
        """
        argument = bytearray(name.encode("ascii") + b"\0")

        def opened() -> int:
            return self.file.ioctl(vfio.VFIO_GROUP_GET_DEVICE_FD, argument)

        try:
            return DeviceFile.made_by(partial(retry_while_locked, opened), name)
        except errors.Busy:
            raise
        except errors.KernelError as error:
            kind, meaning = _DEVICE_ERRORS.get(error.errno or 0, (errors.KernelError, ""))
            raise kind.from_call(error, f"{name}: {meaning}" if meaning else name) from None

    def close(self) -> None:
        """Close it: it leaves its container as soon as none of its devices is open any more."""
        self.file.close()

    def __repr__(self) -> str:
        return f"<Group {self.id}{' closed' if self.file.closed else ''}>"

    def _not_viable(self) -> errors.GroupNotViable:
        return errors.GroupNotViable(
            f"a device of IOMMU group {self.id} is bound to a host driver: bind each device in "
            f"/sys/kernel/iommu_groups/{self.id}/devices to vfio-pci, or unbind it"
        )

    def _firmware_memory(self) -> list[str]:
        """The ranges that its devices must reach at the same addresses whoever drives them."""
        regions = paths.SYSFS / "kernel/iommu_groups" / str(self.id) / "reserved_regions"
        lines = map(str.split, _text(regions).splitlines())
        return [f"{words[0]}-{words[1]}" for words in lines if words[2:] == ["direct"]]

    @property
    def _flags(self) -> int:
        status = vfio.vfio_group_status(argsz=ctypes.sizeof(vfio.vfio_group_status))
        self.file.ioctl(vfio.VFIO_GROUP_GET_STATUS, status)
        return int(status.flags)


_DEVICE_ERRORS: dict[int, tuple[type[errors.KernelError], str]] = {
    errno.ENODEV: (
        errors.DeviceGone,
        "the device was removed, or is no longer bound to a VFIO driver",
    ),
    errno.EBUSY: (errors.Busy, "the device is open already; close it there first"),
    errno.EACCES: (
        errors.AccessDenied,
        "the physical function is held by a driver that guards its virtual functions with a token",
    ),
    errno.EMFILE: (
        errors.OpenFilesLimit,
        "the process has no file descriptor left; raise the limit (ulimit -n)",
    ),
}


def _text(path: Path) -> str:
    try:
        return sysfs.read(path)
    except errors.KernelError:
        return ""  # an older kernel, or one without the module
