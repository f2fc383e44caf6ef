"""Who holds a function open through VFIO."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from pyvfio import errors
from pyvfio._sys import File, sysfs
from pyvfio.pci import paths
from pyvfio.pci.function import Function
from pyvfio.pci.group import is_vfio


def vfio_holders(function: Function) -> tuple[str, ...]:
    """Who holds the function, or another of its IOMMU group, open through VFIO; one phrase each.

    Tries the group's node, never a device: nothing is reset.
    """
    group = function.iommu_group
    if group is None or not is_vfio(function.driver):
        return ()
    nodes = {group.path}
    for name in sysfs.entries(function.sysfs / "vfio-dev"):
        nodes.add(str(paths.DEV / "vfio/devices" / name))
    found = tuple(_processes(nodes))
    if not found:
        try:
            File.open(group.path).close()
        except errors.KernelError as error:
            if error.errno == errno.EBUSY:
                return (f"a process that does not show its files holds {group.path} open",)
    return found


def _processes(nodes: set[str]) -> Iterator[str]:
    for process in sysfs.entries(paths.PROC):
        if process.isdecimal() and (held := nodes.intersection(_open_files(process))):
            who = "this process" if int(process) == os.getpid() else f"process {process}"
            with contextlib.suppress(errors.KernelError):  # it ends just now
                who += f" ({sysfs.read(paths.PROC / process / 'comm')})"
            for node in sorted(held):
                yield f"{who} holds {node} open"


def _open_files(process: str) -> Iterator[str]:
    files = paths.PROC / process / "fd"
    # Another user's process does not show its files; others close theirs while we look.
    with contextlib.suppress(errors.KernelError):
        for name in sysfs.entries(files):
            with contextlib.suppress(OSError):
                yield os.readlink(files / name)
