"""Who uses a device, on a real kernel: programs, other namespaces, a loop device, a removal.

Only for the bench, whose disk and network card are nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvfio
from hwtests.bench import REPEAT
from hwtests.forked import in_text as pyvfio_command
from hwtests.nvme_nodes import node
from pyvfio import errors
from pyvfio.pci import Function, bind, bound, check_openable, functions, paths, unbind, users

# linux/loop.h
LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_CTL_GET_FREE = 0x4C82

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
    wait_for(lambda: node(function).is_block_device())
    yield function
    assert (function.driver, function.driver_override) == ("nvme", None)
    assert not record(function).exists()


def record(function: Function) -> Path:
    return paths.RECORDS / f"{function.address}.json"


def wait_for(condition: object) -> None:
    """Wait until the kernel has done something."""
    assert callable(condition)
    for _ in range(400):
        with contextlib.suppress(OSError, StopIteration, errors.Error):
            if condition():
                return
        time.sleep(0.05)
    raise AssertionError("what was waited for did not happen")


def interface(function: Function) -> str:
    """Its network interface, once its driver has made it."""
    wait_for(lambda: os.listdir(function.sysfs / "net"))
    return os.listdir(function.sysfs / "net")[0]


@contextlib.contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has run Python code, and goes on until the context ends."""
    code = f"import mmap, os, subprocess, sys\n{code}\nprint(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "\n", "the process failed"
            yield child
        finally:
            if child.stdin is not None:
                child.stdin.close()


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True)


def check_refused(function: Function, says: str) -> None:
    """Binding is refused for that use, and the device stays with its driver."""
    driver = function.driver
    with pytest.raises(errors.DeviceInUse, match=says):
        bind(function.address)
    assert function.driver == driver


WRITE = "fd = os.open(sys.argv[1], os.O_RDWR)"


def test_program_that_writes_to_the_disk_keeps_it(disk: Function) -> None:
    # As a virtual machine with a raw disk does.
    with process(WRITE, node(disk)) as writer:
        check_refused(disk, rf"process {writer.pid} \(python3.*\) has {node(disk)} open")
        assert pyvfio_command("bind", disk.address).returncode == 5
        forced = pyvfio_command("bind", "--force", disk.address)
        assert forced.returncode == 0
        assert f"taking {disk.address} although process {writer.pid}" in forced.stderr
        assert unbind(disk.address) is True
    wait_for(lambda: node(disk).is_block_device())
    with bound(disk.address):
        assert disk.driver == "vfio-pci"


@pytest.mark.parametrize("kind", ["nvme0", "ng0n1"])
def test_program_with_the_controller_open_keeps_it(disk: Function, kind: str) -> None:
    (number,) = (name for name in os.listdir(disk.sysfs / "nvme"))
    name = Path("/dev") / kind.replace("nvme0", number).replace("ng0", f"ng{number[4:]}")
    if not name.exists():
        pytest.skip(f"this kernel has no {name}")
    with process("fd = os.open(sys.argv[1], os.O_RDONLY)", name) as holder:
        check_refused(disk, f"process {holder.pid} .* has {name} open")
    assert disk.driver == "nvme"


def test_mapped_disk_is_kept(disk: Function) -> None:
    code = f"{WRITE}; view = mmap.mmap(fd, 4096); os.close(fd)"
    with process(code, node(disk)) as holder:
        check_refused(disk, f"process {holder.pid} ")
    assert disk.driver == "nvme"


def test_mapped_bar_is_kept() -> None:
    # Of a device without a driver: the kernel lets no one map what a driver has claimed.
    edu = next(function for function in functions() if function.vendor_id == 0x1234)
    bar = edu.sysfs.resolve() / "resource0"
    code = f"{WRITE}; view = mmap.mmap(fd, 4096, prot=mmap.PROT_READ); os.close(fd)"
    with process(code, bar) as holder:
        check_refused(edu, f"process {holder.pid} .* has {bar} open")


def test_disk_mounted_in_another_namespace_is_kept(disk: Function, tmp_path: Path) -> None:
    run("mke2fs", "-q", node(disk))
    code = (
        "import ctypes\n"
        "assert ctypes.CDLL(None).unshare(0x20000) == 0\n"  # CLONE_NEWNS
        "subprocess.run(['mount', '--make-rprivate', '/'], check=True)\n"
        "subprocess.run(['mount', '-t', 'ext4', *sys.argv[1:]], check=True)"
    )
    with process(code, node(disk), tmp_path) as holder:
        assert f" {tmp_path} " not in Path("/proc/self/mountinfo").read_text()
        where = f"in the mount namespace of process {holder.pid} "
        check_refused(disk, f"is mounted on {tmp_path} {where}")
    wait_for(lambda: users(disk) == ())


def test_loop_device_over_the_disk_keeps_it(disk: Function, tmp_path: Path) -> None:
    subprocess.run(["modprobe", "loop"], check=False, capture_output=True)
    if not Path("/dev/loop-control").exists():
        pytest.skip("this host has no loop devices")
    run("mke2fs", "-q", node(disk))
    with looped(node(disk)) as loop:
        run("mount", "-t", "ext4", loop, tmp_path)
        try:
            check_refused(disk, f"is behind {loop.name}, which is mounted on {tmp_path}")
        finally:
            run("umount", tmp_path)
        check_refused(disk, f"is behind {loop.name}")
    wait_for(lambda: users(disk) == ())


@contextlib.contextmanager
def looped(backing: Path) -> Iterator[Path]:
    """A loop device over a disk."""
    with open("/dev/loop-control", "rb", buffering=0) as control:
        number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    node = Path(f"/dev/loop{number}")
    with node.open("rb", buffering=0) as loop:
        with backing.open("rb", buffering=0) as file:
            fcntl.ioctl(loop, LOOP_SET_FD, file.fileno())
        try:
            yield node
        finally:
            fcntl.ioctl(loop, LOOP_CLR_FD)


@contextlib.contextmanager
def container() -> Iterator[subprocess.Popen[str]]:
    """A process in a network namespace of its own."""
    code = "import ctypes; assert ctypes.CDLL(None).unshare(0x40000000) == 0"  # CLONE_NEWNET
    with process(code) as child:
        yield child


def test_interface_in_a_containers_namespace_is_kept(card: Function) -> None:
    name = interface(card)
    with container() as child:
        run("ip", "link", "set", name, "netns", child.pid)
        where = f"in the network namespace of process {child.pid} "
        check_refused(card, f"{name} is {where}")
        run("nsenter", "-t", child.pid, "-n", "ip", "addr", "add", "192.0.2.1/24", "dev", name)
        run("nsenter", "-t", child.pid, "-n", "ip", "link", "set", name, "up")
        check_refused(card, f"{name} {where}.* is up with .*192.0.2.1/24")
        assert pyvfio_command("bind", card.address).returncode == 5
    wait_for(lambda: interface(card) and users(card) == ())


def test_interface_in_a_namespace_without_processes_is_kept(card: Function) -> None:
    name = interface(card)
    place = Path("/run/netns-of-a-test")
    place.touch()
    # As `ip netns add` makes it.
    with container() as child:
        run("mount", "--bind", f"/proc/{child.pid}/ns/net", place)
        run("ip", "link", "set", name, "netns", child.pid)
    try:
        check_refused(card, f"{name} is in the network namespace {place.name}")
    finally:
        run("umount", place)
    wait_for(lambda: interface(card) and users(card) == ())


# Ctrl-C.


def test_interruptions_leave_the_device_as_it_was_or_bound(card: Function) -> None:
    start = time.monotonic()
    run("pyvfio", "bind", card.address)
    whole = time.monotonic() - start
    assert pyvfio_command("unbind", card.address).returncode == 0
    chance = random.Random(1)
    outcomes: dict[object, int] = {}
    for number in range(10 * REPEAT):
        command = ("bind", "unbind")[number % 2]
        if (card.driver == "vfio-pci") is (command == "bind"):
            command = "unbind" if command == "bind" else "bind"
        with subprocess.Popen(
            ["pyvfio", command, str(card.address)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            time.sleep(chance.uniform(0, whole))
            child.send_signal(signal.SIGINT)
            _, said = child.communicate()
        outcomes[child.returncode] = outcomes.get(child.returncode, 0) + 1
        is_bound = card.driver == "vfio-pci"
        assert card.driver in ("vfio-pci", "e1000e")
        assert card.driver_override is None
        assert record(card).exists() is is_bound
        if "Traceback" in said:
            # Python's own start, before any code of pyvfio.
            assert "pyvfio/" not in said, said
            outcomes["traceback"] = outcomes.get("traceback", 0) + 1
        else:
            assert said.count("\n") <= 1, said
            assert child.returncode in (0, 130, -signal.SIGINT)
    print(f"{whole:.2f} s each, ended with: {outcomes}")
    unbind(card.address)
    assert card.driver == "e1000e"


def test_interrupted_hwtest_gives_the_device_back(disk: Function) -> None:
    for seconds in (4, 12):
        with subprocess.Popen(
            [Path("tools/hwtest"), "--device", str(disk.address)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            wait_for(lambda: disk.driver == "vfio-pci")
            time.sleep(seconds)
            child.send_signal(signal.SIGINT)
            out, said = child.communicate()
        assert (child.returncode, said) == (130, "hwtest: interrupted\n"), out + said
        assert "Traceback" not in out
        assert disk.driver == "nvme"
        assert not record(disk).exists()
        wait_for(lambda: node(disk).is_block_device())


# A removal while somebody holds the device.


@contextlib.contextmanager
def being_removed(function: Function) -> Iterator[subprocess.Popen[str]]:
    """A function that the host removes while a process has it open through VFIO."""
    bind(function.address)
    code = "import pyvfio; device = pyvfio.open(sys.argv[1])"
    remove = ["sh", "-c", f"echo 1 > {function.sysfs}/remove"]
    with process(code, function.address) as holder, subprocess.Popen(remove) as remover:
        wait_for(lambda: function.driver is None)
        try:
            yield holder
        finally:
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait()
            remover.wait()
    Path("/sys/bus/pci/rescan").write_text("1")
    wait_for(lambda: Function(function.address).driver in ("e1000e", "nvme"))
    unbind(function.address)


def test_removal_while_held_is_recognized(card: Function) -> None:
    with being_removed(card) as holder:
        says = rf"{card.address} is being removed, .*process {holder.pid} .* holds /dev/vfio/"
        for action in (bind, unbind):
            with pytest.raises(errors.Busy, match=says):
                action(card.address)
        with pytest.raises(errors.Busy, match=says):
            check_openable(card)
        with pytest.raises(errors.Busy, match=says):
            pyvfio.open(card)
        # In processes, which would hang beyond the reach of kill -9.
        for status, command in (
            (5, f"bind {card.address}"),
            (5, f"unbind {card.address}"),
            (5, f"read {card.address} bar0+0x0"),
            (0, "list"),
            (0, f"show {card.address}"),
        ):
            result = pyvfio_command(*command.split())
            assert result.returncode == status
            assert f"process {holder.pid} " in result.stdout + result.stderr


def test_removal_of_an_sriov_device_while_held_is_recognized() -> None:
    for function in functions():
        if (function.sysfs / "sriov_totalvfs").exists() and function.driver == "nvme":
            break
    else:
        pytest.skip("needs a disk with SR-IOV")
    with being_removed(function) as holder:
        assert function.virtual_functions == 0
        result = pyvfio_command("bind", function.address)
        assert result.returncode == 5
        assert f"process {holder.pid} " in result.stderr
