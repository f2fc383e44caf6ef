"""The `pyvfio` command, as people type it, on the bench."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from hwtests.forked import said as pyvfio

pytestmark = pytest.mark.skipif(
    not os.environ.get("PYVFIO_BENCH"), reason="takes devices from the host: only on the bench"
)

EDU = "0000:00:04.0"
E1000E = "0000:02:00.0"


def driver(address: str) -> Any:
    (entry,) = (
        entry for entry in json.loads(pyvfio("list", "--json")) if entry["address"] == address
    )
    return entry["driver"]


@pytest.fixture
def edu() -> Iterator[str]:
    pyvfio("bind", EDU)
    yield EDU
    pyvfio("unbind", EDU)


def test_list_shows_every_function_and_its_group() -> None:
    entries = {entry["address"]: entry for entry in json.loads(pyvfio("list", "--json"))}
    assert entries[EDU]["vendor_id"] == 0x1234
    assert entries[E1000E]["driver"] == "e1000e"
    assert isinstance(entries[E1000E]["iommu_group"], int)
    # The command as it is installed.
    installed = subprocess.run(["pyvfio", "list"], capture_output=True, text=True, check=True)
    assert E1000E in installed.stdout


def test_show_opens_nothing_and_shows_regions_interrupts_and_capabilities() -> None:
    entry = json.loads(pyvfio("show", E1000E, "--json"))
    assert entry["driver"] == "e1000e", "it works on a device that its driver holds"
    assert entry["interrupts"]["MSI-X"] == 5
    assert [region["size"] for region in entry["regions"] if region["name"] == "BAR0"] == [0x20000]
    assert "PCI Express" in [capability["name"] for capability in entry["capabilities"]]
    assert entry["faults"] == []
    assert "capabilities" in pyvfio("show", E1000E)


def test_bind_and_unbind_give_the_driver_back() -> None:
    assert driver(E1000E) == "e1000e"
    assert "e1000e -> vfio-pci" in pyvfio("bind", E1000E)
    assert driver(E1000E) == "vfio-pci"
    assert "vfio-pci -> e1000e" in pyvfio("unbind", E1000E)


def test_read_and_write_in_one_open(edu: str) -> None:
    assert pyvfio("read", edu, "bar0+0x0", "config+0x0/16") == (
        "bar0+0x0/32  0x010000ed\nconfig+0x0/16  0x1234\n"
    )
    # The device answers its liveness register with the complement of what was written.
    written = json.loads(pyvfio("write", edu, "bar0+0x4=0x12345678", "bar0+0x4", "--json"))
    assert [access["value"] for access in written] == [0x12345678, 0xEDCBA987]
    assert len(pyvfio("read", edu, "config+0x0/8x4").splitlines()) == 4


def test_shell_has_the_device_open(edu: str) -> None:
    output = pyvfio("shell", edu, stdin="print(hex(device.bars[0].read32(0)))\n")
    assert "0x10000ed" in output


def test_eeh_declines_where_there_is_none() -> None:
    for arguments in (["status", "all"], ["drill", EDU], ["thaw", EDU]):
        said = pyvfio("eeh", *arguments, status=6)
        assert said.startswith("pyvfio: this host has no EEH")
        assert said.count("\n") == 1


def test_mistakes_have_exit_codes_and_say_what_to_do(edu: str) -> None:
    assert "0000:01:00.0" in pyvfio("show", "nonsense", status=2)
    assert "pyvfio list" in pyvfio("show", "0000:1f:00.0", status=3)
    assert f"pyvfio bind {E1000E}" in pyvfio("read", E1000E, "bar0+0", status=4)
    assert "is not an access" in pyvfio("read", edu, "bar0", status=2)
    assert "use `pyvfio write`" in pyvfio("read", edu, "bar0+0=1", status=2)
    assert "it has BAR0" in pyvfio("read", edu, "bar3+0", status=2)
    assert "not a multiple" in pyvfio("read", edu, "bar0+2", status=2)
    assert "outside" in pyvfio("read", edu, "bar0+0x100000", status=2)
