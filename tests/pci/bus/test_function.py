"""Functions: this machine's own against what its kernel says, and rare ones in a tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.errors import DeviceNotFound
from pyvfio.pci import Address, Function, Resource, functions

from .tree import Tree

DEVICES = Path("/sys/bus/pci/devices")
BUS = sorted(os.listdir(DEVICES)) if DEVICES.exists() else []
on_this_machine = pytest.mark.skipif(not BUS, reason="this machine has no PCI functions")


@on_this_machine
def test_all_functions_are_listed() -> None:
    assert [str(function.address) for function in functions()] == BUS


@on_this_machine
@pytest.mark.parametrize("address", BUS)
def test_what_sysfs_says_agrees_with_config_space(address: str) -> None:
    function = Function(address)
    config = function.read_config()
    assert len(config) in (64, 128, 256, 4096)
    assert function.vendor_id == int.from_bytes(config[0:2], "little")
    assert function.device_id == int.from_bytes(config[2:4], "little")
    assert function.revision == config[8]
    assert function.class_code == int.from_bytes(config[9:12], "little")
    assert function.is_bridge == (config[14] & 0x7F != 0)
    assert function.config.vendor_id == function.vendor_id
    if not function.is_bridge:
        assert function.subsystem_vendor_id == int.from_bytes(config[0x2C:0x2E], "little")
        assert function.subsystem_device_id == int.from_bytes(config[0x2E:0x30], "little")


@on_this_machine
@pytest.mark.parametrize("address", BUS)
def test_driver_and_group_are_what_the_kernel_links_to(address: str) -> None:
    function = Function(address)
    uevent = dict(
        line.split("=", 1) for line in (DEVICES / address / "uevent").read_text().splitlines()
    )
    assert function.driver == uevent.get("DRIVER")
    assert str(function.address) == uevent["PCI_SLOT_NAME"]
    group = function.iommu_group
    if group is None:
        assert not (DEVICES / address / "iommu_group").exists()
    else:
        assert function in group.members


def test_nothing_there() -> None:
    absent = next(
        text for text in (f"ffff:ff:{device:02x}.7" for device in range(32)) if text not in BUS
    )
    with pytest.raises(DeviceNotFound, match=rf"{absent}.*pyvfio list"):
        Function(absent)


def test_unplugged_under_us(tree: Tree) -> None:
    function = tree.function()
    shutil.rmtree(function.sysfs.resolve())
    with pytest.raises(DeviceNotFound, match=r"0000:01:00\.0"):
        _ = function.vendor_id
    with pytest.raises(DeviceNotFound):
        function.read_config()
    with pytest.raises(DeviceNotFound):
        _ = function.power_state
    assert function.driver is None


def test_what_old_kernels_lack_is_none(tree: Tree) -> None:
    function = tree.function()
    assert function.power_state is None
    assert function.reset_methods == ()
    assert function.numa_node is None
    assert function.virtual_functions == 0
    assert function.physical_function is None
    assert function.iommu_group is None
    assert function.driver is None
    assert function.driver_override is None


def test_what_new_kernels_tell(tree: Tree) -> None:
    function = tree.function(
        driver="e1000e",
        override="vfio-pci",
        group=0,
        power_state="D3hot",
        reset_method="flr bus",
        numa_node="0",
        resource="0xfe000000 0xfe01ffff 0x40200\n0x0 0x0 0x0\n0xc000 0xc01f 0x40101",
    )
    tree.virtual_functions(function, 2)
    assert function.power_state == "D3hot"
    assert function.reset_methods == ("flr", "bus")
    assert function.numa_node == 0
    assert function.virtual_functions == 2
    assert function.driver == "e1000e"
    assert function.driver_override == "vfio-pci"
    assert function.iommu_group is not None
    assert function.iommu_group.id == 0
    assert function.resources == (
        Resource(0xFE000000, 0xFE01FFFF, 0x40200),
        Resource(0, 0, 0),
        Resource(0xC000, 0xC01F, 0x40101),
    )
    assert [resource.size for resource in function.resources] == [0x20000, 0, 0x20]


def test_a_virtual_function_knows_its_physical_one(tree: Tree) -> None:
    physical, virtual = tree.function(), tree.function("0000:01:10.0")
    (virtual.sysfs / "physfn").symlink_to(physical.sysfs.resolve())
    assert virtual.physical_function == physical


@pytest.mark.parametrize(("header_type", "is_bridge"), [(0, False), (0x80, False), (0x81, True)])
def test_a_bridge_is_known_by_its_header(tree: Tree, header_type: int, is_bridge: bool) -> None:
    assert tree.function(header_type=header_type).is_bridge is is_bridge


def test_functions_of_one_address_are_equal(tree: Tree) -> None:
    function = tree.function()
    assert {function, Function(Address(0, 1, 0, 0))} == {function}


@on_this_machine
def test_looking_at_the_bus_needs_no_pyudev() -> None:
    code = (
        "import sys; from pyvfio import pci; f = pci.Function(sys.argv[1]); f.driver; f.class_name;"
        "f.iommu_group; assert pci.functions(); assert 'json' not in sys.modules;"
        "assert 'pyudev' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, BUS[0]], check=True)


def test_virtual_functions_are_counted_by_links(tree: Tree) -> None:
    # A read of sriov_numvfs waits for the device's lock.
    function = tree.function(sriov_numvfs="not to be read", sriov_totalvfs="2")
    assert function.virtual_functions == 0
    tree.virtual_functions(function, 2)
    assert function.virtual_functions == 2


READ_FROM = {
    "vendor": "vendor_id",
    "device": "device_id",
    "class": "class_code",
    "revision": "revision",
    "subsystem_vendor": "subsystem_vendor_id",
    "subsystem_device": "subsystem_device_id",
    "resource": "resources",
    "numa_node": "numa_node",
    "config": "is_bridge",
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vendor", ""),
        ("vendor", "0x"),
        ("class", "-1"),
        ("device", "0x" + "f" * 5000),
        ("revision", "0x1_0"),
        ("resource", "0x0 0x0"),
        ("resource", "0x0 0x0 0x0 0x0"),
        ("resource", "0x0 0x0 0x0\n" * 100_000),
        ("resource", "0x0 0x0 0x" + "0" * 5000),
        ("numa_node", "none"),
        ("numa_node", "1" * 5000),
        ("config", ""),
        ("config", "short"),
    ],
)
def test_nonsense_in_sysfs_is_an_error_of_the_tree(tree: Tree, name: str, text: str) -> None:
    function = tree.function()
    (function.sysfs / name).write_text(text)
    with pytest.raises(errors.KernelError, match="EPROTO") as caught:
        getattr(function, READ_FROM[name])
    assert len(str(caught.value)) < 500


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(READ_FROM)),
    content=st.binary(max_size=100) | st.from_regex(rb"[0-9a-fx -]*"),
)
def test_anything_in_sysfs_is_a_value_or_an_error(
    name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        function = Tree(tmp_path_factory.mktemp("tree"), patch).function()
        (function.sysfs / name).write_bytes(content)
        with suppress(errors.KernelError):
            getattr(function, READ_FROM[name])


def test_group_whose_name_is_no_number(tree: Tree) -> None:
    function = tree.function()
    (function.sysfs / "iommu_group").symlink_to(tree.sys / "kernel/iommu_groups/other")
    with pytest.raises(errors.KernelError, match="EPROTO"):
        _ = function.iommu_group
