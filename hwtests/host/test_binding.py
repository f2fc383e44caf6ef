"""Binding on a real kernel: taken, given back, refused, interrupted, killed.

Only for the bench, whose disk and network card are nobody's. Behind its spare root port goes what
makes a group with a host driver in it:
tools/bench run x86 --qemu-args "-device virtio-rng-pci,bus=spare,addr=0.0,multifunction=on
-device virtio-rng-pci,bus=spare,addr=0.1" -- python3 -m pytest hwtests/host/test_binding.py
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pyvfio
from hwtests.nvme_nodes import node
from pyvfio import errors
from pyvfio._sys import calls
from pyvfio.abi import vfio
from pyvfio.pci import Function, bind, bound, check_openable, functions, paths, unbind, users

if TYPE_CHECKING:
    from typing_extensions import Buffer

pytestmark = pytest.mark.skipif(
    not os.environ.get("PYVFIO_BENCH"),
    reason="takes a disk and a network card from the host: only on the bench (PYVFIO_BENCH)",
)


def the(driver: str) -> Function:
    """The first function that this driver has."""
    return next(function for function in functions() if function.driver == driver)


@pytest.fixture
def card() -> Iterator[Function]:
    function = the("e1000e")
    yield function
    assert (function.driver, function.driver_override) == ("e1000e", None)
    assert not record(function).exists()


@pytest.fixture
def disk() -> Iterator[Function]:
    function = the("nvme")
    yield function
    assert (function.driver, function.driver_override) == ("nvme", None)


def record(function: Function) -> Path:
    return paths.RECORDS / f"{function.address}.json"


def interface(function: Function) -> str:
    """Its network interface, once its driver has made it."""
    for _ in range(200):
        try:
            return next((function.sysfs / "net").iterdir()).name
        except (OSError, StopIteration):
            time.sleep(0.05)
    raise AssertionError(f"{function} has no network interface")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def test_taken_and_given_back(card: Function) -> None:
    with pytest.raises(errors.NotBound, match=f"e1000e.*pyvfio bind {card.address}"):
        check_openable(card)
    with bound(card.address) as function:
        assert function.driver == "vfio-pci"
        assert function.driver_override is None
        assert Path(check_openable(function).path).is_char_device()
        assert not (function.sysfs / "net").exists()
    assert interface(card)


def test_an_override_that_was_there_is_there_again(card: Function) -> None:
    override = card.sysfs / "driver_override"
    override.write_text("e1000e\n")
    try:
        with bound(card.address):
            assert card.driver_override == "e1000e"
        assert (card.driver, card.driver_override) == ("e1000e", "e1000e")
    finally:
        override.write_text("\n")


def test_none_that_was_there_is_there_again() -> None:
    edu = next(function for function in functions() if function.vendor_id == 0x1234)
    assert edu.driver is None
    with bound(edu.address):
        assert edu.driver == "vfio-pci"
    assert edu.driver is None


def test_the_modules_are_loaded(card: Function) -> None:
    subprocess.run(["modprobe", "-r", "vfio-pci"], check=True)
    with pytest.raises(errors.NoVfio, match=f"pyvfio bind {card.address}"):
        check_openable(card)
    with bound(card.address):
        check_openable(card)


def in_child(action: Callable[[], object], core: Callable[[int, str], None]) -> int:
    """Do something in a child, calling `core` before and after each write to sysfs.

    Returns:
        The child's exit status; 0 when it finished.
    """
    child = os.fork()
    if child == 0:
        status = 1
        count = 0

        def pwrite(fd: int, data: Buffer, offset: int) -> int:
            nonlocal count
            count += 1
            core(count, "before")
            done = os.pwrite(fd, data, offset)
            core(count, "after")
            return done

        calls.pwrite = pwrite
        try:
            action()
            status = 0
        except KeyboardInterrupt:
            status = 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_given_back_after_kill_9_at_each_step(card: Function, step: int, moment: str) -> None:
    def kill(count: int, now: str) -> None:
        if (count, now) == (step, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: bind(card.address), kill) == -signal.SIGKILL
    assert unbind(card.address) is True
    assert card.driver == "e1000e"
    assert in_child(lambda: bind(card.address), kill) == -signal.SIGKILL
    bind(card.address)
    assert (card.driver, card.driver_override) == ("vfio-pci", None)
    assert unbind(card.address) is True
    assert interface(card)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_ctrl_c_at_each_step_gives_back(card: Function, step: int, moment: str) -> None:
    def interrupt(count: int, now: str) -> None:
        if (count, now) == (step, moment):
            os.kill(os.getpid(), signal.SIGINT)

    assert in_child(lambda: bind(card.address), interrupt) == 2
    assert card.driver == "e1000e"


@pytest.mark.parametrize("step", [5, 6, 7, 8])
def test_ctrl_c_while_it_is_given_back_waits(card: Function, step: int) -> None:
    def interrupt(count: int, now: str) -> None:
        if (count, now) == (step, "before"):
            os.kill(os.getpid(), signal.SIGINT)

    def work() -> None:
        with bound(card.address):
            assert card.driver == "vfio-pci"

    assert in_child(work, interrupt) == 2
    assert card.driver == "e1000e"
    assert interface(card)


def test_ctrl_c_while_it_is_opened_leaves_nothing_open(card: Function) -> None:
    def work() -> None:
        real = calls.ioctl

        def ioctl(fd: int, request: Any, argument: Any) -> int:
            result = real(fd, request, argument)
            if request == vfio.VFIO_GROUP_GET_DEVICE_FD:
                os.kill(os.getpid(), signal.SIGINT)
            return result

        calls.ioctl = ioctl
        with bound(card.address), pyvfio.open(card.address):
            pass

    assert in_child(work, lambda count, now: None) == 2
    assert card.driver == "e1000e"
    assert interface(card)


def test_ctrl_c_in_the_context_gives_back(card: Function) -> None:
    def work() -> None:
        with bound(card.address):
            assert card.driver == "vfio-pci"
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()


def test_several_processes_bind_at_once(card: Function) -> None:
    code = "import sys; from pyvfio.pci import bind; print(bind(sys.argv[1]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(card.address)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    answers = sorted(process.communicate()[0].strip() for process in processes)
    assert answers == ["False", "False", "False", "True"]
    unbind(card.address)


def test_the_reason_of_the_kernel_is_told(card: Function) -> None:
    # pcieport's probe refuses what is no port.
    with pytest.raises(errors.BindFailed, match="ENODEV") as caught:
        bind(card.address, driver="pcieport")
    assert isinstance(caught.value.__cause__, errors.KernelError)
    assert caught.value.__cause__.errno == errno.ENODEV
    assert card.driver == "e1000e"


def test_a_bridge_is_refused() -> None:
    port = next(function for function in functions() if function.driver == "pcieport")
    with pytest.raises(errors.BindFailed, match="bridge"):
        bind(port.address)
    assert port.driver == "pcieport"


def test_what_is_open_is_not_given_back(card: Function) -> None:
    bind(card.address)
    code = "import sys; node = open(sys.argv[1], 'r+b', 0); print(flush=True); sys.stdin.read()"
    group = card.iommu_group
    assert group is not None
    with subprocess.Popen(
        [sys.executable, "-c", code, group.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(errors.Busy, match=f"process {process.pid} .* holds {group.path} open"):
            unbind(card.address, timeout=0.2)
        assert card.driver == "vfio-pci"
        process.communicate()
    assert unbind(card.address) is True


def test_view_that_is_kept_does_not_keep_the_device(card: Function) -> None:
    with bound(card.address), pyvfio.open(card.address) as device:
        view = device.bars[0].u32
    assert card.driver == "e1000e"
    with pytest.raises(ValueError, match="released"):
        view[0]


# Maps a BAR itself, as a library in C does, and keeps that when pyvfio has closed the device.
MAPPING = """
import mmap, pyvfio

def mapping(address):
    with pyvfio.open(address) as device:
        bar = device.bars[0]
        return mmap.mmap(device._file.fileno(), mmap.PAGESIZE, offset=bar._offset)
"""


def test_mapping_of_ones_own_is_told_at_once_and_given_back_later(card: Function) -> None:
    names: dict[str, Any] = {}
    exec(MAPPING, names)
    kept = []
    with (
        pytest.raises(errors.Busy, match=f"this process still holds a view.*unbind {card.address}"),
        bound(card.address),
    ):
        kept.append(names["mapping"](card.address))
    assert card.driver == "vfio-pci"
    assert record(card).exists()
    with pytest.raises(errors.Busy, match="this process still holds a view"):
        pyvfio.open(card.address)
    kept.clear()
    assert unbind(card.address) is True


def test_mapping_in_another_process_is_found(card: Function) -> None:
    bind(card.address)
    code = f"import sys\n{MAPPING}\nkept = mapping(sys.argv[1])\n"
    code += "print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(card.address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(errors.Busy, match=f"process {process.pid} .* a view of a BAR, perhaps"):
            unbind(card.address, timeout=0.2)
        process.communicate()
    assert unbind(card.address) is True


def test_a_network_interface_with_an_address_is_refused(card: Function) -> None:
    name = interface(card)
    assert users(card) == ()
    ip("link", "set", name, "up")
    ip("addr", "add", "192.0.2.1/24", "dev", name)
    with pytest.raises(errors.DeviceInUse, match=rf"{name} is up with .*192\.0\.2\.1/24"):
        bind(card.address)
    assert card.driver == "e1000e"
    ip("link", "set", name, "down")
    assert users(card) == ()
    ip("link", "set", name, "up")
    with bound(card.address, force=True):
        assert card.driver == "vfio-pci"


def test_swap_is_refused(disk: Function) -> None:
    assert users(disk) == ()
    device = node(disk)
    subprocess.run(["mkswap", device], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", device], check=True)
    try:
        with pytest.raises(errors.DeviceInUse, match=f"disk {device.name} is swap space"):
            bind(disk.address)
        assert disk.driver == "nvme"
    finally:
        subprocess.run(["swapoff", device], check=True)
    assert users(disk) == ()


def test_a_mounted_disk_is_refused(disk: Function, tmp_path: Path) -> None:
    device = node(disk)
    subprocess.run(["mke2fs", device], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-t", "ext4", device, tmp_path], check=True)
    try:
        says = f"disk {device.name} is mounted on {tmp_path}"
        with pytest.raises(errors.DeviceInUse, match=says):
            bind(disk.address)
        assert disk.driver == "nvme"
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert users(disk) == ()


def test_a_claimed_disk_is_refused(disk: Function) -> None:
    claim = os.open(node(disk), os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(errors.DeviceInUse, match="claimed by the kernel or a program"):
            bind(disk.address)
    finally:
        os.close(claim)
    with bound(disk.address):
        assert disk.driver == "vfio-pci"
    assert node(disk).is_block_device()


def test_the_share_with_the_checkout_is_in_use() -> None:
    found = [user for function in functions() for user in users(function)]
    assert any(user.startswith("share checkout is mounted on ") for user in found)


def test_unplugged_and_plugged_in_again(card: Function) -> None:
    bind(card.address)
    (card.sysfs / "remove").write_text("1")
    for action in (bind, unbind):
        with pytest.raises(errors.DeviceNotFound):
            action(card.address)
    with pytest.raises(errors.DeviceNotFound):
        check_openable(card)
    Path("/sys/bus/pci/rescan").write_text("1")
    assert interface(card)
    assert card.driver == "e1000e"
    assert unbind(card.address) is True


def test_a_group_with_a_host_driver_in_it() -> None:
    for first in functions():
        group = first.iommu_group
        others = [function for function in (group.members if group else ()) if function != first]
        if first.driver == "virtio-pci" and any(other.driver == "virtio-pci" for other in others):
            break
    else:
        pytest.skip("no group of two virtio functions; see the top of this file")
    with bound(first.address):
        with pytest.raises(errors.GroupNotViable, match=r"virtio-pci.*pyvfio bind ") as caught:
            check_openable(first)
        assert caught.value.culprits == tuple((str(o.address), "virtio-pci") for o in others)
        assert not is_viable(first)
        with bound(others[0].address):
            check_openable(first)
            assert is_viable(first)


def is_viable(function: Function) -> bool:
    """What the kernel says of the function's group."""
    group = function.iommu_group
    assert group is not None
    status = vfio.vfio_group_status(argsz=ctypes.sizeof(vfio.vfio_group_status))
    with open(group.path, "r+b", buffering=0) as file:
        fcntl.ioctl(file, vfio.VFIO_GROUP_GET_STATUS, status)
    return bool(status.flags & vfio.VFIO_GROUP_FLAGS_VIABLE)
