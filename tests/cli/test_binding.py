"""`pyvfio bind` and `pyvfio unbind` of devices in a tree."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from pyvfio.cli import main
from pyvfio.pci import Function, bind, unbind
from tests.pci.bus.driver_core import DriverCore
from tests.pci.bus.tree import Tree

# All processes of this machine are looked into, those of other tests among them.
pytestmark = pytest.mark.xdist_group("users of this machine")

A, B, C = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


@pytest.fixture
def core(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> DriverCore:
    for name in ("vfio-pci", "e1000e"):
        tree.driver(name)
    return DriverCore(tree, monkeypatch)


def test_none_is_bound_unless_all_can_be(
    tree: Tree, core: DriverCore, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.function(A, driver="e1000e", group=1)
    tree.function(B, driver="e1000e", group=2, boot_vga="1")
    tree.function(C, driver="e1000e")
    assert main(["bind", A, B, C]) == 5
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{B} (driver e1000e) is in use: it is the boot display" in said.err
    assert f"{C} is in no IOMMU group" in said.err
    assert said.err.endswith("none of the devices was taken\n")
    assert core.writes == []


def test_absent_device_is_told_before_anything(
    tree: Tree, core: DriverCore, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.function(A, driver="e1000e", group=1)
    for command in ("bind", "unbind"):
        assert main([command, A, B]) == 3
    assert core.writes == []


def test_refusal_by_the_kernel_says_how_far_it_came(
    tree: Tree, core: DriverCore, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, address in enumerate((A, B, C)):
        tree.function(address, driver="e1000e", group=number)

    def refuse(number: int, moment: str) -> None:
        if number > 3:
            core.refuse["vfio-pci"] = errno.EIO

    core.interfere = refuse
    assert main(["bind", A, B, C]) == 4
    said = capsys.readouterr()
    assert said.out == f"{A}: e1000e -> vfio-pci\n"
    lines = said.err.splitlines()
    assert lines[0].startswith(f"pyvfio: the kernel did not bind {B}")
    assert lines[1:] == [f"pyvfio: not tried after that: {C}"]
    assert [Function(address).driver for address in (A, B, C)] == ["vfio-pci", "e1000e", "e1000e"]


def test_force_says_what_it_overrode(
    tree: Tree, core: DriverCore, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.function(A, driver="e1000e", group=1, boot_vga="1")
    assert main(["bind", "--force", A]) == 0
    assert f"taking {A} although it is the boot display" in capsys.readouterr().err


def test_interrupted_unbind_says_what_is_left(
    tree: Tree,
    core: DriverCore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number, address in enumerate((A, B)):
        tree.function(address, driver="e1000e", group=number)
        bind(address)

    def unbind_one(address: str) -> bool:
        if str(address) == B:
            raise KeyboardInterrupt
        return unbind(address)

    monkeypatch.setattr("pyvfio.pci.unbind", unbind_one)
    assert main(["unbind", A, B]) == 130
    said = capsys.readouterr()
    assert said.out == f"{A}: vfio-pci -> e1000e\n"
    assert said.err == f"pyvfio: interrupted: still bound: {B}; `pyvfio unbind {B}` gives back\n"


def test_interrupted_bind_leaves_nothing(
    tree: Tree, core: DriverCore, capsys: pytest.CaptureFixture[str]
) -> None:
    function = tree.function(A, driver="e1000e", group=1)

    def interfere(number: int, moment: str) -> None:
        if (number, moment) == (2, "before"):
            signal.raise_signal(signal.SIGINT)

    core.interfere = interfere
    assert main(["bind", A]) == 130
    assert capsys.readouterr().err == "pyvfio: interrupted\n"
    assert function.driver == "e1000e"
