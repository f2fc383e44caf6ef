"""The one place from which pyvfio calls the kernel.

Every ioctl, mmap, eventfd and sysfs access of the library goes through :mod:`pyvfio._sys.calls`,
so a test that injects faults has one place to stand in for the kernel.
"""

from __future__ import annotations

from pyvfio._sys.eventfd import EventFd
from pyvfio._sys.file import DeviceFile, File
from pyvfio._sys.watch import Watch

__all__ = ["DeviceFile", "EventFd", "File", "Watch"]
