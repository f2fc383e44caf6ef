"""Disks in use: mounted, swapped to, exported, or part of something larger."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from pyvfio import errors
from pyvfio._sys import File, calls, sysfs
from pyvfio._sys.closing import Closing
from pyvfio._sys.nodes import Node, node_at
from pyvfio.pci import paths
from pyvfio.pci.function import Function
from pyvfio.pci.usage import below
from pyvfio.pci.usage.processes import describe

# linux/loop.h; the number is the same on every architecture.
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_SIZE = 232

# Parts of the kernel that have a disk open without claiming it, and where configfs names the disk:
# NVMe over fabrics, SCSI targets backed by files, USB mass storage.
_EXPORTS = (
    ("nvmet/subsystems/*/namespaces/*/device_path", r"(.+)", "an NVMe target"),
    ("target/core/fileio_*/*/info", r"File: (\S+)", "a SCSI target"),
    ("usb_gadget/*/functions/mass_storage.*/lun.*/file", r"(.+)", "a USB gadget"),
)


class _Mount(NamedTuple):
    number: str  # "major:minor" of the file system; of no device for btrfs and the like
    point: str
    kind: str
    source: str
    where: str  # "", or which other mount namespace it is in


class Disk(NamedTuple):
    """A disk of a function, a partition of it, or what is built on one.

    Attributes:
        sysfs: its directory.
        title: what it is, in words, with what it is built on.
    """

    sysfs: Path
    title: str

    @property
    def node(self) -> Node | None:
        """Its device node; None for one path of a multipath disk, which has none."""
        return Node.parse(_optional(self.sysfs / "dev") or "", block=True)


class Claims(Closing):
    """The disks of a function, claimed for this process alone as far as nobody else has them.

    While they are, nobody can mount them or make them part of a volume (open(2), O_EXCL).

    Attributes:
        descriptors: those of this process that hold them.
        taken: the disks that somebody else has claimed.
        unknown: what cannot be told of the others, one phrase each.
    """

    def __init__(self, function: Function) -> None:
        self.descriptors: set[int] = set()
        self.taken: list[Path] = []
        self.unknown: list[str] = []
        self._files = ExitStack()
        try:
            for disk in _whole_disks(function):
                self._claim(disk)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the disks."""
        self._files.close()

    def _claim(self, disk: Path) -> None:
        # The kernel writes a "/" in a device's name as "!".
        node = paths.DEV / disk.name.replace("!", "/")
        if _optional(disk / "dev") is None:
            return  # one path of a multipath disk
        try:
            file = File.open(str(node), os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK)
        except errors.KernelError as error:
            if error.errno == errno.EBUSY:
                self.taken.append(disk)
            # A drive without a medium, or a node whose disk is not there, is not in use.
            elif error.errno not in (errno.ENOMEDIUM, errno.ENXIO, errno.ENODEV):
                self.unknown.append(
                    f"whether the kernel uses disk {disk.name}: {node} cannot be opened "
                    f"({error.strerror})"
                )
            return
        self._files.enter_context(file)
        self.descriptors.add(file.fileno())


def all_of(function: Function) -> list[Disk]:
    """The disks of a function, their partitions, and all that is built on them."""
    loops = _loops()
    found: list[Disk] = []

    def add(disk: Disk) -> None:
        # Two partitions may be part of the same array.
        if any(disk.sysfs == known.sysfs for known in found):
            return
        found.append(disk)
        for above in _built_on(disk, loops):
            add(above)

    for whole in _whole_disks(function):
        for device in (whole, *_partitions(whole)):
            add(Disk(device, _title(device)))
    return found


def users(function: Function, claims: Claims, tables: Mapping[str, str]) -> Iterator[str]:
    """What uses the disks of a function, one phrase each.

    Args:
        function: the function.
        claims: those of its disks that nobody else has.
        tables: what is mounted where, by :func:`processes.mount_tables`.
    """
    numbers = {disk.node.number for disk in all_of(function) if disk.node is not None}
    mounts = _mounts(tables, numbers)
    loops, exports = _loops(), _exports()
    for whole in _whole_disks(function):
        found = [
            f"{_title(device)} {use}"
            for device in (whole, *_partitions(whole))
            for use in _uses(device, mounts, loops, exports)
        ]
        if not found and whole in claims.taken:
            found = [f"{_title(whole)} is claimed by the kernel or a program (ZFS, a container...)"]
        yield from found
    for tag in _shares(function.sysfs.resolve()):
        for mount in mounts:
            if mount.source == tag and mount.kind in ("9p", "virtiofs"):
                yield f"share {tag} is mounted on {mount.point}{mount.where}"


def _whole_disks(function: Function) -> list[Path]:
    # A multipath NVMe disk lies below its subsystem, which links to the controllers that reach it.
    places = [function.sysfs.resolve(), *below.subsystems(function)]
    found = [device for here in places for device in below.devices("block", here)]
    return [device for device in found if not _partition(device)]


def _partition(device: Path) -> str | None:
    return _optional(device / "partition")


def _partitions(disk: Path) -> list[Path]:
    return [disk / name for name in sysfs.entries(disk) if _partition(disk / name)]


def _title(device: Path) -> str:
    number = _partition(device)
    return f"disk {device.parent.name} partition {number}" if number else f"disk {device.name}"


def _built_on(disk: Disk, loops: Mapping[str, list[Path]]) -> Iterator[Disk]:
    """What is built on a disk directly: volumes, arrays, loop devices; and their partitions."""
    holders = [
        (disk.sysfs / "holders" / name).resolve() for name in sysfs.entries(disk.sysfs / "holders")
    ]
    number = _optional(disk.sysfs / "dev")
    for holder in (*holders, *loops.get(number or "", ())):
        for device in (holder, *_partitions(holder)):
            yield Disk(device, f"{_title(device)} on {disk.title}")


def _uses(
    device: Path,
    mounts: Iterable[_Mount],
    loops: Mapping[str, list[Path]],
    exports: Mapping[str, str],
) -> Iterator[str]:
    number = _optional(device / "dev")
    if number is None:
        return  # one path of a multipath disk
    for mount in mounts:
        source = mount.source if mount.source.startswith("/dev/") and not mount.where else ""
        if mount.number == number or (source and _number_of(source) == number):
            yield f"is mounted on {mount.point}{mount.where}"
    for source in _swaps():
        if _number_of(source) == number:
            yield "is swap space"
    if number in exports:
        yield f"is exported by {exports[number]}"
    for file_system in sysfs.entries(paths.SYSFS / "fs/btrfs"):
        if device.name in sysfs.entries(paths.SYSFS / "fs/btrfs" / file_system / "devices"):
            yield f"is part of the mounted btrfs {file_system}"
    for name in sysfs.entries(device / "holders"):
        holder = (device / "holders" / name).resolve()
        label = _optional(holder / "dm/name")
        part = f"is part of {name}" + (f" ({label})" if label else "")
        yield _with_uses(part, holder, mounts, loops, exports)
    for loop in loops.get(number, ()):
        yield _with_uses(f"is behind {loop.name}", loop, mounts, loops, exports)


def _with_uses(
    part: str,
    above: Path,
    mounts: Iterable[_Mount],
    loops: Mapping[str, list[Path]],
    exports: Mapping[str, str],
) -> str:
    uses = list(_uses(above, mounts, loops, exports))
    for partition in _partitions(above):
        uses += [
            f"has partition {_partition(partition)}, which {use}"
            for use in _uses(partition, mounts, loops, exports)
        ]
    return part if not uses else f"{part}, which {' and '.join(uses)}"


def _loops() -> dict[str, list[Path]]:
    """The loop devices, by the numbers of the disks that their files are or lie on."""
    found: dict[str, list[Path]] = {}
    for name in sysfs.entries(paths.SYSFS / "class/block"):
        device = paths.SYSFS / "class/block" / name
        backing = _optional(device / "loop/backing_file")
        if backing is None:
            continue
        for number in {*_loop_numbers(name), _number_of(backing)} - {None}:
            found.setdefault(str(number), []).append(device.resolve())
    return found


def _loop_numbers(name: str) -> list[str]:
    """The number of the disk that a loop device's file is, and of that on which it lies.

    The file's name may be one of another mount namespace, or of a file system that was unmounted.
    """
    status = bytearray(_LOOP_INFO64_SIZE)
    try:
        with File.open(str(paths.DEV / name), os.O_RDONLY | os.O_NONBLOCK) as loop:
            calls.ioctl(loop.fileno(), _LOOP_GET_STATUS64, status)
    except OSError:
        return []
    # lo_device and lo_rdevice
    encoded = (int.from_bytes(status[at : at + 8], "little") for at in (0, 16))
    return [f"{os.major(number)}:{os.minor(number)}" for number in encoded if number]


def _exports() -> dict[str, str]:
    """Who exports a disk to others without claiming it, by the disk's number."""
    found = {}
    for pattern, expression, who in _EXPORTS:
        for attribute in (paths.SYSFS / "kernel/config").glob(pattern):
            match = re.search(expression, _optional(attribute) or "")
            if match is None or _optional(attribute.parent / "enable") == "0":
                continue
            if (number := _number_of(match[1].strip())) is not None:
                found[number] = who
    return found


def _shares(here: Path) -> Iterator[str]:
    for name in sysfs.entries(here):
        if re.fullmatch(r"virtio\d+", name) and (tag := _optional(here / name / "mount_tag")):
            yield tag


def _mounts(tables: Mapping[str, str], numbers: set[str]) -> list[_Mount]:
    """What is mounted here and, of those numbers, in other mount namespaces alone."""
    mounts: list[_Mount] = []
    for process, text in tables.items():
        # Most namespaces have copies of what is mounted here.
        missing = numbers - {mount.number for mount in mounts}
        if process == "self":
            mounts += _parse_mounts(text, "")
        elif any(f" {number} " in text for number in missing):
            where = f" in the mount namespace of {describe(process)}"
            mounts += [mount for mount in _parse_mounts(text, where) if mount.number in missing]
    return mounts


def _parse_mounts(text: str, where: str) -> Iterator[_Mount]:
    """The lines of proc_pid_mountinfo(5)."""
    for line in text.split("\n"):
        fields, _, rest = line.partition(" - ")
        try:
            number, _root, point = fields.split(" ")[2:5]
            kind, source = rest.split(" ")[:2]
        except ValueError:
            continue  # no line of the kernel's
        yield _Mount(number, _unescape(point), kind, _unescape(source), where)


def _swaps() -> list[str]:
    # The first line is a heading; without swap the kernel may have no such file.
    lines = (_optional(paths.PROC / "swaps") or "").splitlines()[1:]
    return [_unescape(line.split()[0]) for line in lines]


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _number_of(path: str) -> str | None:
    """ "major:minor" of a block device's node."""
    node = node_at(path)
    return node.number if node is not None and node.block else None


def _optional(path: Path) -> str | None:
    try:
        return sysfs.read(path)
    except errors.KernelError:
        return None
