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
