"""Config space through VFIO against the same in sysfs and lspci."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from operator import attrgetter

import pytest

from pyvfio.device import Device
from pyvfio.pci import Function
from pyvfio.pci.capabilities import Capability, hidden_by_vfio
from pyvfio.pci.config import BarKind, ConfigSpace

# Of these, VFIO shows the device's own registers where nothing is enabled.
SAME = (
    *("msi.vectors", "msi.is_64bit", "msi.maskable"),
    *("msix.vectors", "msix.table_bar", "msix.table_offset", "msix.pba_bar", "msix.pba_offset"),
    *("pcie.device.flr", "pcie.device.max_payload_supported"),
    *("pm.d1", "pm.d2", "pm.no_soft_reset", "dsn.serial"),
)


def reaches_all(config: ConfigSpace) -> bool:
    """Not on every host: QEMU's PHB3 (POWER8) has 256 bytes of a PCI Express device's 4096."""
    return config.size > 256 or config.pcie is None


def extended_capabilities(config: ConfigSpace) -> Sequence[Capability]:
    return list(config.extended_capabilities) if reaches_all(config) else []


def test_the_header_is_the_devices(function: Function, device: Device) -> None:
    config, sysfs = device.config, function.config
    for name in ("class_code", "revision", "header_type"):
        assert getattr(config, name) == getattr(sysfs, name), name
    # The registers of a virtual function read as 0xffff; VFIO shows what the bus knows of it.
    for name in ("vendor_id", "device_id", "class_code"):
        assert getattr(config, name) == getattr(function, name), name


def test_capabilities_are_the_devices_but_for_the_hidden_ones(
    function: Function, device: Device
) -> None:
    for shown_list, real_list in (
        (device.config.capabilities, function.config.capabilities),
        (extended_capabilities(device.config), extended_capabilities(function.config)),
    ):
        shown = {(capability.offset, capability.id) for capability in shown_list}
        real = {(capability.offset, capability.id): capability for capability in real_list}
        # A hidden one that comes first stays as an empty link of the chain.
        assert {place for place in shown if place[1]} <= real.keys()
        missing = [capability for place, capability in real.items() if place not in shown]
        assert [str(capability) for capability in missing if not hidden_by_vfio(capability)] == []


def test_what_capabilities_say_is_the_same(function: Function, device: Device) -> None:
    def said(config: ConfigSpace) -> dict[str, object]:
        return {
            path: attrgetter(path)(config)
            for path in SAME
            if (path != "dsn.serial" or reaches_all(config))
            and getattr(config, path.partition(".")[0]) is not None
        }

    assert said(device.config) == said(function.config)


def test_lspci_sees_the_same_capabilities(function: Function) -> None:
    if shutil.which("lspci") is None:
        pytest.skip("needs lspci (Debian package pciutils)")
    command = ["lspci", "-s", str(function.address), "-v"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    offsets = [int(match, 16) for match in re.findall(r"Capabilities: \[([0-9a-f]+)[ \]]", text)]
    config = function.config
    ours = [
        capability.offset
        for capability in (*config.capabilities, *extended_capabilities(config))
        if capability.id
    ]
    assert ours == offsets


def test_bars_are_virtual_and_tell_their_size(function: Function, device: Device) -> None:
    before = function.read_config()[0x10:0x28]
    checked = 0
    for bar in device.config.bars:
        offset = 0x10 + 4 * bar.index
        old = device.config.read(offset, 4)
        device.config.write(offset, 4, 0xFFFFFFFF)
        mask = device.config.read(offset, 4) & (~0x3 if bar.kind is BarKind.IO else ~0xF)
        device.config.write(offset, 4, old)
        assert -mask & 0xFFFFFFFF == device.bars[bar.index].size & 0xFFFFFFFF
        assert device.config.read(offset, 4) == old
        checked += 1
    if not checked:
        pytest.skip("the device has no BARs")
    assert function.read_config()[0x10:0x28] == before, "nothing of it reached the device"


def test_bus_mastering_and_decoding_reach_the_device(function: Function, device: Device) -> None:
    for on in (False, True):
        device.bus_master = on
        assert device.bus_master is on
        assert bool(function.config.command & 4) is on
        device.memory_decoding = on
        assert device.memory_decoding is on
        assert bool(function.config.command & 2) is on or not device.bars
