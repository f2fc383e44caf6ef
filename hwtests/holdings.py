"""What a process holds of VFIO: descriptors, mappings of devices, memory locked for DMA."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Holdings(NamedTuple):
    """What this process holds now.

    Attributes:
        files: what its descriptors point to, sorted.
        mappings: the lines of /proc/self/maps that map a VFIO device.
        locked: KiB of memory locked, which is what the IOMMU maps.
    """

    files: list[str]
    mappings: list[str]
    locked: int

    @classmethod
    def now(cls) -> Holdings:
        """Take stock."""
        files = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                files.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:  # the descriptor of the listing itself
                continue
        maps = Path("/proc/self/maps").read_text().splitlines()
        status = Path("/proc/self/status").read_text()
        locked = next(line for line in status.splitlines() if line.startswith("VmLck:"))
        return cls(
            sorted(files),
            [line for line in maps if "[vfio" in line or "/dev/vfio" in line],
            int(locked.split()[1]),
        )


@contextmanager
def lockable(size: int) -> Iterator[None]:
    """Let this process and its children lock `size` bytes; only root can allow itself more."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
