"""What stands before opening a function, and what the errors say to do about it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import pyvfio
from pyvfio import errors
from pyvfio.pci import IommuGroup, check_openable

from .tree import Tree


def test_a_bound_function_of_a_viable_group(tree: Tree) -> None:
    function = tree.function(driver="vfio-pci", group=3)
    tree.function("0000:01:00.1", group=3)
    assert check_openable(function) == IommuGroup(3)


def test_unplugged(tree: Tree) -> None:
    function = tree.function(driver="vfio-pci", group=3)
    shutil.rmtree(function.sysfs.resolve())
    with pytest.raises(errors.DeviceNotFound):
        check_openable(function)


def test_no_iommu(tree: Tree) -> None:
    with pytest.raises(errors.NoIommu, match=r"firmware.*intel_iommu=on.*does not drive"):
        check_openable(tree.function(driver="e1000e"))


def test_function_never_probed_is_not_bound(tree: Tree) -> None:
    tree.driver("vfio-pci")
    tree.device("iommu", tree.sys / "devices/smmu3")
    with pytest.raises(errors.NotBound, match="no driver"):
        check_openable(tree.function())


def test_a_group_that_vfio_made_up_without_an_iommu_is_not_driven(tree: Tree) -> None:
    function = tree.function(driver="vfio-pci", group=3)
    tree.write(tree.sys / "kernel/iommu_groups/3/name", "vfio-noiommu\n")
    with pytest.raises(errors.NoIommu, match="pyvfio does not drive") as caught:
        check_openable(function)
    assert "echo" not in str(caught.value)


def test_the_modules_are_absent(tree: Tree) -> None:
    for address, driver in (("0000:01:00.0", "e1000e"), ("0000:02:00.0", None)):
        says = rf"bound to .*{driver or 'no driver'}, .*not loaded: `pyvfio bind {address}`"
        with pytest.raises(errors.NoVfio, match=says):
            check_openable(tree.function(address, driver=driver, group=3))


def test_reason_of_the_device_comes_before_the_hosts(tree: Tree) -> None:
    # Whether VFIO is loaded on this machine or not.
    bridge = tree.function(driver="pcieport", header_type=1)
    with pytest.raises(errors.Unsupported, match="is a bridge"):
        pyvfio.open(bridge)
    with pytest.raises(errors.NoIommu):
        pyvfio.open(tree.function("0000:02:00.0", driver="e1000e"))


def test_bridge_names_the_devices_below_it(tree: Tree) -> None:
    for driver in ("pcieport", None):
        function = tree.function(f"0000:0{len(driver or '')}:00.0", driver=driver, header_type=1)
        below = f"0000:1{len(driver or '')}:00.0"
        (function.sysfs / below).mkdir()
        (tree.sys / "bus/pci/devices" / below).symlink_to(function.sysfs / below)
        with pytest.raises(errors.Unsupported, match=rf"is a bridge.*below it: {below}$"):
            check_openable(function)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user lacks the rights of the file")
def test_root_in_a_container_is_told_of_its_cgroup(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = tree.function(driver="vfio-pci", group=3)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(errors.AccessDenied, match=r"EPERM.*cgroup.*--device .*vfio/3") as caught:
        check_openable(function)
    assert "run as root" not in str(caught.value)


@pytest.mark.parametrize("driver", ["e1000e", None])
def test_not_bound(tree: Tree, driver: str | None) -> None:
    tree.driver("vfio-pci")
    with pytest.raises(errors.NotBound, match=rf"{driver or 'no driver'}.*`pyvfio bind 0000:01"):
        check_openable(tree.function(driver=driver, group=3))


def test_the_node_is_missing(tree: Tree) -> None:
    function = tree.function(driver="vfio-pci", group=3)
    (tree.dev / "vfio/3").unlink()
    with pytest.raises(errors.NoVfio, match=r"vfio/3 does not exist.*container"):
        check_openable(function)


def test_no_permission(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    function = tree.function(driver="vfio-pci", group=3)
    Path(tree.dev / "vfio/3").chmod(0)
    if os.geteuid() == 0:  # whom the kernel refuses nothing
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(errors.AccessDenied, match=r"vfio/3.*root.*chown") as caught:
        check_openable(function)
    assert isinstance(caught.value, PermissionError)


def test_the_culprits_are_named(tree: Tree) -> None:
    function = tree.function("0000:01:00.0", driver="vfio-pci", group=3)
    tree.function("0000:01:00.1", driver="snd_hda_intel", group=3)
    tree.function("0000:01:00.2", driver="xhci_hcd", group=3)
    tree.function("0000:01:00.3", driver="pcieport", group=3)
    with pytest.raises(
        errors.GroupNotViable, match=r"pyvfio bind 0000:01:00\.1 0000:01:00\.2"
    ) as caught:
        check_openable(function)
    assert caught.value.culprits == (
        ("0000:01:00.1", "snd_hda_intel"),
        ("0000:01:00.2", "xhci_hcd"),
    )
