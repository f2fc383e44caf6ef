"""Enabling a vector really programs the device: its MSI-X entry, its MSI registers."""

from __future__ import annotations

import pytest

from pyvfio import errors
from pyvfio.device import Device, MsixEntry, PhysicalMsixTable
from pyvfio.pci import Function


@pytest.fixture
def table(device: Device) -> PhysicalMsixTable:
    try:
        return device.msix.table
    except errors.Unsupported as error:
        pytest.skip(str(error))


def test_every_entry_is_masked_before(device: Device, table: PhysicalMsixTable) -> None:
    assert len(table) == device.msix.count
    if device.can_reset:
        device.reset()
    assert [number for number, entry in enumerate(table[:64]) if not entry.masked] == []


def test_enabling_programs_the_entry(
    function: Function, device: Device, table: PhysicalMsixTable
) -> None:
    last = min(device.msix.count, 4) - 1
    with device.msix.enable(last + 1):
        entries = table[: last + 1]
        assert not any(entry.masked for entry in entries)
        assert all(entry.address for entry in entries)
        messages = {(entry.address, entry.data) for entry in entries}
        assert len(messages) == last + 1, "each vector has a message of its own"
        control = function.config.msix
        assert control is not None
        assert control.enabled
        assert not control.masked
        assert not any(device.msix.pending(number) for number in range(device.msix.count))
    control = function.config.msix
    assert control is not None
    assert not control.enabled


def test_a_vector_that_is_added_is_programmed_alone(
    device: Device, table: PhysicalMsixTable
) -> None:
    if device.msix.noresize or device.msix.count < 3:
        pytest.skip("this kernel adds no vectors to those enabled, or the device has too few")
    if device.can_reset:
        device.reset()
    with device.msix.enable(1):
        before = table[:3]
        with device.msix.enable(1, start=2):
            after = table[:3]
    assert after[:2] == before[:2]
    assert before[2].masked
    assert not after[2].masked
    assert after[2].address


def test_entries_outside_the_table_are_refused(device: Device, table: PhysicalMsixTable) -> None:
    with pytest.raises(errors.RangeError, match=f"has {len(table)} entries"):
        table[len(table)]
    with pytest.raises(errors.RangeError):
        device.msix.pending(len(table))
    assert isinstance(table[0], MsixEntry)


def test_a_device_without_msix_says_so(device: Device) -> None:
    if device.msix.count:
        pytest.skip("the device has MSI-X")
    with pytest.raises(errors.Unsupported, match="no MSI-X"):
        _ = device.msix.table


def test_enabling_msi_programs_its_registers(function: Function, device: Device) -> None:
    if not device.msi.count:
        pytest.skip("the device has no MSI")
    with device.msi.enable(1):
        msi = function.config.msi
        assert msi is not None
        assert msi.enabled
        assert msi.address
    msi = function.config.msi
    assert msi is not None
    assert not msi.enabled
