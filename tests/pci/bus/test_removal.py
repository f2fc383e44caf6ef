"""A function that the kernel is removing while somebody holds it: recognized, and not touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from pyvfio import errors
from pyvfio._sys import File
from pyvfio.cli import main
from pyvfio.pci import Function, bind, check_bindable, check_openable, functions, unbind
from pyvfio.pci.usage.removal import removal

from .driver_core import DriverCore
from .tree import Tree

ADDRESS = "0000:01:00.0"
# Attributes for which the kernel takes the device's lock; some kernels do for uevent.
LOCKED = ("driver_override", "sriov_numvfs", "uevent", "remove", "bind", "unbind")


@pytest.fixture
def core(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> DriverCore:
    """Fails where an attribute is opened that would wait for the device's lock."""
    for name in ("vfio-pci", "e1000e"):
        tree.driver(name)
    real = File.open.__func__  # type: ignore[attr-defined]

    def open_unlocked(cls: type[File], path: str, flags: int = os.O_RDWR) -> File:
        assert os.path.basename(path) not in LOCKED, f"{path} would wait for the device's lock"
        return real(cls, path, flags)  # type: ignore[no-any-return]

    core = DriverCore(tree, monkeypatch)
    monkeypatch.setattr(File, "open", classmethod(open_unlocked))
    return core


def held(tree: Tree, name: str = "vfio/3", process: str = "77") -> None:
    """A process that has a node open."""
    tree.write(tree.proc / process / "comm", "qemu\n")
    (tree.proc / process / "fd").mkdir(exist_ok=True)
    (tree.proc / process / "fd/5").symlink_to(tree.dev / name)


def listed(tree: Tree, driver: str, ids: str = "808610d3") -> None:
    """A line of the kernel's own list, as the bus's show_device() prints it."""
    numbers = "\t".join(["0"] * 15)
    tree.write(tree.proc / "bus/pci/devices", f"0100\t{ids}\t{numbers}\t{driver}\n")


SAYS = f"{ADDRESS} is being removed, .*process 77 \\(qemu\\) holds"


@pytest.mark.parametrize("action", [bind, unbind, check_bindable])
def test_binding_refuses_and_touches_nothing(
    tree: Tree, core: DriverCore, action: Callable[[str], object]
) -> None:
    tree.function(group=3)
    held(tree)
    with pytest.raises(errors.Busy, match=SAYS):
        action(ADDRESS)
    assert core.writes == []


def test_opening_names_the_process(tree: Tree, core: DriverCore) -> None:
    function = tree.function(group=3)
    held(tree)
    with pytest.raises(errors.Busy, match=SAYS):
        check_openable(function)


@pytest.mark.parametrize("command", [("list",), ("show", ADDRESS)])
def test_commands_that_look_say_it(
    tree: Tree,
    core: DriverCore,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
) -> None:
    whole(tree.function(group=3))
    held(tree)
    assert main([*command]) == 0
    said = capsys.readouterr()
    assert "process 77 (qemu) holds" in said.out + said.err
    assert "pyvfio bind" not in said.out + said.err
    assert main([*command, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert "being removed" in (entry if isinstance(entry, dict) else entry[0])["removal"]


@pytest.mark.parametrize("command", ["read", "bind", "unbind"])
def test_commands_that_want_it_end_with_5(
    tree: Tree, core: DriverCore, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    whole(tree.function(group=3))
    held(tree)
    arguments = ["bar0+0"] if command == "read" else []
    assert main([command, ADDRESS, *arguments]) == 5
    assert "process 77 (qemu) holds" in capsys.readouterr().err


def whole(function: Function) -> None:
    """What `show` reads of a function."""
    for name in ("subsystem_vendor", "subsystem_device", "revision"):
        (function.sysfs / name).write_text("0x0\n")
    (function.sysfs / "resource").write_text("0x0 0x0 0x0\n" * 7)


def test_function_of_a_group_that_is_held_for_another(tree: Tree, core: DriverCore) -> None:
    tree.function("0000:01:00.1", driver="vfio-pci", group=3)
    function = tree.function(group=3)
    held(tree)
    assert removal(function) is None
    listed(tree, "")
    assert removal(function) is None
    # The kernel's own list keeps the driver until it has let the function go.
    listed(tree, "vfio-pci")
    assert "process 77 (qemu) holds" in (removal(function) or "")


def test_driver_that_is_not_vfio_is_recognized(tree: Tree, core: DriverCore) -> None:
    function = tree.function()
    listed(tree, "nvidia")
    assert "may hold it open" in (removal(function) or "")
    listed(tree, "compat")  # not a driver: see pci_dev_driver()
    assert removal(function) is None


def test_unbound_function_is_not_being_removed(tree: Tree, core: DriverCore) -> None:
    function = tree.function(group=3)
    assert removal(function) is None
    listed(tree, "vfio-pci", ids="808610d4")
    assert removal(function) is None


def test_bus_is_listed_without_udev(tree: Tree) -> None:
    found = tree.function(), tree.function("0000:01:00.1")
    assert functions() == found
