"""Who holds a function open through VFIO."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import File, sysfs
from pyvfio._sys.nodes import node_at
from pyvfio._sys.text import printable
from pyvfio.pci import paths
from pyvfio.pci.function import Function
from pyvfio.pci.group import is_vfio
from pyvfio.pci.usage.processes import describe, snapshot

_DEVICE_FILE = "anon_inode:[vfio-device]"


class Holder(NamedTuple):
    """Somebody who holds it open.

    Attributes:
        mine: whether it is this process.
        text: who it is and what it should do, in words.
    """

    mine: bool
    text: str


def vfio_holders(function: Function) -> tuple[Holder, ...]:
    """Who holds the function, or another of its IOMMU group, open through VFIO.

    Tries the group's node, never a device: nothing is reset.
    """
    group = function.iommu_group
    if group is None or not is_vfio(function.driver):
        return ()
    devices = sysfs.entries(function.sysfs / "vfio-dev")
    nodes = {group.path, *(str(paths.DEV / "vfio/devices" / name) for name in devices)}
    if found := tuple(openers(nodes)):
        return found
    try:
        File.open(group.path).close()
    except errors.KernelError as error:
        if error.errno == errno.EBUSY:
            return of_node(group.path)
    return ()


def of_node(node: str) -> tuple[Holder, ...]:
    """Who holds a group's node that is busy, as far as it can be seen."""
    return (
        tuple(openers({node}))
        or tuple(_of_devices())
        or (Holder(False, f"a process that does not show its files holds {node} open: close it"),)
    )


def openers(nodes: set[str]) -> Iterator[Holder]:
    """Who has one of some nodes of VFIO open."""
    # A container may have the same node by another name.
    numbers = {number: node for node in nodes if (number := node_at(node)) is not None}
    for opener in snapshot(numbers, files=nodes).openers:
        mine = int(opener.process) == os.getpid()
        file = printable(opener.file)
        yield Holder(mine, f"{describe(opener.process)} holds {file} open: close it")


def _of_devices() -> Iterator[Holder]:
    """Who has a VFIO device open or in its memory, which keeps its group open.

    A process may have only the device's descriptor, from another process, or only a view of a BAR.
    """
    for process in sorted(filter(str.isdecimal, sysfs.entries(paths.PROC)), key=int):
        mine, who = int(process) == os.getpid(), describe(process)
        # The kernel tells of which device only from 6.17 on, in fdinfo.
        perhaps = "" if mine else ", perhaps of this device"
        home = paths.PROC / process
        try:
            if _DEVICE_FILE in sysfs.read(home / "maps"):
                text = f"{who} still holds a view of a BAR{perhaps}: let it go (del it)"
                yield Holder(mine, text)
            elif any(_is_device(home / "fd" / name) for name in sysfs.entries(home / "fd")):
                perhaps = "" if mine else ", perhaps this one"
                yield Holder(mine, f"{who} holds a VFIO device open{perhaps}: close it")
        except errors.KernelError:
            continue  # it ends just now, or is another user's


def _is_device(link: Path) -> bool:
    try:
        return os.readlink(link) == _DEVICE_FILE
    except OSError:
        return False
