"""The devices that a PCI function carries, and their nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pyvfio import errors
from pyvfio._sys import sysfs
from pyvfio._sys.nodes import Node
from pyvfio.pci import paths
from pyvfio.pci.function import Function

# Nodes that stand for several devices, by the name of a device that they may stand for:
# drivers/input/mousedev.c (one node for all mice), drivers/watchdog/watchdog_dev.c.
_SHARED = (
    (re.compile(r"mouse\d+"), Node(False, 13, 63)),
    (re.compile(r"watchdog0"), Node(False, 10, 130)),
)


def devices(kind: str, directory: Path, *, root: Path | None = None) -> Iterator[Path]:
    """The devices of a class below a directory of /sys/devices, e.g. that of a PCI function.

    Args:
        kind: the class: ``"block"``, ``"net"``...
        directory: without links in it.
        root: the sysfs to look into; None for the host's.
    """
    root = root or paths.SYSFS
    here = place(directory)
    for name in sysfs.entries(root / "class" / kind):
        target = _target(root / "class" / kind / name)
        if is_below(target, here):
            yield root / "devices" / target


def character_nodes(function: Function) -> dict[Node, str]:
    """The nodes of all character devices that a function carries: the class of each.

    Nodes through which the function itself is driven by VFIO are left out.
    """
    places = [place(function.sysfs.resolve()), *map(place, subsystems(function))]
    nodes: dict[Node, str] = {}
    numbers = paths.SYSFS / "dev/char"
    for text in sysfs.entries(numbers):
        target = _target(numbers / text)
        node = Node.parse(text, block=False)
        if node is None or not any(is_below(target, here) for here in places):
            continue
        kind = sysfs.link_name(paths.SYSFS / "devices" / target / "subsystem") or ""
        if kind != "vfio-dev":
            nodes[node] = kind
            name = target.rpartition("/")[2]
            nodes.update((shared, kind) for names, shared in _SHARED if names.fullmatch(name))
    if function.driver == "nvidia":
        nodes.update((node, "nvidia") for node in _nvidia_nodes(function))
    return nodes


def subsystems(function: Function) -> list[Path]:
    """The NVMe subsystems that a function is one of the controllers of.

    Their disks lie below the subsystem, not below a function (multipath).
    """
    here = place(function.sysfs.resolve())
    found = []
    parent = paths.SYSFS / "class/nvme-subsystem"
    for name in sysfs.entries(parent):
        subsystem = (parent / name).resolve()
        if any(
            is_below(place((subsystem / entry).resolve()), here)
            for entry in sysfs.entries(subsystem)
        ):
            found.append(subsystem)
    return found


def place(path: Path) -> str:
    """Where a device is in a tree of devices: its path after ``/sys/devices/``."""
    return str(path).partition("/devices/")[2]


def is_below(target: str, here: str) -> bool:
    """Whether a device, given by its place, is below another."""
    return bool(here) and target.startswith(f"{here}/")


def _target(link: Path) -> str:
    """The place to which a link of sysfs leads; "" where it is no link."""
    try:
        text = os.readlink(link)
    except OSError:
        return ""
    # "../../devices/pci0000:00/..." or, in a tree that tests made, an absolute path.
    return text.partition("devices/")[2]


def _nvidia_nodes(function: Function) -> Iterator[Node]:
    """The nodes of NVIDIA's own driver, which sysfs does not show.

    They have major number 195 (its README, "Which ... device nodes"); its procfs has the minor.
    """
    information = paths.PROC / "driver/nvidia/gpus" / str(function.address) / "information"
    try:
        minor = re.search(r"^Device Minor:\s*(\d+)$", sysfs.read(information), re.MULTILINE)
    except errors.KernelError:
        minor = None
    # Where the driver does not tell, each of its nodes may be this device's.
    minors = range(254) if minor is None else (int(minor[1]),)
    return (Node(False, 195, number) for number in minors)
