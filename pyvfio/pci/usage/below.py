"""The devices of a class that a PCI function carries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyvfio._sys import sysfs
from pyvfio.pci import paths


def devices(kind: str, directory: Path) -> Iterator[Path]:
    """The devices of a class below a directory of /sys/devices, e.g. that of a PCI function.

    Args:
        kind: the class: ``"block"``, ``"net"``...
        directory: without links in it.
    """
    for name in sysfs.entries(paths.SYSFS / "class" / kind):
        device = (paths.SYSFS / "class" / kind / name).resolve()
        if directory in device.parents:
            yield device
