"""Uses of a function in other namespaces: real namespaces, of devices in a tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvfio.pci import Function, paths, users
from pyvfio.pci.usage import netlink

from .others import ip, needs_namespaces, network, process, who
from .tree import Tree

# All processes and namespaces of this machine are looked into, those of other tests among them.
pytestmark = [needs_namespaces, pytest.mark.xdist_group("users of this machine")]

UNSHARE = "assert ctypes.CDLL(None).unshare(int(sys.argv[1], 16)) == 0"
NETWORK = "40000000"  # CLONE_NEWNET
MOUNTS = "20000"  # CLONE_NEWNS


@pytest.fixture
def function(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Function:
    """A function that carries all virtual interfaces, which can be made without hardware."""
    monkeypatch.setattr(paths, "PROC", Path("/proc"))
    (tree.sys / "bus/pci/devices/0000:01:00.0").symlink_to("/sys/devices/virtual")
    return Function("0000:01:00.0")


@pytest.fixture
def name() -> Iterator[str]:
    """A network namespace with an interface that is up with an address."""
    with network(f"pyvfio-{os.getpid()}") as name:
        ip("-n", name, "link", "add", "card", "type", "veth", "peer", "other")
        ip("-n", name, "addr", "add", "192.0.2.1/24", "dev", "card")
        ip("-n", name, "link", "set", "card", "up")
        yield name


def said_of(interface: str, function: Function) -> list[str]:
    start = f"network interface {interface} "
    return [use.removeprefix(start) for use in users(function) if use.startswith(start)]


def test_interface_in_a_namespace_without_processes(function: Function, name: str) -> None:
    assert said_of("card", function) == [f"in the network namespace {name} is up with 192.0.2.1/24"]


def test_interface_that_was_moved_is_in_use(function: Function, name: str) -> None:
    ip("-n", name, "link", "set", "card", "down")
    assert said_of("card", function) == [f"is in the network namespace {name}"]


def test_interface_in_a_namespace_of_a_process(function: Function) -> None:
    code = (
        f"{UNSHARE}\nimport subprocess\n"
        "for words in sys.argv[2:]: subprocess.run(['ip', *words.split()], check=True)"
    )
    words = ("link add card type veth peer other", "addr add 192.0.2.1/24 dev card")
    with process(code, NETWORK, *words, "link set card up") as child:
        assert said_of("card", function) == [
            f"in the network namespace of {who(child)} is up with 192.0.2.1/24"
        ]


def test_namespace_of_one_thread_is_looked_into(function: Function) -> None:
    code = (
        "import subprocess, threading\n"
        "def work():\n"
        f"    {UNSHARE}\n"
        "    subprocess.run(['ip', *'link add card type veth peer other'.split()], check=True)\n"
        "    print(flush=True); sys.stdin.read(); os._exit(0)\n"
        "threading.Thread(target=work).start(); threading.Event().wait()"
    )
    with process(code, NETWORK) as child:
        (said,) = said_of("card", function)
        assert said == f"is in the network namespace of {who(child)}"


def test_namespace_that_only_a_descriptor_keeps(function: Function) -> None:
    code = (
        "import subprocess, threading\n"
        "def work():\n"
        f"    {UNSHARE}\n"
        "    subprocess.run(['ip', *'link add card type veth peer other'.split()], check=True)\n"
        "    global fd\n"
        "    fd = os.open('/proc/thread-self/ns/net', os.O_RDONLY)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    )
    with process(code, NETWORK) as child:
        (said,) = said_of("card", function)
        assert said == f"is in the network namespace of {who(child)}"


def test_macvlan_of_a_container_uses_its_parent(function: Function, name: str) -> None:
    ip("-n", name, "addr", "del", "192.0.2.1/24", "dev", "card")
    with network(f"{name}-container") as container:
        made = subprocess.run(
            ["ip", "-n", name, "link", "add", "own", "link", "card", "type", "macvlan"], check=False
        )
        if made.returncode:
            pytest.skip("this kernel has no macvlan")
        ip("-n", name, "link", "set", "own", "netns", container)
        assert f"in the network namespace {name} is part of own in the network namespace " + (
            container
        ) in said_of("card", function)


def test_own_namespace_is_not_left(function: Function, name: str) -> None:
    before = os.readlink("/proc/self/ns/net"), netlink.addresses()
    assert users(function)
    assert (os.readlink("/proc/self/ns/net"), netlink.addresses()) == before
    assert not [link for link in map(_target, os.listdir("/proc/self/fd")) if "net:" in link]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # the descriptor of the listing
        return ""


def test_mount_in_another_namespace_is_found(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(paths, "PROC", Path("/proc"))
    point = tmp_path / "point"
    point.mkdir()
    # What is mounted there is not on a disk, but it has a number as one has.
    code = (
        f"{UNSHARE}\nimport subprocess\n"
        "subprocess.run(['mount', '--make-rprivate', '/'], check=True)\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[2]], check=True)\n"
        "print(os.stat(sys.argv[2]).st_dev, file=open(sys.argv[3], 'w'))"
    )
    with process(code, MOUNTS, point, tmp_path / "number") as child:
        status = int((tmp_path / "number").read_text())
        function = tree.function(driver="nvme")
        dev = f"{os.major(status)}:{os.minor(status)}"
        tree.child(function, "block", "nvme/nvme0/nvme0n1", dev=dev)
        assert users(function) == (
            f"disk nvme0n1 is mounted on {point} in the mount namespace of {who(child)}",
        )
