"""Disks in use: mounted, swapped to, or part of something larger."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import File, sysfs
from pyvfio.pci import paths
from pyvfio.pci.function import Function
from pyvfio.pci.usage import below


class _Mount(NamedTuple):
    number: str  # "major:minor" of the file system; of no device for btrfs and the like
    point: str
    kind: str
    source: str


def users(function: Function) -> Iterator[str]:
    """What uses the disks of a function, one phrase each."""
    here = function.sysfs.resolve()
    mounts = _mounts()
    disks = _disks(here)
    for disk in disks:
        found = [
            f"{_title(device)} {use}"
            for device in (disk, *_partitions(disk))
            for use in _uses(device, mounts)
        ]
        if not found and _is_claimed(disk):
            found = [f"{_title(disk)} is claimed by the kernel or a program (ZFS, a container...)"]
        yield from found
    for tag in _shares(here):
        for mount in mounts:
            if mount.source == tag and mount.kind in ("9p", "virtiofs"):
                yield f"share {tag} is mounted on {mount.point}"


def _disks(here: Path) -> list[Path]:
    found = [device for device in below.devices("block", here) if not _partition(device)]
    # A multipath NVMe disk lies below its subsystem, which links to the controllers that reach it.
    subsystems = paths.SYSFS / "class/nvme-subsystem"
    for name in sysfs.entries(subsystems):
        subsystem = (subsystems / name).resolve()
        if any(here in (subsystem / entry).resolve().parents for entry in sysfs.entries(subsystem)):
            found += [disk for disk in below.devices("block", subsystem) if not _partition(disk)]
    return found


def _partition(device: Path) -> str | None:
    return _optional(device / "partition")


def _partitions(disk: Path) -> list[Path]:
    return [disk / name for name in sysfs.entries(disk) if _partition(disk / name)]


def _title(device: Path) -> str:
    number = _partition(device)
    return f"disk {device.parent.name} partition {number}" if number else f"disk {device.name}"


def _uses(device: Path, mounts: list[_Mount]) -> Iterator[str]:
    number = _optional(device / "dev")
    if number is None:
        return  # one path of a multipath disk
    for mount in mounts:
        source = mount.source if mount.source.startswith("/dev/") else ""
        if mount.number == number or (source and _number_of(source) == number):
            yield f"is mounted on {mount.point}"
    for source in _swaps():
        if _number_of(source) == number:
            yield "is swap space"
    for file_system in sysfs.entries(paths.SYSFS / "fs/btrfs"):
        if device.name in sysfs.entries(paths.SYSFS / "fs/btrfs" / file_system / "devices"):
            yield f"is part of the mounted btrfs {file_system}"
    for name in sysfs.entries(device / "holders"):
        holder = (device / "holders" / name).resolve()
        label = _optional(holder / "dm/name")
        part = f"is part of {name}" + (f" ({label})" if label else "")
        uses = list(_uses(holder, mounts))
        yield part if not uses else f"{part}, which {' and '.join(uses)}"


def _is_claimed(disk: Path) -> bool:
    """Whether somebody has the disk, or a partition of it, for themselves (open(2), O_EXCL)."""
    # The kernel writes a "/" in a device's name as "!".
    node = paths.DEV / disk.name.replace("!", "/")
    try:
        File.open(str(node), os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK).close()
    except errors.KernelError as error:
        return error.errno == errno.EBUSY
    return False


def _shares(here: Path) -> Iterator[str]:
    for name in sysfs.entries(here):
        if re.fullmatch(r"virtio\d+", name) and (tag := _optional(here / name / "mount_tag")):
            yield tag


def _mounts() -> list[_Mount]:
    """What is mounted, from proc_pid_mountinfo(5)."""
    mounts = []
    for line in sysfs.read(paths.PROC / "self/mountinfo").split("\n"):
        fields, _, rest = line.partition(" - ")
        try:
            number, _root, point = fields.split(" ")[2:5]
            kind, source = rest.split(" ")[:2]
        except ValueError:
            continue  # no line of the kernel's
        mounts.append(_Mount(number, _unescape(point), kind, _unescape(source)))
    return mounts


def _swaps() -> list[str]:
    # The first line is a heading; without swap the kernel may have no such file.
    lines = (_optional(paths.PROC / "swaps") or "").splitlines()[1:]
    return [_unescape(line.split()[0]) for line in lines]


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _number_of(path: str) -> str | None:
    """ "major:minor" of a block device's node."""
    try:
        number = os.stat(path).st_rdev
    except OSError:
        return None
    return f"{os.major(number)}:{os.minor(number)}"


def _optional(path: Path) -> str | None:
    try:
        return sysfs.read(path)
    except errors.KernelError:
        return None
