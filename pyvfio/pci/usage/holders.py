"""Who holds a function open through VFIO."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import File, sysfs
from pyvfio.pci import paths
from pyvfio.pci.function import Function
from pyvfio.pci.group import is_vfio


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
    if found := tuple(_openers(nodes)):
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
        tuple(_openers({node}))
        or tuple(_viewers())
        or (Holder(False, f"a process that does not show its files holds {node} open: close it"),)
    )


def _openers(nodes: set[str]) -> Iterator[Holder]:
    for process in _processes():
        files = paths.PROC / process / "fd"
        held = set()
        # Another user's process does not show its files; others close theirs while we look.
        with contextlib.suppress(errors.KernelError):
            for name in sysfs.entries(files):
                with contextlib.suppress(OSError):
                    held.add(os.readlink(files / name))
        mine, who = _describe(process)
        for node in sorted(held & nodes):
            yield Holder(mine, f"{who} holds {node} open: close it")


def _viewers() -> Iterator[Holder]:
    """Who has part of a VFIO device in its memory, which keeps the group open without a file.

    The kernel does not tell of which device.
    """
    for process in _processes():
        with contextlib.suppress(errors.KernelError):
            if "anon_inode:[vfio-device]" in sysfs.read(paths.PROC / process / "maps"):
                mine, who = _describe(process)
                perhaps = "" if mine else ", perhaps of this device"
                yield Holder(
                    mine, f"{who} still holds a view of a BAR{perhaps}: let it go (del it)"
                )


def _processes() -> list[str]:
    return [name for name in sysfs.entries(paths.PROC) if name.isdecimal()]


def _describe(process: str) -> tuple[bool, str]:
    if int(process) == os.getpid():
        return True, "this process"
    try:
        return False, f"process {process} ({sysfs.read(paths.PROC / process / 'comm')})"
    except errors.KernelError:  # it ends just now
        return False, f"process {process}"
