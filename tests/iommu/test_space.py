from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyvfio import errors
from pyvfio._sys import calls
from pyvfio._sys.memory import pin
from pyvfio.abi import vfio
from pyvfio.abi.ioctl import Request
from pyvfio.iommu import Container, Group, IovaRange, Type1
from pyvfio.pci import paths
from tests.interruptions import HOW, press

from .standin import Kernel

PAGE = mmap.PAGESIZE
Functions = Callable[..., Any]


def memory(pages: int = 1) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE)


# What it opens, and in which order.


@pytest.mark.usefixtures("no_leak")
def test_open_and_close_leave_nothing(kernel: Kernel, function: Functions) -> None:
    with Type1() as space:
        file = space.open_device(function(7))
        assert file.path == "0000:01:00.0"
        assert [g.id for g in space.groups] == [7]
        space.close_device(file)
        space.close_device(file)
        assert file.closed
        assert space.groups == ()
    space.close()
    assert space.closed
    assert kernel.files == {}


@pytest.mark.usefixtures("no_leak")
def test_closing_the_space_stops_devices_first_then_undoes_mappings(
    kernel: Kernel, function: Functions
) -> None:
    space = Type1()
    file = space.open_device(function(1))
    space.alloc(4096)
    mapping = space.map(memory())
    kernel.log.clear()
    space.stop_with(file, lambda: kernel.log.append("stop"))
    space.close()
    assert [what for what in kernel.log if what != "VFIO_IOMMU_GET_INFO"] == [
        "stop",
        "VFIO_IOMMU_UNMAP_DMA",
        "VFIO_IOMMU_UNMAP_DMA",
        "close device",
        "close group",
        "close container",
    ]
    assert file.closed
    assert mapping.closed
    assert kernel.files == {}
    mapping.close()
    space.close_device(file)


@pytest.mark.usefixtures("no_leak")
def test_who_closes_a_device_has_stopped_it(kernel: Kernel, function: Functions) -> None:
    def stop() -> None:
        raise AssertionError("called")

    with Type1() as space:
        file = space.open_device(function(1))
        space.stop_with(file, stop)
        kept = weakref.ref(stop)
        del stop
        space.close_device(file)
        assert kept() is None


@pytest.mark.usefixtures("no_leak")
def test_every_device_is_stopped_whatever_fails(kernel: Kernel, function: Functions) -> None:
    space = Type1()
    files = [space.open_device(function(n, f"0000:0{n}:00.0")) for n in (1, 2, 3)]
    stopped = []

    def stop(number: int) -> None:
        stopped.append((number, [file.closed for file in files]))
        raise errors.KernelError(errno.EIO, "pwrite", f"device {number}")

    for number, file in enumerate(files):
        space.stop_with(file, partial(stop, number))
    space.close_device(files[2])
    with pytest.raises(errors.KernelError, match="device 0"):
        space.close()
    assert stopped == [(1, [False, False, True]), (0, [False, False, True])]
    assert kernel.files == {}
    space.close()
    assert len(stopped) == 2


def test_devices_of_one_group_share_its_file(kernel: Kernel, function: Functions) -> None:
    with Type1() as space:
        first = space.open_device(function(1, "0000:01:00.0"))
        second = space.open_device(function(1, "0000:01:00.1"))
        other = space.open_device(function(2, "0000:02:00.0"))
        assert kernel.count("VFIO_GROUP_SET_CONTAINER") == 2
        assert kernel.count("VFIO_SET_IOMMU") == 1
        buffer = space.alloc(4096)
        space.close_device(first)
        assert [g.id for g in space.groups] == [1, 2]
        space.close_device(second)
        assert [g.id for g in space.groups] == [2]
        assert len(kernel.mappings) == 1
        assert buffer.view[0] == 0
        space.close_device(other)
        assert kernel.mappings == {}


def test_when_the_last_device_leaves_everything_is_unmapped(
    kernel: Kernel, function: Functions
) -> None:
    with Type1() as space:
        file = space.open_device(function(1))
        buffer, mapping = space.alloc(4096), space.map(memory())
        view = buffer.view
        space.close_device(file)
        assert kernel.count("VFIO_IOMMU_UNMAP_DMA") == 2  # not left to the kernel
        assert mapping.closed
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
        buffer.close()
        with pytest.raises(errors.StateError, match="open a device"):
            space.alloc(4096)
        space.open_device(function(1))
        assert space.alloc(4096).view[0] == 0


def test_a_device_that_counts_as_open_for_its_view_keeps_no_mapping(
    kernel: Kernel, function: Functions
) -> None:
    """While somebody holds a view of a BAR, the kernel keeps device and group open."""
    with Type1() as space:
        file = space.open_device(function(1))
        space.alloc(4096)
        (held,) = (f for f in kernel.files.values() if hasattr(f, "devices"))
        held.devices += 1
        space.close_device(file)
        assert kernel.mappings == {}
        space.open_device(function(2))  # the container has its IOMMU still
        assert kernel.count("VFIO_SET_IOMMU") == 1
        space.alloc(4096)


def test_a_device_that_cannot_be_opened_leaves_the_space_usable(
    kernel: Kernel, function: Functions
) -> None:
    with Type1() as space:
        for what in FAILURES[3:]:
            kernel.fail = {what: errno.EIO}
            with pytest.raises(errors.KernelError):
                space.open_device(function(1))
            assert space.groups == ()
            assert len(kernel.files) == 1
        kernel.fail = {}
        space.open_device(function(1))


FAILURES = [
    "/dev/vfio/vfio",
    "VFIO_GET_API_VERSION",
    "VFIO_CHECK_EXTENSION",
    "/dev/vfio/1",
    "VFIO_GROUP_GET_STATUS",
    "VFIO_GROUP_SET_CONTAINER",
    "VFIO_SET_IOMMU",
    "VFIO_GROUP_GET_DEVICE_FD",
]


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_half_way_leaves_nothing(kernel: Kernel, function: Functions, what: str) -> None:
    kernel.fail[what] = errno.EIO
    with pytest.raises(errors.KernelError) as caught, Type1() as space:
        space.open_device(function(1))
    assert caught.value.errno == errno.EIO
    assert kernel.files == {}


@pytest.mark.usefixtures("no_leak")
def test_a_second_group_that_fails_leaves_the_first_alone(
    kernel: Kernel, function: Functions
) -> None:
    with Type1() as space:
        space.open_device(function(1))
        buffer = space.alloc(4096)
        kernel.fail["VFIO_GROUP_GET_DEVICE_FD"] = errno.ENODEV
        with pytest.raises(errors.DeviceGone, match=r"0000:02:00\.0"):
            space.open_device(function(2, "0000:02:00.0"))
        assert [g.id for g in space.groups] == [1]
        assert len(kernel.files) == 3
        assert buffer.view[0] == 0


def test_descriptors_that_the_caller_brings_are_used(kernel: Kernel, function: Functions) -> None:
    container_fd = kernel.open("/dev/vfio/vfio", os.O_RDWR)
    group_fd = kernel.open("/dev/vfio/3", os.O_RDWR)
    with Type1(Container.from_fd(container_fd)) as space:
        space.attach(Group.from_fd(group_fd, 3))
        with pytest.raises(errors.StateError, match="already"):
            space.attach(space.groups[0])
        space.open_device(function(3))
        assert set(kernel.files) > {container_fd, group_fd}
    assert kernel.files == {}


def test_a_container_that_is_set_up_already_is_taken_as_it_is(
    kernel: Kernel, function: Functions
) -> None:
    container = Container.open()
    brought = Group.open(3)
    brought.set_container(container)
    container.set_iommu(vfio.VFIO_TYPE1v2_IOMMU)
    with Type1(container) as space:
        space.attach(brought, joined=True)
        space.open_device(function(3))
        assert kernel.count("VFIO_SET_IOMMU") == kernel.count("VFIO_GROUP_SET_CONTAINER") == 1


@pytest.mark.parametrize("ready", [True, False], ids=["with an IOMMU", "empty"])
def test_a_group_in_another_container_is_refused(
    kernel: Kernel, function: Functions, ready: bool
) -> None:
    with Container.open() as elsewhere, Group.open(3) as group, Type1() as space:
        group.set_container(elsewhere)
        if ready:
            space.open_device(function(1))
        with pytest.raises(errors.KernelError, match="3 is in a container already") as caught:
            space.attach(group)
        assert caught.value.errno == errno.EINVAL
        assert group not in space.groups


@pytest.mark.parametrize(
    ("asked", "available", "used"), [(2, {1, 3}, 3), (1, {1, 3}, 1), (2, {1}, 1)]
)
def test_the_version_of_type1(
    kernel: Kernel, function: Functions, asked: int, available: set[int], used: int
) -> None:
    kernel.extensions = available
    with Type1(version=asked) as space:
        space.open_device(function(1))
        (iommu,) = (f.iommu for f in kernel.files.values() if hasattr(f, "iommu"))
        assert iommu == used
        assert space.version == {1: 1, 3: 2}[used]


@pytest.mark.usefixtures("no_leak")
def test_a_kernel_without_type1_is_refused(kernel: Kernel) -> None:
    kernel.extensions = set()
    with pytest.raises(errors.Unsupported, match="modprobe vfio_iommu_type1"):
        Type1()
    with pytest.raises(errors.ArgumentError):
        Type1(version=3)


@pytest.mark.usefixtures("no_leak")
def test_another_api_version_is_refused(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "vfio_get_api_version", lambda *_: 9)
    with pytest.raises(errors.Unsupported, match="version 9"):
        Type1()


# What the kernel says.


def test_ranges_page_sizes_and_mappings_come_from_the_kernel(
    kernel: Kernel, function: Functions
) -> None:
    kernel.group_ranges[2] = [(0, (1 << 36) - 1)]
    with Type1() as space:
        for what in ("iova_ranges", "page_sizes", "page_size", "mappings_available"):
            with pytest.raises(errors.StateError, match="open a device"):
                getattr(space, what)
        space.open_device(function(1))
        assert space.iova_ranges == (
            IovaRange(0, 0xFEDFFFFF),
            IovaRange(0xFEF00000, (1 << 39) - 1),
        )
        assert space.page_sizes == 0x40201000
        assert space.page_size == max(0x1000, PAGE)
        assert space.mappings_available == 65535
        space.map(memory())
        assert space.mappings_available == 65534
        second = space.open_device(function(2, "0000:02:00.0"))
        assert space.iova_ranges[-1].last == (1 << 36) - 1
        space.close_device(second)
        assert space.iova_ranges[-1].last == (1 << 39) - 1


def test_a_group_that_cannot_reach_what_is_mapped_is_refused(
    kernel: Kernel, function: Functions
) -> None:
    kernel.group_ranges[2] = [(0, (1 << 31) - 1)]
    with Type1() as space:
        space.open_device(function(1))
        mapping = space.map(memory(), iova=1 << 32)
        with pytest.raises(errors.KernelError, match="cannot reach") as caught:
            space.open_device(function(2, "0000:02:00.0"))
        assert caught.value.errno == errno.EINVAL
        mapping.close()
        space.open_device(function(2, "0000:02:00.0"))
        with pytest.raises(errors.RangeError, match="0x0-0x7fffffff"):
            space.map(memory(), iova=1 << 32)


def test_addresses_stay_taken_when_a_group_comes_or_goes(
    kernel: Kernel, function: Functions
) -> None:
    with Type1() as space:
        space.open_device(function(1))
        mapping = space.map(memory(4))
        second = space.open_device(function(2, "0000:02:00.0"))
        assert space.map(memory()).iova == mapping.iova + 4 * PAGE
        space.close_device(second)
        assert space.map(memory()).iova == mapping.iova + 5 * PAGE


def test_large_iommu_pages_are_honoured(kernel: Kernel, function: Functions) -> None:
    kernel.page_sizes = 0x10000
    with Type1() as space:
        space.open_device(function(1))
        assert space.page_size == 0x10000
        with pytest.raises(errors.ArgumentError, match="0x10000"):
            space.map(memory())


def test_an_answer_that_asks_for_endless_room_is_refused(
    space: Type1, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(container: object, arg: bytearray) -> None:
        vfio.vfio_iommu_type1_info.from_buffer(arg).argsz = 0xFFFFFFFF

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "vfio_iommu_get_info", greedy)
        with pytest.raises(errors.KernelError, match="makes no sense"):
            _ = space.mappings_available


# Mapping.


def test_map_and_unmap(space: Type1, kernel: Kernel) -> None:
    with space.map(memory(3)) as mapping:
        assert kernel.mappings == {mapping.iova: 3 * PAGE}
        assert mapping.size == 3 * PAGE
        assert mapping.iova >= 1 << 32
    mapping.close()
    assert mapping.closed
    assert kernel.mappings == {}


def test_zero_is_an_iova_but_never_a_free_choice(space: Type1, kernel: Kernel) -> None:
    assert space.map(memory(), max_iova=2 * PAGE - 1).iova == PAGE
    with pytest.raises(errors.NoSpace):
        space.map(memory(), max_iova=2 * PAGE - 1)
    assert space.map(memory(), iova=0).iova == 0
    assert kernel.mappings == {0: PAGE, PAGE: PAGE}


def test_when_the_addresses_above_4_gib_are_taken_the_lower_ones_serve(
    kernel: Kernel, function: Functions
) -> None:
    kernel.ranges = [(0, 0xFFFF)]
    with Type1() as space:
        space.open_device(function(1))
        assert space.map(memory()).iova == PAGE


def test_what_is_mapped_is_kept_alive(space: Type1) -> None:
    area = memory()
    iova = space.map(area).iova
    with pytest.raises(BufferError):
        area.close()
    space._mappings[iova].close()
    area.close()


def test_numpy_arrays_are_mapped(space: Type1, kernel: Kernel) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.frombuffer(memory(2), "<f8").reshape(4, -1)
    with space.map(array) as mapping:
        assert kernel.mappings == {mapping.iova: 2 * PAGE}
    with pytest.raises(errors.ArgumentError, match="contiguous"):
        space.map(array[:, ::2])


@pytest.mark.parametrize(
    "buffer",
    [
        b"bytes are read-only" * PAGE,
        bytearray(PAGE + 1),
        bytearray(0),
        memoryview(memory(2))[64 : PAGE + 64],
        memoryview(memory(2))[: PAGE - 64],
    ],
    ids=["read-only", "length", "empty", "unaligned", "short"],
)
def test_memory_that_cannot_be_mapped_is_refused(
    space: Type1, kernel: Kernel, buffer: object
) -> None:
    with pytest.raises(errors.ArgumentError, match="alloc"):
        space.map(buffer)
    assert kernel.mappings == {}


def test_readable_and_writable_reach_the_kernel(
    space: Type1, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[int] = []
    real = kernel.vfio_iommu_map_dma

    def seen(container: Any, arg: Any) -> None:
        flags.append(arg.flags)
        real(container, arg)

    monkeypatch.setattr(kernel, "vfio_iommu_map_dma", seen)
    for readable, writable in [(True, True), (True, False), (False, True)]:
        space.map(memory(), readable=readable, writable=writable)
    assert flags == [3, 1, 2]
    with pytest.raises(errors.ArgumentError):
        space.map(memory(), readable=False, writable=False)


def test_a_fixed_iova_is_checked_before_the_kernel_is_asked(space: Type1, kernel: Kernel) -> None:
    space.map(memory(2), iova=0x10000)
    asked = kernel.count("VFIO_IOMMU_MAP_DMA")
    with pytest.raises(errors.ArgumentError, match="multiple"):
        space.map(memory(), iova=0x10001)
    with pytest.raises(errors.RangeError, match="0x0-0xfedfffff, 0xfef00000-0x7fffffffff"):
        space.map(memory(), iova=0xFEE00000)
    with pytest.raises(errors.RangeError, match="0x0-0xffff"):
        space.map(memory(), iova=0x10000, max_iova=0xFFFF)
    with pytest.raises(errors.RangeError):
        space.map(memory(), iova=-PAGE)
    with pytest.raises(errors.NoSpace, match="0x10000-0x"):
        space.map(memory(), iova=0x10000 + PAGE)
    assert kernel.count("VFIO_IOMMU_MAP_DMA") == asked


def test_an_unmap_of_another_size_is_an_error_and_keeps_the_memory(
    space: Type1, kernel: Kernel
) -> None:
    area = memory(2)
    mapping = space.map(area)
    kernel.unmap = PAGE
    with pytest.raises(errors.KernelError, match="0x1000 of the 0x2000") as caught:
        mapping.close()
    assert caught.value.call == "VFIO_IOMMU_UNMAP_DMA"
    with pytest.raises(BufferError):
        area.close()
    kernel.unmap = None
    mapping.close()
    area.close()


@pytest.mark.usefixtures("no_leak")
def test_an_unmap_that_fails_does_not_stop_closing(kernel: Kernel, function: Functions) -> None:
    space = Type1()
    space.open_device(function(1))
    mapping = space.map(memory(2))
    kernel.unmap = PAGE
    with pytest.raises(errors.KernelError, match="unmapped 0x1000"):
        space.close()
    assert space.closed
    assert mapping.closed
    assert kernel.files == {}


@pytest.mark.usefixtures("no_leak")
def test_after_an_unmap_that_fails_the_others_are_done(
    kernel: Kernel, function: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Type1()
    file = space.open_device(function(1))
    mappings = [space.map(memory()) for _ in range(4)]
    real = kernel.vfio_iommu_unmap_dma
    tried = []

    def unmap(container: Any, arg: Any) -> None:
        tried.append(arg.iova)
        if arg.iova in (mappings[1].iova, mappings[2].iova):
            raise OSError(errno.EIO if arg.iova == mappings[1].iova else errno.EFAULT, "injected")
        real(container, arg)

    monkeypatch.setattr(kernel, "vfio_iommu_unmap_dma", unmap)
    with pytest.raises(errors.KernelError) as caught:
        space.close_device(file)
    assert caught.value.errno == errno.EIO  # the first
    assert tried == [mapping.iova for mapping in mappings]
    assert all(mapping.closed for mapping in mappings)
    space.close()


@pytest.mark.usefixtures("no_leak")
def test_what_the_kernel_drops_itself_while_closing_is_no_failure(
    kernel: Kernel, function: Functions
) -> None:
    """It does so with a device that is being removed, and answers that nothing was mapped."""
    space = Type1()
    space.open_device(function(1))
    mapping = space.map(memory())
    kernel.unmap = 0
    space.close()
    assert space.closed
    assert mapping.closed
    assert kernel.files == {}


# What the kernel refuses, and what to do about it.


@pytest.mark.parametrize(
    ("what", "number", "kind", "advice"),
    [
        ("/dev/vfio/vfio", errno.ENOENT, errors.NoVfio, "modprobe vfio-pci"),
        ("/dev/vfio/vfio", errno.ENODEV, errors.NoVfio, "modprobe vfio-pci"),
        ("/dev/vfio/vfio", errno.EACCES, errors.AccessDenied, "chmod 666 /dev/vfio/vfio"),
        ("/dev/vfio/vfio", errno.EPERM, errors.AccessDenied, "cgroup must allow"),
        ("/dev/vfio/vfio", errno.EMFILE, errors.OpenFilesLimit, "ulimit -n"),
        ("/dev/vfio/1", errno.ENOENT, errors.NotBound, "bind one"),
        ("/dev/vfio/1", errno.EACCES, errors.AccessDenied, "chown USER /dev/vfio/1"),
        ("/dev/vfio/1", errno.EPERM, errors.AccessDenied, "--device /dev/vfio/1"),
        ("/dev/vfio/1", errno.EBUSY, errors.Busy, "holds /dev/vfio/1 open: close it"),
        ("/dev/vfio/1", errno.EMFILE, errors.OpenFilesLimit, "ulimit -n"),
        ("VFIO_GROUP_GET_DEVICE_FD", errno.EBUSY, errors.Busy, "close it there"),
        ("VFIO_GROUP_GET_DEVICE_FD", errno.EACCES, errors.AccessDenied, "token"),
        ("VFIO_GROUP_GET_DEVICE_FD", errno.ENODEV, errors.DeviceGone, "removed"),
        ("VFIO_GROUP_GET_DEVICE_FD", errno.EMFILE, errors.OpenFilesLimit, "ulimit -n"),
    ],
)
@pytest.mark.usefixtures("no_leak")
def test_opening_that_is_refused_says_what_to_do(
    kernel: Kernel,
    function: Functions,
    what: str,
    number: int,
    kind: type[errors.Error],
    advice: str,
) -> None:
    kernel.fail[what] = number
    with pytest.raises(kind) as caught, Type1() as space:
        space.open_device(function(1))
    assert advice in str(caught.value)
    if isinstance(caught.value, OSError):
        assert caught.value.errno == number
    assert kernel.files == {}


@pytest.mark.usefixtures("no_leak")
def test_a_group_that_is_not_viable_is_refused(kernel: Kernel, function: Functions) -> None:
    kernel.viable = False
    with pytest.raises(errors.GroupNotViable, match="iommu_groups/1/devices"), Type1() as space:
        space.open_device(function(1))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], object]:
    """A host without anything in /sys and /proc; host("sys/...", text) puts a file there."""
    monkeypatch.setattr(paths, "SYSFS", tmp_path / "sys")
    monkeypatch.setattr(paths, "PROC", tmp_path / "proc")

    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


UNSAFE = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
RESERVED = "sys/kernel/iommu_groups/1/reserved_regions"
RMRR = "0x00000000000e8000 0x00000000000e8fff direct\n0x00000000fee00000 0x00000000feefffff msi\n"
USB = "0x00000000000e8000 0x00000000000e8fff direct-relaxable\n"


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("request_", ["VFIO_GROUP_SET_CONTAINER", "VFIO_SET_IOMMU"])
@pytest.mark.parametrize(
    ("number", "unsafe", "reserved", "kind", "says", "not_says"),
    [
        (errno.EPERM, "N\n", USB, errors.NoInterruptRemapping, UNSAFE, "firmware keeps"),
        (errno.EPERM, "Y\n", "", errors.KernelError, "EPERM", UNSAFE),
        (errno.EPERM, None, "", errors.KernelError, "EPERM", UNSAFE),
        (errno.EPERM, "N\n", RMRR, errors.KernelError, "0x00000000000e8000-0x", UNSAFE),
        (errno.EINVAL, "N\n", RMRR, errors.KernelError, "RMRR", UNSAFE),
        (errno.EINVAL, "N\n", USB, errors.KernelError, "EINVAL", "firmware keeps"),
        (errno.EIO, "N\n", RMRR, errors.KernelError, "EIO", "firmware keeps"),
    ],
    ids=["remapping", "guard down", "no module", "RMRR", "RMRR at 6.x", "mapped", "other"],
)
def test_why_dma_is_refused_is_told_by_what_the_host_shows(
    kernel: Kernel,
    function: Functions,
    host: Callable[[str, str], object],
    request_: str,
    number: int,
    unsafe: str | None,
    reserved: str,
    kind: type[errors.KernelError],
    says: str,
    not_says: str,
) -> None:
    if unsafe is not None:
        host(UNSAFE, unsafe)
    host(RESERVED, reserved)
    kernel.fail[request_] = number
    with pytest.raises(errors.KernelError) as caught, Type1() as space:
        space.open_device(function(1))
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert not_says not in str(caught.value)
    assert (caught.value.errno, caught.value.call) == (number, request_)
    assert kernel.files == {}


def test_a_host_driver_that_comes_at_the_last_moment_is_told(
    kernel: Kernel,
    function: Functions,
    host: Callable[[str, str], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host(UNSAFE, "N\n")

    def claimed(group: Any, arg: Any) -> None:
        kernel.viable = False
        raise OSError(errno.EPERM, "owned")

    monkeypatch.setattr(kernel, "vfio_group_set_container", claimed)
    with pytest.raises(errors.GroupNotViable, match="iommu_groups/1/devices"), Type1() as space:
        space.open_device(function(1))


def test_the_process_that_has_a_group_open_is_named(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / str(os.getpid()) / "fd"
    files.mkdir(parents=True)
    (files / "7").symlink_to("/dev/vfio/1")
    monkeypatch.setattr(paths, "PROC", tmp_path)
    kernel.fail["/dev/vfio/1"] = errno.EBUSY
    with pytest.raises(errors.Busy, match=r"this process holds /dev/vfio/1 open.* only once"):
        Group.open(1)


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.ENOSPC, errors.MappingLimit, "dma_entry_limit"),
        (errno.EEXIST, errors.KernelError, "mapped there already"),
        (errno.EFAULT, errors.KernelError, "not this process's"),
        (errno.EFAULT, errors.KernelError, "a BAR of a device whose memory decoding is off"),
        (errno.EIO, errors.KernelError, "0x1000 bytes at IOVA"),
    ],
)
def test_a_map_that_is_refused_says_what_to_do(
    space: Type1, kernel: Kernel, number: int, kind: type[errors.KernelError], advice: str
) -> None:
    kernel.fail["VFIO_IOMMU_MAP_DMA"] = number
    with pytest.raises(kind) as caught:
        space.map(memory())
    assert advice in str(caught.value)
    assert caught.value.errno == number
    assert caught.value.call == "VFIO_IOMMU_MAP_DMA"


@pytest.mark.parametrize(
    ("limit", "locked", "capabilities", "is_limit"),
    [
        (64 << 10, 60 << 10, 0, True),
        (64 << 10, 56 << 10, 0, False),
        (64 << 10, 60 << 10, 1 << 14, False),
        (resource.RLIM_INFINITY, 60 << 10, 0, False),
    ],
    ids=["over", "within", "exempt", "unlimited"],
)
def test_the_limit_on_locked_memory_is_told_from_exhausted_memory(
    space: Type1,
    kernel: Kernel,
    host: Callable[[str, str], object],
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    locked: int,
    capabilities: int,
    is_limit: bool,
) -> None:
    kernel.fail["VFIO_IOMMU_MAP_DMA"] = errno.ENOMEM
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    host("proc/self/status", f"VmLck:\t{locked >> 10} kB\nCapEff:\t{capabilities:016x}\n")
    with pytest.raises(errors.KernelError) as caught:
        space.map(memory(2))
    assert isinstance(caught.value, errors.LockedMemoryLimit) == is_limit
    if is_limit:
        for part in ("lock 64 KiB", "60 KiB are locked", "8 KiB more", "ulimit -l", "LimitMEMLOCK"):
            assert part in str(caught.value)
    else:
        assert "no memory left" in str(caught.value)


# After a fork.


def test_in_a_forked_child_the_space_is_closed_and_the_parent_untouched(
    kernel: Kernel, function: Functions
) -> None:
    space = Type1()
    file = space.open_device(function(1))
    buffer, large, mapping = space.alloc(4096), space.alloc(4 << 20), space.map(memory())
    requests = len(kernel.log)
    space.stop_with(file, lambda: kernel.log.append("stop"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert space.closed
            assert file.closed
            buffer.view[0] = 0x42
            for call in (
                lambda: space.alloc(4096),
                lambda: space.map(memory()),
                lambda: space.open_device(function(1)),
                lambda: space.iova_ranges,
            ):
                try:
                    call()
                except errors.Closed:
                    continue
                raise AssertionError("worked in the child")
            buffer.close()
            large.close()
            mapping.close()
            space.close()
            space.close_device(file)
            made = kernel.log[requests:]
            assert all(what.startswith("close ") for what in made), made
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert buffer.view[0] == 0x42
    assert len(kernel.mappings) == 3
    space.close()
    assert kernel.files == {}


# What it brings in.

_OPENED = """
import sys
from pyvfio._sys import calls
from pyvfio._sys.memory import pin
from tests.iommu.standin import Kernel
kernel = Kernel()
calls.open, calls.close, calls.ioctl = kernel.open, kernel.close, kernel.ioctl
import pyvfio
pyvfio.open
pyvfio.open_space().close()
print(*sys.modules)
pyvfio.iommu.SpaprTceV2
print("pyvfio.iommu.spapr" in sys.modules)
"""


def test_another_host_does_not_wait_for_what_is_powers() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", _OPENED],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    opened, asked = result.stdout.splitlines()
    loaded = {name for name in opened.split() if name.startswith("pyvfio.iommu.")}
    assert "pyvfio.iommu.type1" in loaded
    assert not loaded & {f"pyvfio.iommu.{name}" for name in ("spapr", "registered", "locked")}
    assert asked == "True"


# Interrupted calls.


def interrupt(
    kernel: Kernel, patch: pytest.MonkeyPatch, request: str, how: Callable[[], None]
) -> None:
    """Let the next request be interrupted, after the kernel has done it."""
    real = kernel.ioctl

    def ioctl(fd: int, asked: Request, arg: Any) -> int:
        result = real(fd, asked, arg)
        if asked.name == request:
            patch.setattr(calls, "ioctl", real)
            how()
        return result

    patch.setattr(calls, "ioctl", ioctl)


@HOW
@pytest.mark.parametrize("what", ["map", "alloc", "large"])
def test_interrupted_map_leaves_the_space_usable(
    space: Type1,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[], None],
    what: str,
) -> None:
    area = memory(4)
    make: Callable[[], Any] = {
        "map": lambda: space.map(area, iova=1 << 32),
        "alloc": lambda: space.alloc(4096),
        "large": lambda: space.alloc(4 << 20),
    }[what]
    interrupt(kernel, monkeypatch, "VFIO_IOMMU_MAP_DMA", how)
    with pytest.raises(KeyboardInterrupt):
        make()
    if what != "alloc":  # of which an arena may stay
        assert kernel.mappings == {}
        assert space._iovas.unused
    assert space.iova_of(area) is None
    with make() as made:
        assert made.iova in kernel.mappings
    space._pool.trim(keep=0)
    assert kernel.mappings == {}


@HOW
def test_interrupted_unmap_can_be_done_again(
    space: Type1, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]
) -> None:
    mapping = space.map(memory(), iova=1 << 32)
    interrupt(kernel, monkeypatch, "VFIO_IOMMU_UNMAP_DMA", how)
    with pytest.raises(KeyboardInterrupt):
        mapping.close()
    assert kernel.mappings == {}
    mapping.close()
    assert mapping.closed
    space.map(memory(), iova=1 << 32).close()


@HOW
@pytest.mark.parametrize(
    "request_",
    ["VFIO_GROUP_SET_CONTAINER", "VFIO_SET_IOMMU", "VFIO_IOMMU_GET_INFO"],
)
def test_interrupted_opening_leaves_the_space_usable(
    kernel: Kernel,
    function: Functions,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[], None],
    request_: str,
) -> None:
    with Type1() as space:
        interrupt(kernel, monkeypatch, request_, how)
        with pytest.raises(KeyboardInterrupt):
            space.open_device(function(1))
        assert space.groups == ()
        assert len(kernel.files) == 1
        space.open_device(function(1))
        space.alloc(4096)
    assert kernel.files == {}


def test_refused_undoing_of_a_map_is_tried_again(
    space: Type1, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        kernel.fail["VFIO_IOMMU_UNMAP_DMA"] = errno.EIO
        press()

    interrupt(kernel, monkeypatch, "VFIO_IOMMU_MAP_DMA", refuse)
    with pytest.raises(KeyboardInterrupt):
        space.map(memory(), iova=1 << 32)
    kernel.fail.clear()
    with pytest.raises(errors.NoSpace):
        space.map(memory(), iova=1 << 32)
    space.close()
    assert kernel.count("VFIO_IOMMU_UNMAP_DMA") == 2
    assert kernel.files == {}


# Views.


@pytest.mark.parametrize("size", [100, 4096, 4 << 20])
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed buffer"])
def test_views_of_buffers_end_with_the_space(space: Type1, size: int, closed: bool) -> None:
    buffer = space.alloc(size)
    views = [buffer.view, buffer.view[8:16], buffer.view[:8].cast("I")]
    if closed:
        buffer.close()
    assert views[1][0] == 0, "they stay until then"
    space.close()
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]
    buffer.close()


def test_array_over_a_buffer_outlives_the_space(space: Type1) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.frombuffer(space.alloc(size).view, "u1") for size in (4096, 4 << 20)]
    for array in arrays:
        array[:] = 7
    space.close()
    gc.collect()
    for array in arrays:
        assert (array == 7).all()


def test_view_that_is_pinned_stays(space: Type1) -> None:
    buffer = space.alloc(4096)
    view = buffer.view
    pinned = pin(view)
    space.close()
    view[0] = 1
    assert view[0] == 1
    assert pinned is not None
    buffer.close()


def test_views_of_other_memory_stay(space: Type1) -> None:
    other, area = memoryview(bytearray(8)), memory()
    view = memoryview(area)
    space.map(area)
    space.alloc(4096)
    space.close()
    assert other[0] == view[0] == 0


def test_read_only_mapping_is_of_pages_of_its_own(
    space: Type1, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older kernels map the shared page of zeros, and the device never sees what is written."""
    present: list[int] = []

    def look(container: object, arg: Any) -> None:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            found = os.pread(pagemap.fileno(), arg.size // PAGE * 8, arg.vaddr // PAGE * 8)
        present.extend(entry >> 63 for entry in memoryview(found).cast("Q"))

    area = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "vfio_iommu_map_dma", look)
        space.map(area, writable=False)
    assert present == [1] * 4
