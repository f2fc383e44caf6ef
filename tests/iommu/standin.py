"""A stand-in for the kernel's VFIO containers and groups, to inject faults.

It keeps the kernel's rules that pyvfio relies on; that they are the kernel's is shown on the bench.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass, field
from typing import Any

from pyvfio.abi import vfio
from pyvfio.abi.ioctl import Request


@dataclass
class _Container:
    iommu: int | None = None
    groups: set[int] = field(default_factory=set)
    mappings: dict[int, int] = field(default_factory=dict)


@dataclass
class _Group:
    id: int
    container: _Container | None = None
    devices: int = 0
    open: bool = True


@dataclass
class _Device:
    group: _Group


class Kernel:
    """What it does can be changed.

    Attributes:
        fail: {name of a request, or path opened: errno}.
        ranges: (start, last) of what can be mapped, for any container.
        group_ranges: {group: ranges} that shrink `ranges` while the group is in.
        available: mappings per container.
        unmap: what unmapping returns, instead of the size.
        log: requests made, by name, and files closed: "close device".
    """

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}
        self.ranges = [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1)]
        self.group_ranges: dict[int, list[tuple[int, int]]] = {}
        self.extensions = {vfio.VFIO_TYPE1_IOMMU, vfio.VFIO_TYPE1v2_IOMMU}
        self.page_sizes = 0x40201000
        self.available = 65535
        self.unmap: int | None = None
        self.viable = True
        self.log: list[str] = []
        self.files: dict[int, _Container | _Group | _Device] = {}

    @property
    def mappings(self) -> dict[int, int]:
        """{IOVA: size}, in all open containers."""
        found: dict[int, int] = {}
        for file in self.files.values():
            if isinstance(file, _Container):
                found.update(file.mappings)
        return found

    def count(self, request: str) -> int:
        return self.log.count(request)

    # The system calls.

    def open(self, path: str, flags: int) -> int:
        if not path.startswith("/dev/vfio/"):
            return os.open(path, flags)
        self._maybe_fail(path)
        if path == "/dev/vfio/vfio":
            return self._new(_Container())
        number = int(path.rpartition("/")[2])
        if any(isinstance(file, _Group) and file.id == number for file in self.files.values()):
            raise OSError(errno.EBUSY, "busy")
        return self._new(_Group(number))

    def close(self, fd: int) -> None:
        os.close(fd)
        file = self.files.pop(fd, None)
        if file is not None:
            self.log.append(f"close {type(file).__name__[1:].lower()}")
        if isinstance(file, _Device):
            file.group.devices -= 1
            self._leave(file.group)
        elif isinstance(file, _Group):
            file.open = False
            self._leave(file)

    def ioctl(self, fd: int, request: Request, arg: Any) -> int:
        if fd < 0:
            raise ValueError("file descriptor cannot be a negative integer (-1)")
        self.log.append(request.name)
        self._maybe_fail(request.name)
        return int(getattr(self, request.name.lower())(self.files[fd], arg) or 0)

    # The requests.

    def vfio_get_api_version(self, container: _Container, arg: int) -> int:
        return vfio.VFIO_API_VERSION

    def vfio_check_extension(self, container: _Container, arg: int) -> bool:
        return arg in self.extensions

    def vfio_group_get_status(self, group: _Group, arg: Any) -> None:
        arg.flags = vfio.VFIO_GROUP_FLAGS_VIABLE * self.viable
        arg.flags |= vfio.VFIO_GROUP_FLAGS_CONTAINER_SET * (group.container is not None)

    def vfio_group_set_container(self, group: _Group, arg: bytearray) -> None:
        container = self.files[int.from_bytes(arg, "little")]
        assert isinstance(container, _Container)
        if group.container is not None:
            raise OSError(errno.EINVAL, "in a container already")
        for iova, size in container.mappings.items():
            if not self._reachable(iova, size, container.groups | {group.id}):
                raise OSError(errno.EINVAL, "conflict")
        group.container = container
        container.groups.add(group.id)

    def vfio_set_iommu(self, container: _Container, arg: int) -> None:
        if not container.groups or container.iommu is not None:
            raise OSError(errno.EINVAL, "no group, or set already")
        container.iommu = arg

    def vfio_group_get_device_fd(self, group: _Group, arg: bytearray) -> int:
        assert arg.endswith(b"\0")
        if group.container is None or group.container.iommu is None:
            raise OSError(errno.EINVAL, "no IOMMU")
        group.devices += 1
        return self._new(_Device(group))

    def vfio_iommu_get_info(self, container: _Container, arg: bytearray) -> None:
        self._configured(container)
        answer = type1_info(
            self._ranges(container.groups),
            self.page_sizes,
            self.available - len(container.mappings),
        )
        size = vfio.vfio_iommu_type1_info.from_buffer(arg).argsz
        assert size == len(arg)
        if size < len(answer):  # the kernel then gives the structure alone
            info = vfio.vfio_iommu_type1_info.from_buffer_copy(answer)
            info.cap_offset = 0
            answer = bytes(info)
        arg[: len(answer)] = answer

    def vfio_iommu_map_dma(self, container: _Container, arg: Any) -> None:
        self._configured(container)
        assert arg.argsz == ctypes.sizeof(arg)
        page = self.page_sizes & -self.page_sizes
        if not arg.size or (arg.size | arg.iova | arg.vaddr) % page:
            raise OSError(errno.EINVAL, "alignment")
        if any(i < arg.iova + arg.size and arg.iova < i + n for i, n in container.mappings.items()):
            raise OSError(errno.EEXIST, "overlap")
        if len(container.mappings) == self.available:
            raise OSError(errno.ENOSPC, "dma_entry_limit")
        if not self._reachable(arg.iova, arg.size, container.groups):
            raise OSError(errno.EINVAL, "out of range")
        container.mappings[arg.iova] = arg.size

    def vfio_iommu_unmap_dma(self, container: _Container, arg: Any) -> None:
        self._configured(container)
        if self.unmap is not None:
            arg.size = self.unmap
        elif container.mappings.get(arg.iova) == arg.size:
            del container.mappings[arg.iova]
        else:
            arg.size = 0

    # Helpers.

    def _new(self, file: _Container | _Group | _Device) -> int:
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.files[fd] = file
        return fd

    def _maybe_fail(self, what: str) -> None:
        if what in self.fail:
            raise OSError(self.fail[what], "injected")

    def _leave(self, group: _Group) -> None:
        if group.open or group.devices or group.container is None:
            return
        group.container.groups.discard(group.id)
        if not group.container.groups:
            group.container.iommu = None
            group.container.mappings.clear()
        group.container = None

    def _configured(self, container: _Container) -> None:
        if container.iommu is None:
            raise OSError(errno.EINVAL, "no IOMMU")

    def _ranges(self, groups: set[int]) -> list[tuple[int, int]]:
        ranges = self.ranges
        for group in groups & self.group_ranges.keys():
            ranges = [
                (max(a, c), min(b, d))
                for a, b in ranges
                for c, d in self.group_ranges[group]
                if max(a, c) <= min(b, d)
            ]
        return ranges

    def _reachable(self, iova: int, size: int, groups: set[int]) -> bool:
        return any(a <= iova and iova + size - 1 <= b for a, b in self._ranges(groups))


def type1_info(ranges: list[tuple[int, int]], page_sizes: int, available: int | None) -> bytes:
    """The answer of VFIO_IOMMU_GET_INFO, as the kernel lays it out."""
    fixed = ctypes.sizeof(vfio.vfio_iommu_type1_info)
    first = vfio.vfio_iommu_type1_info_cap_iova_range(nr_iovas=len(ranges))
    first.header.id, first.header.version = vfio.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1
    listed = b"".join(bytes(vfio.vfio_iova_range(start=a, end=b)) for a, b in ranges)
    second = vfio.vfio_iommu_type1_info_dma_avail(avail=available or 0)
    second.header.id, second.header.version = vfio.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1
    if available is not None:
        first.header.next = fixed + len(bytes(first)) + len(listed)
    tail = bytes(first) + listed + (bytes(second) if available is not None else b"")
    info = vfio.vfio_iommu_type1_info(
        argsz=fixed + len(tail),
        flags=vfio.VFIO_IOMMU_INFO_PGSIZES | vfio.VFIO_IOMMU_INFO_CAPS,
        iova_pgsizes=page_sizes,
        cap_offset=fixed,
    )
    return bytes(info) + tail
