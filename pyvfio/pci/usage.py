"""What the host uses a PCI function for: whom it would be taken from.

Everything is found in sysfs and procfs, so it works where no udevd runs.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pyvfio import errors
from pyvfio._sys import File, sysfs
from pyvfio.pci import interfaces, paths
from pyvfio.pci.function import Function
from pyvfio.pci.group import is_vfio

_BUSY_DISK = "is held by the kernel or a program (ZFS, a mount in another namespace, ...)"


def users(function: Function) -> tuple[str, ...]:
    """What the host uses a function for, one phrase each; empty when nothing is known.

    Looks for mounted disks, swap, disks that belong to an array or a logical volume, network
    interfaces that are up with an address or are part of another one, the console, enabled SR-IOV
    functions. Disks are looked at best as root.
    """
    return (
        *_disks(function),
        *_shares(function),
        *_interfaces(function),
        *_consoles(function),
        *_virtual_functions(function),
    )


def vfio_users(function: Function) -> tuple[str, ...]:
    """Who holds the function's group, or the function, open through VFIO; one phrase each.

    The group's node is tried, not a device: nothing is reset.
    """
    group = function.iommu_group
    if group is None or not is_vfio(function.driver):
        return ()
    nodes = [group.path]
    nodes += [str(paths.DEV / "vfio/devices" / name) for name in _names(function, "vfio-dev")]
    found = tuple(_openers(nodes))
    try:
        File.open(group.path).close()
    except errors.KernelError as error:
        if error.errno == errno.EBUSY and not found:
            return (f"a process that is not visible here holds {group.path} open",)
    return found


def _openers(nodes: list[str]) -> Iterator[str]:
    for process in sysfs.entries(paths.PROC):
        if not process.isdecimal():
            continue
        try:
            files = sysfs.entries(paths.PROC / process / "fd")
            held = {sysfs.link(paths.PROC / process / "fd" / file) for file in files}
        except errors.KernelError:
            continue  # another user's process, or one that has just ended
        for node in nodes:
            if node in held:
                who = "this process" if int(process) == os.getpid() else f"process {process}"
                yield f"{who} ({sysfs.read(paths.PROC / process / 'comm')}) holds {node} open"


def _names(function: Function, kind: str) -> list[str]:
    return sysfs.entries(function.sysfs / kind)


def _of_class(kind: str, directory: Path) -> Iterator[Path]:
    """The devices of a class that lie below a directory of /sys/devices."""
    for name in sysfs.entries(paths.SYSFS / "class" / kind):
        device = (paths.SYSFS / "class" / kind / name).resolve()
        if directory in device.parents:
            yield device


def _block_devices(function: Function) -> list[Path]:
    """Its disks and their partitions, then what is built on those (md, dm, multipath)."""
    here = function.sysfs.resolve()
    found = list(_of_class("block", here))
    # A multipath NVMe disk lies below its subsystem, which lists the controllers it is reached by.
    for subsystem in sysfs.entries(paths.SYSFS / "class/nvme-subsystem"):
        directory = (paths.SYSFS / "class/nvme-subsystem" / subsystem).resolve()
        if any(here in (directory / name).resolve().parents for name in sysfs.entries(directory)):
            found += _of_class("block", directory)
    return found


def _disks(function: Function) -> Iterator[str]:
    mounts, swaps = _mounts(), _swaps()
    for device in _block_devices(function):
        yield from _disk_users(device, _disk_name(device), mounts, swaps, claimed=False)


def _disk_users(
    device: Path,
    name: str,
    mounts: list[tuple[str, str, str]],
    swaps: list[tuple[str, str]],
) -> Iterator[str]:
    number = sysfs.read(device / "dev")
