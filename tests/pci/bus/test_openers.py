"""Processes that have a function's devices open: real ones, of devices in a tree."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyvfio import errors
from pyvfio.pci import Function, bind, binding, functions, paths, unbind, users
from pyvfio.pci.usage import Claims, look

from .driver_core import DriverCore
from .others import loop, number, process, who
from .tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")

ADDRESS = "0000:01:00.0"
IORESOURCE_MEM = 0x200  # include/linux/ioport.h
FULL = Path("/dev/full")  # a character device that anybody may open


@pytest.fixture
def function(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Function:
    """A function with a character device that has the number of /dev/full."""
    monkeypatch.setattr(paths, "PROC", Path("/proc"))
    function = tree.function(driver="snd_hda_intel", group=3)
    tree.child(function, "sound", "sound/card0/pcmC0D0p", dev=number(FULL))
    return function


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file to make a disk of."""
    file = tmp_path / "disk"
    with file.open("wb") as data:
        data.truncate(1 << 20)
    return file


def on_disk(tree: Tree, monkeypatch: pytest.MonkeyPatch, node: Path) -> Function:
    """A function whose disk is a loop device of this machine."""
    monkeypatch.setattr(paths, "PROC", Path("/proc"))
    function = tree.function(driver="nvme", group=3)
    (tree.dev / node.name).symlink_to(node)
    tree.child(function, "block", f"nvme/nvme0/{node.name}", dev=number(node))
    return function


OPEN = "fd = os.open(sys.argv[1], os.O_RDONLY)"


def test_open_character_node_names_the_process(function: Function) -> None:
    assert users(function) == ()
    with process(OPEN, FULL) as child:
        assert users(function) == (f"{who(child)} has /dev/full open",)
    assert users(function) == ()


def test_own_process_is_named(function: Function) -> None:
    with FULL.open("rb"):
        assert users(function) == ("this process has /dev/full open",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_node_of_another_name_is_found(function: Function, tmp_path: Path) -> None:
    node = tmp_path / "as-in-a-container"
    os.mknod(node, stat.S_IFCHR | 0o600, os.stat(FULL).st_rdev)
    with process(OPEN, node) as child:
        assert users(function) == (f"{who(child)} has {node} open",)


def test_deleted_node_is_found(function: Function, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes device nodes")
    node = tmp_path / "deleted"
    os.mknod(node, stat.S_IFCHR | 0o600, os.stat(FULL).st_rdev)
    with process(f"{OPEN}; os.unlink(sys.argv[1])", node) as child:
        (said,) = users(function)
        assert said == f"{who(child)} has {node} (deleted) open"


def test_process_whose_first_thread_has_ended(function: Function) -> None:
    # exit(2), not exit_group(2): the other thread goes on, with the files.
    code = (
        f"{OPEN}\nimport threading\n"
        "threading.Thread(target=lambda: (print(flush=True), sys.stdin.read(), os._exit(0)))"
        ".start()\nctypes.CDLL(None).syscall({'x86_64': 60, 'ppc64le': 1}.get("
        "os.uname().machine, 93), 0)"
    )
    with process(code, FULL) as child:
        (said,) = users(function)
        assert said == f"{who(child)} has /dev/full open"


def test_mapped_bar_names_the_process() -> None:
    # As by a driver in user space: mapped, never touched, and its descriptor closed.
    code = (
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "view = mmap.mmap(fd, 4096, prot=mmap.PROT_READ); os.close(fd)"
    )
    for function in functions():
        bar = function.sysfs.resolve() / "resource0"
        if os.access(bar, os.R_OK | os.W_OK) and function.resources[0].flags & IORESOURCE_MEM:
            with process(code, bar) as child:
                assert f"{who(child)} has {bar} open" in users(function)
            return
    pytest.skip("this machine has no BAR that may be mapped")


def test_open_disk_names_the_process(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    with loop(disk) as node:
        function = on_disk(tree, monkeypatch, node)
        assert users(function) == ()
        with process("fd = os.open(sys.argv[1], os.O_RDWR)", node) as child:
            assert users(function) == (f"{who(child)} has {node} open",)


def test_mapped_disk_names_the_process(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    code = "with open(sys.argv[1], 'r+b') as disk: view = mmap.mmap(disk.fileno(), 4096)"
    with loop(disk) as node, process(code, node) as child:
        function = on_disk(tree, monkeypatch, node)
        assert users(function) == (f"{who(child)} has {node} open",)


def test_loop_device_over_a_disk_is_found(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, disk: Path, tmp_path: Path
) -> None:
    with loop(disk) as node, loop(node) as above:
        function = on_disk(tree, monkeypatch, node)
        backing = tree.write(tmp_path / above.name / "loop/backing_file", f"{node}\n")
        tree.device("block", tmp_path / above.name, dev=number(above))
        (tree.dev / above.name).symlink_to(above)
        said = f"disk {node.name} is behind {above.name}"
        assert users(function) == (said,)
        # Of another mount namespace, or by a name that is another file's now.
        backing.write_text("/no/such/file\n")
        assert users(function) == (said,)
        with process(OPEN, above) as child:
            assert users(function) == (
                said,
                f"{who(child)} has {above} (disk {above.name} on disk {node.name}) open",
            )


def test_disk_cannot_be_claimed_while_it_is_taken(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    with loop(disk) as node:
        function = on_disk(tree, monkeypatch, node)
        with Claims(function) as claims:
            assert claims.taken == []
            with pytest.raises(OSError, match="busy"):
                os.open(node, os.O_RDONLY | os.O_EXCL)
            assert look(function, claims).openers == ()
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL))


def test_claim_lasts_until_the_driver_is_left(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    with loop(disk) as node:
        function = on_disk(tree, monkeypatch, node)
        tree.driver("vfio-pci")
        core = DriverCore(tree, monkeypatch)
        claimed = []

        def interfere(number: int, moment: str) -> None:
            try:
                os.close(os.open(node, os.O_RDONLY | os.O_EXCL))
            except OSError:
                claimed.append((core.writes[number][0], moment))

        core.interfere = interfere
        assert bind(function.address) is True
        assert claimed == [
            ("driver_override", "before"),
            ("driver_override", "after"),
            ("unbind", "before"),
            ("unbind", "after"),
        ]


def test_unreachable_disk_is_not_passed_over_in_silence(tree: Tree) -> None:
    function = tree.function(driver="nvme")
    tree.child(function, "block", "nvme/nvme0/nvme0n1", dev="259:0")
    with Claims(function) as claims:
        (said,) = look(function, claims).unknown
    assert said.startswith("whether the kernel uses disk nvme0n1: ")


def test_container_says_that_it_does_not_see_all(tree: Tree) -> None:
    function = tree.function(driver="e1000e")
    (tree.proc / "self/ns").mkdir()
    (tree.proc / "self/ns/pid").symlink_to("pid:[4026532201]")
    with Claims(function) as claims:
        assert look(function, claims).unknown == (
            "the processes outside of this container are not seen",
        )


@pytest.fixture
def core(function: Function, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> DriverCore:
    tree.driver("vfio-pci")
    return DriverCore(tree, monkeypatch)


def test_driver_that_would_wait_is_never_forced(function: Function, core: DriverCore) -> None:
    with process(OPEN, FULL) as child:
        for force in (False, True):
            with pytest.raises(
                errors.DeviceInUse, match=rf"not even with --force.*process {child.pid} "
            ):
                bind(ADDRESS, force=force)
    assert core.writes == []


def test_force_tells_what_it_overrides(
    function: Function, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.driver("vfio-pci")
    DriverCore(tree, monkeypatch)
    (function.sysfs / "sound/card0/pcmC0D0p/subsystem").unlink()
    (function.sysfs / "sound/card0/pcmC0D0p/subsystem").symlink_to(tree.sys / "class/drm")
    (function.sysfs / "boot_vga").write_text("1\n")
    said: list[str] = []
    with process(OPEN, FULL) as child:
        assert bind(ADDRESS, force=True, notice=said.append) is True
        assert said[:2] == [
            f"taking {ADDRESS} although it is the boot display",
            f"taking {ADDRESS} although {who(child)} has /dev/full open",
        ]


def test_glance_at_a_device_is_not_use(
    function: Function, core: DriverCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As udev's at each new disk. A loaded machine may take longer to close it.
    monkeypatch.setattr(binding, "_GLANCE", 60.0)
    code = f"{OPEN}\nimport threading; threading.Timer(0.3, os.close, [fd]).start()"
    with process(code, FULL):
        assert bind(ADDRESS) is True


def test_device_of_another_driver_is_not_given_back_while_open(
    function: Function, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As uio_pci_generic, whose nodes a driver in user space has open.
    (function.sysfs / "driver").unlink()
    tree.driver("uio_pci_generic")
    DriverCore(tree, monkeypatch)
    assert bind(ADDRESS, driver="uio_pci_generic") is True
    with process(OPEN, FULL) as child:
        with pytest.raises(errors.Busy, match=rf"process {child.pid} .* has /dev/full open: close"):
            unbind(ADDRESS, timeout=0)
        assert function.driver == "uio_pci_generic"
    assert unbind(ADDRESS) is True
    assert function.driver is None


def test_long_list_of_users_is_cut_short(
    function: Function, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.driver("vfio-pci")
    DriverCore(tree, monkeypatch)
    for output in range(12):
        tree.child(function, "drm", f"drm/card0/card0-DP-{output}", enabled="enabled")
    with pytest.raises(errors.DeviceInUse, match=r"card0-DP-5 .*; and 4 more\. Release") as caught:
        bind(ADDRESS)
    assert len(caught.value.users) == 12


def test_shared_node_of_mice_counts(tree: Tree) -> None:
    function = tree.function(driver="xhci_hcd")
    tree.child(function, "input", "usb1/input/input3/mouse0", dev="13:32")
    held = tree.proc / "77/fd/5"
    held.parent.mkdir(parents=True)
    if not Path("/dev/input/mice").exists():
        if os.geteuid() != 0:
            pytest.skip("this machine has no node for all mice")
        node = tree.root / "mice"
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(13, 63))
    else:
        node = Path("/dev/input/mice")
    held.symlink_to(node)
    assert users(function) == (f"process 77 has {node} open",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
@pytest.mark.parametrize(("minor", "counts"), [(1, True), (0, False), (255, False)])
def test_nvidia_node_of_this_device_counts(tree: Tree, minor: int, counts: bool) -> None:
    function = tree.function(driver="nvidia")
    tree.write(
        tree.proc / f"driver/nvidia/gpus/{ADDRESS}/information",
        "Model: \t\t NVIDIA A2\nDevice Minor: \t 1\n",
    )
    node = tree.root / "nvidia"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(195, minor))
    held = tree.proc / "77/fd/5"
    held.parent.mkdir(parents=True)
    held.symlink_to(node)
    assert bool(users(function)) is counts
