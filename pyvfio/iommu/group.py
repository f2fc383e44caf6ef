"""A VFIO group: an open /dev/vfio/N, all devices that the IOMMU cannot tell apart."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.abi import vfio
from pyvfio.iommu.container import Container, no_interrupt_remapping

if TYPE_CHECKING:
    from typing_extensions import Self


class Group:
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
            return cls(File.open(path), id)
        except errors.AccessDenied as error:
            raise errors.AccessDenied.from_call(
                error, f"become root, or give the group to this user: chown USER {path}"
            ) from None
        except errors.KernelError as error:
            if error.errno == errno.EBUSY:
                raise errors.Busy.from_call(error, _who_has(path)) from None
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
            KernelError: the kernel refused otherwise.
        """
        if not self.viable:
            raise errors.GroupNotViable(
                f"a device of IOMMU group {self.id} is bound to a host driver: bind each device in "
                f"/sys/kernel/iommu_groups/{self.id}/devices to vfio-pci, or unbind it"
            )
        try:
            self.file.ioctl(
                vfio.VFIO_GROUP_SET_CONTAINER, bytearray(ctypes.c_int32(container.file.fileno()))
            )
        except errors.KernelError as error:
            if error.errno == errno.EPERM:
                raise no_interrupt_remapping(error) from None
            if error.errno == errno.EINVAL:
                raise errors.KernelError.from_call(
                    error,
                    "the group is in a container already, or its IOMMU cannot reach, or reserves, "
                    "an IOVA that is mapped in this address space: open the device before mapping, "
                    "or in an address space of its own",
                ) from None
            raise

    def open_device(self, name: str) -> File:
        """``VFIO_GROUP_GET_DEVICE_FD``.

        Args:
            name: the device's, as in the group's ``devices`` folder: "0000:01:00.0".

        Raises:
            DeviceGone: the group has no such device (any more).
            Busy: it is open already, by its owner alone.
            AccessDenied: it needs a token.
            OpenFilesLimit, KernelError: the kernel refused otherwise.
        """
        try:
            fd = self.file.ioctl(
                vfio.VFIO_GROUP_GET_DEVICE_FD, bytearray(name.encode("ascii") + b"\0")
            )
        except errors.KernelError as error:
            kind, meaning = _DEVICE_ERRORS.get(error.errno or 0, (errors.KernelError, ""))
            raise kind.from_call(error, f"{name}: {meaning}" if meaning else name) from None
        return File(fd, name)

    def close(self) -> None:
        """Close it: it leaves its container as soon as none of its devices is open any more."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Group {self.id}{' closed' if self.file.closed else ''}>"

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


def _who_has(path: str) -> str:
    """Name the processes that have a file open, as far as this one may see."""
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == path for fd in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                mine = ", this process" if process.name == str(os.getpid()) else ""
                holders.append(f"{process.name} ({name}{mine})")
        except OSError:  # it ended, or is another user's
            continue
    if not holders:
        return (
            "a process, perhaps this one, has the group open or still holds a view of a BAR of its "
            f"devices; as root, find it with: fuser -v {path}"
        )
    return f"process {', '.join(holders)} has the group open; a group can be open only once"
