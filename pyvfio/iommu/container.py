"""A VFIO container: an open /dev/vfio/vfio, the kernel's side of an address space."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyvfio import errors
from pyvfio._sys import File
from pyvfio._sys.closing import Closing
from pyvfio._sys.signals import deferred_signals
from pyvfio.abi import vfio
from pyvfio.pci.openable import denied

if TYPE_CHECKING:
    from typing_extensions import Self

_PATH = "/dev/vfio/vfio"


class Container(Closing):
    """An open container.

    Attributes:
        file: its file.
    """

    def __init__(self, file: File) -> None:
        """Take over an open container; :meth:`open` opens one.

        Raises:
            Unsupported: the kernel speaks another VFIO API.
        """
        self.file = file
        version = file.ioctl(vfio.VFIO_GET_API_VERSION)
        if version != vfio.VFIO_API_VERSION:
            raise errors.Unsupported(
                f"the kernel's VFIO API has version {version}, pyvfio knows {vfio.VFIO_API_VERSION}"
            )

    @classmethod
    def open(cls) -> Self:
        """Make a new container.

        Raises:
            NoVfio: the VFIO modules are absent.
            AccessDenied: the process may not open /dev/vfio/vfio.
            OpenFilesLimit, KernelError: it cannot be opened otherwise.
            Unsupported: the kernel speaks another VFIO API.
        """
        with deferred_signals() as section:
            file = cls._open()
            section.undo(file.close)
            return cls(file)

    @staticmethod
    def _open() -> File:
        try:
            return File.open(_PATH)
        except errors.AccessDenied as error:
            raise errors.AccessDenied.from_call(
                error, denied(_PATH, error.errno or 0, "chmod 666")
            ) from None
        except errors.KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                raise errors.NoVfio(
                    f"{_PATH} cannot be opened ({error.strerror}): "
                    "load the VFIO modules with: modprobe vfio-pci"
                ) from None
            raise

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Take over a descriptor of an open container; close() closes it."""
        return cls(File(fd, _PATH))

    def check_extension(self, extension: int) -> int:
        """``VFIO_CHECK_EXTENSION``: 0 if the kernel does not have it."""
        return self.file.ioctl(vfio.VFIO_CHECK_EXTENSION, extension)

    def set_iommu(self, kind: int) -> None:
        """``VFIO_SET_IOMMU``: choose the IOMMU interface, once a group is in.

        Args:
            kind: ``VFIO_TYPE1v2_IOMMU`` and its like.

        Raises:
            KernelError: the kernel refused; :meth:`Group.refusal` knows what that may mean.
        """
        self.file.ioctl(vfio.VFIO_SET_IOMMU, kind)

    def close(self) -> None:
        """Close it; the kernel undoes its mappings once no device is open any more."""
        self.file.close()

    def __repr__(self) -> str:
        return f"<Container {'closed' if self.file.closed else f'fd={self.file.fileno()}'}>"
