"""`pyvfio show` of functions that no machine has."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from pyvfio.cli import show
from pyvfio.pci import Function
from tests.pci.bus.tree import Tree

ADDRESS = "0000:01:00.0"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def endpoint(tree: Tree, bar0: int, driver: str | None = None) -> Function:
    """An endpoint with a BAR0 of 4 KiB, of which config space says `bar0`."""
    resources = ["0xfe000000 0xfe000fff 0x40200", *["0x0 0x0 0x0"] * 6]
    function = tree.function(
        ADDRESS,
        driver=driver,
        group=3,
        subsystem_vendor="0x0",
        subsystem_device="0x0",
        revision="0x01",
        resource="\n".join(resources),
    )
    config = bytearray(256)
    config[0x04:0x06] = (0x0006).to_bytes(2, "little")
    config[0x10:0x14] = bar0.to_bytes(4, "little")
    config[0x3D] = 1
    (function.sysfs / "config").write_bytes(config)
    return function


def test_what_is_shown_of_a_function(tree: Tree) -> None:
    entry = show.describe(endpoint(tree, 0xFE000000, driver="vfio-pci"))
    assert entry["address"] == ADDRESS
    assert entry["command"] == ["memory", "master"]
    assert entry["group_members"] == [{"address": ADDRESS, "driver": "vfio-pci"}]
    assert entry["regions"] == [
        {
            "name": "BAR0",
            "size": 4096,
            "address": 0xFE000000,
            "kind": "memory32",
            "prefetchable": False,
        }
    ]
    assert entry["interrupts"] == {"INTx": "INTA", "MSI": 0, "MSI-X": 0}
    assert entry["faults"] == []


@pytest.mark.parametrize("as_json", [True, False])
def test_a_malformed_bar_is_a_fault_and_the_rest_is_shown(
    tree: Tree, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    endpoint(tree, 0xFE000006)
    show.run(argparse.Namespace(address=ADDRESS, json=as_json))
    shown = capsys.readouterr().out
    assert "BAR 0 (0xfe000006) has a reserved type" in shown
    assert "INTA" in shown
    if as_json:
        entry = json.loads(shown)
        assert entry["command"] == ["memory", "master"]
        assert entry["regions"][0]["size"] == 4096


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    show.run(argparse.Namespace(address=ADDRESS, json=False))
    return capsys.readouterr().out


def with_config(function: Function, *parts: tuple[int, bytes], size: int = 256) -> Function:
    """Config space of that size, with what is there at some offsets."""
    config = bytearray(size)
    config[0x04:0x08] = bytes.fromhex("06001000")
    for offset, data in parts:
        config[offset : offset + len(data)] = data
    (function.sysfs / "config").write_bytes(config)
    return function


def test_malformed_bar_takes_no_other_with_it(tree: Tree) -> None:
    function = endpoint(tree, 0)
    lines = ["0xfe000000 0xfe000fff 0x40200", *["0x0 0x0 0x0"] * 2, "0xfd000000 0xfd0fffff 0x40200"]
    (function.sysfs / "resource").write_text("\n".join(lines + ["0x0 0x0 0x0"] * 3))
    with_config(function, (0x10, bytes.fromhex("060000fe")), (0x1C, bytes.fromhex("080000fd")))
    entry = show.describe(function)
    assert entry["faults"] == ["BAR 0 (0xfe000006) has a reserved type"]
    kinds = [(region["name"], region["kind"]) for region in entry["regions"]]
    assert kinds == [("BAR0", None), ("BAR3", "memory32")]


def test_malformed_field_takes_no_other_with_it(tree: Tree) -> None:
    # MSI-X at the end of its list's space: its first register is there, its table is not.
    function = with_config(endpoint(tree, 0), (0x34, b"\xfc"), (0xFC, b"\x11\x00\x07\x80"))
    entry = show.describe(function)
    (capability,) = entry["capabilities"]
    assert capability["fields"] == {"enabled": True, "masked": False, "vectors": 8}
    assert [fault.partition(":")[0] for fault in entry["faults"]] == [
        *("table_bar", "table_offset", "pba_bar", "pba_offset"),
    ]


def test_config_space_of_1536_bytes_is_shown(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    # As the kernel reaches of a Netronome NFP: PCIe, then two extended capabilities, of which the
    # second points beyond what is there.
    function = with_config(
        endpoint(tree, 0),
        (0x34, b"\x40"),
        (0x40, b"\x10\x00\x02\x00"),
        (0x100, (0x3 | 1 << 16 | 0x200 << 20).to_bytes(4, "little")),
        (0x200, (0xB | 1 << 16 | 0x700 << 20).to_bytes(4, "little")),
        size=1536,
    )
    assert function.config.size == 1536
    assert function.config.dsn is not None
    text = shown(capsys)
    assert "[0x100] Device Serial Number" in text
    assert "[0x200] Vendor-Specific" in text
    assert "points to 0x700, and only 1536 bytes of config space are here" in text


def test_pcie_device_of_256_bytes_has_no_extended_capabilities(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    # Behind a conventional bridge: the kernel reaches no more.
    function = with_config(endpoint(tree, 0), (0x34, b"\x40"), (0x40, b"\x10\x00\x02\x00"))
    config = function.config
    assert (config.aer, config.sriov, config.ari, config.dsn, config.acs, config.rebar) == (
        (None,) * 6
    )
    assert "lspci" not in shown(capsys)


def test_bridge_shows_buses_and_windows(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    function = endpoint(tree, 0, driver="pcieport")
    with_config(
        function,
        (0x0E, b"\1"),
        (0x18, bytes([0, 1, 2])),
        (0x1C, bytes.fromhex("1010")),
        (0x20, bytes.fromhex("00fe10fe")),
        (0x24, bytes.fromhex("f0ff0000")),
    )
    text = shown(capsys)
    assert "from bus 00 to buses 01 to 02" in text
    assert "memory 0xfe000000-0xfe1fffff" in text
    assert "prefetchable memory none" in text
    assert "a bridge: VFIO drives the devices below it" in text
    assert "pyvfio bind" not in text
    assert show.describe(function)["bridge"]["secondary_bus"] == 1


def test_bind_is_not_offered_without_a_group(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    (endpoint(tree, 0).sysfs / "iommu_group").unlink()
    text = shown(capsys)
    assert "no IOMMU group" in text
    assert "pyvfio bind" not in text


def test_unreadable_interrupts_are_unknown(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    # What an ordinary user is given.
    function = endpoint(tree, 0)
    with_config(function, (0x34, b"\x40"), size=64)
    assert "MSI unknown, MSI-X unknown" in shown(capsys)
    assert len(show.describe(function)["faults"]) == 1
